"""Images are read in their own depth and range, and damaged ones raise one `ImageError` with the file name."""

import io
import os
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from urnet.errors import ImageError
from urnet.fields.io.read import describe_field
from urnet.images.read import MAX_PIXELS, MIN_EDGE, read_header, read_image

EDGES = st.integers(MIN_EDGE, 24)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def pixels(dtype: type, colours: int) -> st.SearchStrategy[np.ndarray]:
    shape = st.tuples(EDGES, EDGES) if colours == 1 else st.tuples(EDGES, EDGES, st.just(colours))
    wild = {"elements": st.floats(width=32, allow_nan=False, allow_infinity=False)} if dtype is np.float32 else {}
    return shape.flatmap(lambda s: npst.arrays(dtype, s, **wild))


def check_exact(path: Path, image: np.ndarray) -> None:
    """Check that a file reads as `image` without alpha, and that its header agrees."""
    expected = image[..., :3] if image.ndim == 3 else image
    pixels_read, header = read_image(path), read_header(path)
    assert pixels_read.dtype == image.dtype
    np.testing.assert_array_equal(pixels_read, expected)
    assert (header.height, header.width) == image.shape[:2]
    assert header.colour == (image.ndim == 3)
    assert header.dtype == str(image.dtype)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
@pytest.mark.parametrize("colours", [1, 3, 4])
@quick
@given(data=st.data())
def test_reads_8_bits_exactly(tmp_path, suffix, colours, data):
    image = data.draw(pixels(np.uint8, colours))
    Image.fromarray(image).save(tmp_path / f"crop.{suffix}")
    check_exact(tmp_path / f"crop.{suffix}", image)


@pytest.mark.parametrize("colours", [1, 3, 4])
@quick
@given(data=st.data())
def test_reads_16_bit_png_exactly(tmp_path, colours, data):
    image = data.draw(pixels(np.uint16, colours))
    (tmp_path / "crop.png").write_bytes(imagecodecs.png_encode(image))
    check_exact(tmp_path / "crop.png", image)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("colours", [1, 3, 4])
@quick
@given(data=st.data())
def test_reads_tiff_of_every_encoding_exactly(tmp_path, dtype, colours, data):
    image = data.draw(pixels(dtype, colours))
    planar = colours > 1 and data.draw(st.booleans())
    tifffile.imwrite(
        tmp_path / "crop.tif",
        np.moveaxis(image, -1, 0) if planar else image,
        photometric="rgb" if colours > 1 else "minisblack",
        planarconfig="separate" if planar else "contig",
        compression=data.draw(st.sampled_from([None, "zlib", "lzw"])),
        byteorder=data.draw(st.sampled_from("<>")),
        bigtiff=data.draw(st.booleans()),
        tile=data.draw(st.sampled_from([None, (16, 16)])),
    )
    check_exact(tmp_path / "crop.tif", image)


def test_converts_other_depths_without_changing_values(tmp_path, raises_code):
    ramp = np.arange(256, dtype=np.int16).reshape(16, 16) - 100
    for dtype in (np.int16, np.float16, np.float64):
        tifffile.imwrite(tmp_path / "crop.tif", ramp.astype(dtype))
        assert read_header(tmp_path / "crop.tif").dtype == "float32"
        np.testing.assert_array_equal(read_image(tmp_path / "crop.tif"), ramp.astype(np.float32))
    for dtype in (np.uint32, np.int8, np.complex64):
        tifffile.imwrite(tmp_path / "crop.tif", ramp.astype(dtype))
        with raises_code("images.depth_unsupported") as caught:
            read_image(tmp_path / "crop.tif")
        assert "crop.tif" in str(caught.value)


def test_scales_few_bits_to_the_whole_range(tmp_path):
    mask = np.eye(16, dtype=bool)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    tifffile.imwrite(tmp_path / "mask.tif", mask, photometric="minisblack")
    tifffile.imwrite(tmp_path / "inverted.tif", mask, photometric="miniswhite")
    for name, expected in (("mask.png", mask), ("mask.tif", mask), ("inverted.tif", ~mask)):
        np.testing.assert_array_equal(read_image(tmp_path / name), expected * np.uint8(255))
    twelve = np.arange(256, dtype=np.uint16).reshape(16, 16) * 16
    tifffile.imwrite(tmp_path / "twelve.tif", twelve, photometric="miniswhite", bitspersample=12, compression="none")
    np.testing.assert_array_equal(read_image(tmp_path / "twelve.tif"), 4095 - twelve)


