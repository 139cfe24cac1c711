"""Orientation in image files, and files of several frames, read as crops and as fields."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from urnet.fields.io.read import describe_field, open_field
from urnet.images.orientation import map_to_stored, orient, orient_shape, parse_orientation
from urnet.images.read import read_header, read_image

H, W = 24, 40
ORIENTATIONS = range(1, 9)


def picture(colour: bool = True) -> np.ndarray:
    """Draw a gradient with a bright corner. Its eight turned copies all differ."""
    y, x = np.mgrid[:H, :W]
    grey = (y + 3 * x).astype(np.uint8)
    grey[:6, :9] = 250
    return np.stack([grey, grey // 2, 255 - grey], axis=-1) if colour else grey


def exif(orientation: int) -> Image.Exif:
    about = Image.Exif()
    about[0x0112] = orientation
    return about


def png_with_late_exif(path: Path, pixels: np.ndarray, orientation: int) -> None:
    """Write a PNG with the orientation after the pixels, as some programs do."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    data, body = file.getvalue(), b"eXIf" + exif(orientation).tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(data[:-12] + chunk + data[-12:])


def png_16(path: Path, pixels: np.ndarray, orientation: int) -> None:
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(path, exif=exif(orientation))


def tiff(path: Path, pixels: np.ndarray, orientation: int, **more: object) -> None:
    tifffile.imwrite(path, pixels, photometric="rgb", extratags=[(274, "H", 1, orientation)], **more)


WRITERS = {
    "jpg": lambda path, pixels, k: Image.fromarray(pixels).save(path, exif=exif(k), quality=95),
    "png": lambda path, pixels, k: Image.fromarray(pixels).save(path, exif=exif(k)),
    "late.png": png_with_late_exif,
    "16.png": png_16,
    "tif": tiff,
    "tiled.tif": lambda path, pixels, k: tiff(path, pixels, k, tile=(16, 16), compression="zlib"),
    "planar.tif": lambda path, pixels, k: tiff(path, np.moveaxis(pixels, -1, 0), k, planarconfig="separate"),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_applies_the_orientation_of_the_file(tmp_path, kind, orientation):
    """As a crop and as a field, whole and in regions, with the size of the displayed image."""
    stored, path = tmp_path / f"stored.{kind}", tmp_path / f"f.{kind}"
    WRITERS[kind](stored, picture(), 1)
    WRITERS[kind](path, picture(), orientation)
    with Image.open(path) as image:
        shown = ImageOps.exif_transpose(image)
        expected = np.asarray(shown)
        assert shown.size[::-1] == orient_shape((H, W), orientation)
    got = read_image(path)
    np.testing.assert_array_equal(got, orient(read_image(stored), orientation))
    if kind != "jpg":  # which libraries decode to values that differ by one
        np.testing.assert_array_equal(got, expected)
    header, info = read_header(path), describe_field(path)
    assert (header.height, header.width) == (info.height, info.width) == got.shape[:2]
    with open_field(path) as field:
        np.testing.assert_array_equal(field.read(0, 0, *got.shape[:2]), got)
        np.testing.assert_array_equal(field.read(3, 5, 10, 17), got[3:13, 5:22])
        np.testing.assert_array_equal(field.read(7, 2, 17, 9), got[7:24, 2:11])


@given(st.sampled_from(list(ORIENTATIONS)), st.data())
def test_maps_regions_to_stored_pixels(orientation, data):
    stored = np.arange(6 * 9).reshape(6, 9)
    shown = orient(stored, orientation)
    assert shown.shape == orient_shape(stored.shape, orientation)
    top, left = (data.draw(st.integers(0, edge - 1)) for edge in shown.shape)
    height, width = (data.draw(st.integers(1, edge - at)) for edge, at in zip(shown.shape, (top, left), strict=True))
    t, b, h, w = map_to_stored((top, left, height, width), stored.shape, orientation)
    part = orient(stored[t : t + h, b : b + w], orientation)
    np.testing.assert_array_equal(part, shown[top : top + height, left : left + width])


@pytest.mark.parametrize("value", [None, 0, 9, 255, "1", (6,), 6.0])
def test_ignores_invalid_orientations(value):
    assert parse_orientation(value) == 1


def test_ignores_damaged_metadata(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\xff\xff")
    assert read_image(tmp_path / "a.jpg").shape == (H, W, 3)


RED_LEFT = {
    "png": lambda path, pixels: Image.fromarray(pixels).save(path),
    "bmp": lambda path, pixels: Image.fromarray(pixels).save(path),
    "jpg": lambda path, pixels: Image.fromarray(pixels).save(path, quality=95, subsampling=0),
    "contiguous.tif": lambda path, pixels: tifffile.imwrite(path, pixels, photometric="rgb"),
    "planar.tif": lambda path, pixels: tifffile.imwrite(
        path, np.moveaxis(pixels, -1, 0), photometric="rgb", planarconfig="separate"
    ),
    "ycbcr.tif": lambda path, pixels: tifffile.imwrite(
        path, pixels, photometric="rgb", compression="jpeg", compressionargs={"level": 95}, tile=(64, 64)
    ),
    "palette.png": lambda path, pixels: Image.fromarray(pixels).quantize(2).save(path),
}


@pytest.mark.parametrize("kind", RED_LEFT)
def test_red_is_red(tmp_path, kind):
    pixels = np.empty((64, 64, 3), np.uint8)
    pixels[:, :32], pixels[:, 32:] = (200, 30, 20), (90, 150, 220)
    path = tmp_path / f"f.{kind}"
    RED_LEFT[kind](path, pixels)
    with open_field(path) as field:
        for got in (read_image(path), field.read(0, 0, 64, 64)):
            assert np.abs(got.astype(int) - pixels)[:, 2:30].max() <= 6
            assert np.abs(got.astype(int) - pixels)[:, 34:62].max() <= 6


def frames(path: Path, count: int, **how: object) -> None:
    images = [Image.fromarray(picture() // (k + 1)) for k in range(count)]
    images[0].save(path, save_all=True, append_images=images[1:], **how)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_refuses_files_of_several_frames(tmp_path, raises_code, name):
    how = {"format": "MPO"} if name == "a.jpg" else {"default_image": False}
    frames(tmp_path / name, 3, **how)
    for read in (read_header, read_image, describe_field, open_field):
        with raises_code("images.several_frames") as caught:
            read(tmp_path / name)
        assert "3 frames" in str(caught.value)


def test_accepts_one_frame_with_previews(tmp_path):
    frames(tmp_path / "a.png", 1)
    small = Image.fromarray(picture()[::2, ::2])  # as telephones add a map of brightness
    Image.fromarray(picture()).save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[small])
    for name in ("a.png", "a.jpg"):
        assert read_image(tmp_path / name).shape == (H, W, 3)
        assert describe_field(tmp_path / name).height == H