def test_inverts_min_is_white(tmp_path):
    for dtype in (np.uint8, np.uint16):
        image = np.arange(256, dtype=dtype).reshape(16, 16)
        tifffile.imwrite(tmp_path / "crop.tif", np.iinfo(dtype).max - image, photometric="miniswhite")
        check_exact(tmp_path / "crop.tif", image)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_reads_palettes_as_colours(tmp_path, suffix):
    image = np.random.default_rng(0).choice(np.array([0, 85, 170, 255], np.uint8), (12, 15, 3))
    Image.fromarray(image).quantize(64, dither=Image.Dither.NONE).save(tmp_path / f"crop.{suffix}")
    check_exact(tmp_path / f"crop.{suffix}", image)


def test_drops_alpha_of_grey(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    both = np.stack([grey, np.full_like(grey, 255)], axis=-1)
    Image.fromarray(both, "LA").save(tmp_path / "crop.png")
    tifffile.imwrite(tmp_path / "crop.tif", both, photometric="minisblack", planarconfig="contig", extrasamples=[2])
    (tmp_path / "deep.png").write_bytes(imagecodecs.png_encode(both.astype(np.uint16) * 257))
    check_exact(tmp_path / "crop.png", grey)
    check_exact(tmp_path / "crop.tif", grey)
    check_exact(tmp_path / "deep.png", grey.astype(np.uint16) * 257)


@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
@pytest.mark.parametrize("samples", [["unspecified"], None])
def test_refuses_two_channels_without_alpha(tmp_path, planarconfig, samples, raises_code):
    both = np.arange(512, dtype=np.uint16).reshape((16, 16, 2) if planarconfig == "contig" else (2, 16, 16))
    options = {"photometric": "minisblack", "planarconfig": planarconfig, "extrasamples": samples, "metadata": None}
    tifffile.imwrite(tmp_path / "crop.tif", both, **options)
    for read in (read_image, read_header):
        with raises_code("images.several_channels"):
            read(tmp_path / "crop.tif")
    assert describe_field(tmp_path / "crop.tif").channels == ("0", "1")


def test_jpeg_grey_and_colour(tmp_path):
    ramp = np.add.outer(np.arange(40), np.arange(50)).astype(np.uint8) * 2
    Image.fromarray(ramp).save(tmp_path / "grey.jpg", quality=95)
    Image.fromarray(np.stack([ramp] * 3, -1)).save(tmp_path / "colour.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "grey.jpg").astype(int) - ramp).max() <= 4
    colour = read_image(tmp_path / "colour.jpg")
    assert colour.shape == (40, 50, 3)
    assert np.abs(colour.astype(int) - ramp[..., None]).max() <= 4


def test_pages_of_a_stack(tmp_path, raises_code):
    stack = np.arange(5 * 100, dtype=np.uint16).reshape(5, 10, 10)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    assert read_header(tmp_path / "stack.tif").pages == 5
    for page in range(5):
        np.testing.assert_array_equal(read_image(tmp_path / "stack.tif", page), stack[page])
    for page in (-1, 5):
        with raises_code("images.page_missing") as caught:
            read_image(tmp_path / "stack.tif", page)
        assert "5" in str(caught.value)


def test_content_and_not_the_name_decides_the_format(tmp_path):
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(image).save(tmp_path / "crop.png")
    (tmp_path / "crop.png").rename(tmp_path / "größe 1.TIF")
    check_exact(tmp_path / "größe 1.TIF", image)


def test_refuses_channels_that_are_no_colours(tmp_path, raises_code):
    tifffile.imwrite(tmp_path / "five.tif", np.zeros((9, 9, 5), np.uint8), photometric="minisblack", planarconfig=1)
    Image.new("CMYK", (9, 9)).save(tmp_path / "cmyk.tif")
    Image.new("LAB", (9, 9)).save(tmp_path / "lab.tif")
    tifffile.imwrite(tmp_path / "deep.tif", np.zeros((4, 16, 16), np.uint8), volumetric=True, photometric="minisblack")
    for name in ("five.tif", "cmyk.tif", "lab.tif", "deep.tif"):
        with raises_code("images.pixels_unsupported") as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)


ENCODED = {
    "png": lambda image, file: Image.fromarray(image).save(file, "PNG"),
    "jpg": lambda image, file: Image.fromarray(image).save(file, "JPEG"),
    "bmp": lambda image, file: Image.fromarray(image).save(file, "BMP"),
    "tif": lambda image, file: tifffile.imwrite(file, image, photometric="rgb"),
    "zlib.tif": lambda image, file: tifffile.imwrite(file, image, photometric="rgb", compression="zlib"),
    "lzw.tif": lambda image, file: Image.fromarray(image).save(file, "TIFF", compression="tiff_lzw"),
    "16.png": lambda image, file: file.write(imagecodecs.png_encode(image.astype(np.uint16) * 257)),
}


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    ENCODED[kind](np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8), file)
    return file.getvalue()


@pytest.mark.parametrize("kind", ENCODED)
@settings(quick, max_examples=80)
@given(data=st.data())
def test_bit_flips_give_an_image_or_an_image_error(tmp_path, kind, data):
    content = bytearray(encoded(kind))
    # Half of the flips are in the header, where they have most effect.
    places = st.one_of(st.integers(0, min(400, len(content) - 1)), st.integers(0, len(content) - 1))
    for place in data.draw(st.lists(places, min_size=1, max_size=6)):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "crop.img"
    path.write_bytes(content)
    image, message = None, ""
    try:
        image = read_image(path)
    except ImageError as error:
        message = str(error)
    if image is None:
        assert message.startswith(str(path))
        assert "\n" not in message
    else:
        assert image.dtype in (np.uint8, np.uint16, np.float32)
        assert image.ndim == 2 or image.shape[2:] == (3,)


@pytest.mark.parametrize("kind", ENCODED)
@settings(quick, max_examples=60)
@given(data=st.data())
def test_every_truncation_is_refused(tmp_path, kind, data):
    content = encoded(kind)
    # Data after the pixels (checksums, end marks, padding) are not needed.
    path = tmp_path / "crop.img"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 64))])
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert "crop.img" in str(caught.value)


def test_damage_raises_one_error_without_warnings(tmp_path, capfd, recwarn):
    for kind in ENCODED:
        path = tmp_path / f"crop.{kind}"
        content = encoded(kind)
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(ImageError) as caught:
            read_image(path)
        assert str(path) in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_refuses_files_that_are_no_images(tmp_path, raises_code):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("path,label\n", encoding="utf-8")
    (tmp_path / "BMbut.bmp").write_bytes(b"BM is how this text begins")
    (tmp_path / "folder.png").mkdir()
    codes = {
        "empty.png": "images.empty",
        "text.png": "images.format_unknown",
        "BMbut.bmp": "images.damaged",
        "folder.png": "images.cannot_open",
        "absent.png": "images.not_found",
    }
    for name, code in codes.items():
        for read in (read_header, read_image):
            with raises_code(code) as caught:
                read(tmp_path / name)
            assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 1), (7, 40), (40, 7), (1, 400)])
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
def test_refuses_too_small_images(tmp_path, shape, suffix, raises_code):
    path = tmp_path / f"crop.{suffix}"
    Image.fromarray(np.full(shape, 9, np.uint8)).save(path)
    with raises_code("images.too_small") as caught:
        read_image(path)
    assert f"{shape[1]} x {shape[0]} px" in str(caught.value)


def png_header(width: int, height: int, bits: int) -> bytes:
    data = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunk = b"IHDR" + data + struct.pack(">I", zlib.crc32(b"IHDR" + data))
    body = zlib.compress(bytes(1000))
    body = struct.pack(">I", len(body)) + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT" + body))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + body


def claims_30000(kind: str) -> bytes:
    """Make a small file whose header claims 30,000 x 30,000 px."""
    if kind.endswith("png"):
        return png_header(30000, 30000, 16 if kind == "16.png" else 8)
    content = bytearray(encoded(kind))
    if kind == "bmp":
        content[18:26] = struct.pack("<ii", 30000, 30000)
    elif kind == "jpg":
        start = content.index(b"\xff\xc0")
        content[start + 5 : start + 9] = struct.pack(">HH", 30000, 30000)
    else:
        with tifffile.TiffFile(io.BytesIO(bytes(content))) as tif:
            for name in ("ImageWidth", "ImageLength"):
                tag = tif.pages[0].tags[name]
                content[tag.valueoffset : tag.valueoffset + 2] = struct.pack("<H", 30000)
    return bytes(content)


@pytest.mark.parametrize("kind", ENCODED)
def test_refuses_30000_px_from_the_header(tmp_path, kind, raises_code):
    path = tmp_path / "bomb.img"
    path.write_bytes(claims_30000(kind))
    tracemalloc.start()
    start = time.perf_counter()
    for read in (read_header, read_image):
        with raises_code("images.too_large") as caught:
            read(path)
        assert "100,000,000 px" in str(caught.value)
    assert time.perf_counter() - start < 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000  # decoded it is 900 MB and more


def test_accepts_the_size_limit_itself(tmp_path):
    """Larger than Pillow's warning threshold, without its warning."""
    (tmp_path / "large.png").write_bytes(png_header(10_000, MAX_PIXELS // 10_000, 8))
    assert read_header(tmp_path / "large.png").width == 10_000


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_error_counts_values_that_are_not_finite(tmp_path, value, raises_code):
    image = np.zeros((10, 10), np.float32)
    image[3, 4:7] = value
    tifffile.imwrite(tmp_path / "crop.tif", image)
    with raises_code("images.not_finite") as caught:
        read_image(tmp_path / "crop.tif")
    assert "crop.tif: 3 of 100 values" in str(caught.value)


@pytest.mark.real_data
def test_jurkat_montages_keep_their_16_bits(jurkat):
    for phase in ("g1", "telophase"):
        for channel in ("brightfield", "dna"):
            path = jurkat / phase / f"{channel}.tif"
            assert read_header(path).dtype == "uint16"
            np.testing.assert_array_equal(read_image(path), tifffile.imread(path))
    assert 600 < np.median(read_image(jurkat / "g1" / "brightfield.tif")) < 750


@pytest.mark.real_data
def test_pbc_crops_are_8_bit_colour(pbc):
    path = sorted((pbc / "monocyte").glob("*.jpg"))[0]
    image = read_image(path)
    assert image.shape == (363, 360, 3)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.asarray(Image.open(path)))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_refuses_a_pipe_without_waiting(tmp_path, raises_code):
    os.mkfifo(tmp_path / "pipe.png")
    with raises_code("images.cannot_open") as caught:
        read_image(tmp_path / "pipe.png")
    assert "pipe.png" in str(caught.value)


@pytest.mark.parametrize("name", ["a\0b.png", "x" * 5000 + ".png"])
def test_impossible_names_are_missing_files(tmp_path, name):
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / name)
    assert caught.value.code in ("images.not_found", "images.cannot_open")


# --- palettes, and few bits a pixel


def packed(indices: np.ndarray, bits: int, order: int) -> bytes:
    """Pack rows of values of a few bits, padded to whole bytes. Order 2 reverses the bits of every byte."""
    rows = b""
    for row in indices:
        ones = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :].ravel()
        rows += np.packbits(ones, bitorder="little" if order == 2 else "big").tobytes()
    return rows


def few_bits(
    path: Path,
    indices: np.ndarray,
    bits: int,
    photometric: int,
    *,
    order: int = 1,
    alpha: bool = False,
    planar: bool = False,
) -> np.ndarray:
    """Write a TIFF of 1, 2, 4 or 8 bits per value. Return its palette, (2**bits, 3)."""
    height, width = indices.shape
    colours = np.random.default_rng(bits).integers(0, 256, (2**bits, 3)).astype(np.uint8)
    values = indices
    if alpha:
        values = np.stack([indices, np.full_like(indices, 2**bits - 1)], -1).reshape(height, -1)
    data = packed(values, bits, order)
    samples, places, lengths = 2 if alpha else 1, [8], [len(data)]
    if alpha and planar:
        planes = [packed(one, bits, order) for one in (indices, np.full_like(indices, 2**bits - 1))]
        data, places, lengths = b"".join(planes), [8, 8 + len(planes[0])], [len(one) for one in planes]
    tags = {256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * samples), 259: (3, [1]), 262: (3, [photometric])}
    tags |= {266: (3, [order]), 273: (4, places), 277: (3, [samples]), 278: (4, [height]), 279: (4, lengths)}
    if photometric == 3:
        tags[320] = (3, (colours.T.astype(np.uint16) * 257).ravel().tolist())
    if alpha:
        tags |= {284: (3, [2 if planar else 1]), 338: (3, [2])}
    start = 8 + len(data) + len(data) % 2
    behind = start + 2 + 12 * len(tags) + 4
    directory, extra = struct.pack("<H", len(tags)), b""
    for code in sorted(tags):
        kind, content = tags[code]
        raw = struct.pack(f"<{len(content)}{'HI'[kind == 4]}", *content)
        place = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack("<I", behind + len(extra))
        extra += raw if len(raw) > 4 else b""
        directory += struct.pack("<HHI", code, kind, len(content)) + place
    path.write_bytes(struct.pack("<4sI", b"II*\0", start) + data.ljust(start - 8, b"\0") + directory + bytes(4) + extra)
    return colours


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    "kind", ["palette", "palette with alpha", "palette with alpha apart", "black is zero", "white is zero"]
)
def test_reads_few_bits_and_palettes_as_crop_and_as_field(tmp_path, bits, order, kind):
    from urnet.fields.io.read import open_field

    indices = np.random.default_rng(0).integers(0, 2**bits, (19, 23))
    photometric = {"black is zero": 1, "white is zero": 0}.get(kind, 3)
    path = tmp_path / "f.tif"
    colours = few_bits(path, indices, bits, photometric, order=order, alpha="alpha" in kind, planar="apart" in kind)
    grey = np.rint(indices * (255 / (2**bits - 1))).astype(np.uint8)
    expected = colours[indices] if photometric == 3 else grey if photometric == 1 else 255 - grey
    np.testing.assert_array_equal(read_image(path), expected)
    with open_field(path) as field:
        np.testing.assert_array_equal(field.read(0, 0, 19, 23), expected)
        np.testing.assert_array_equal(field.read(3, 5, 9, 11), expected[3:12, 5:16])


def test_reads_the_palette_case_as_colours(cases):
    path = cases / "palette-alpha" / "palette-1c-1b.tiff"
    expected = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected)
