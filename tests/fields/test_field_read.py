"""Every region of a field equals the written pixels, for any layout of the file. Damage is one `ImageError`."""

import json
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from urnet.errors import ImageError
from urnet.fields.io.read import describe_field, open_field
from urnet.images.read import read_header, read_image

H, W = 75, 99
REGIONS = [(0, 0, H, W), (10, 20, 30, 40), (H - 1, W - 1, 1, 1), (0, 0, 1, W), (33, 0, 42, 5), (15, 31, 34, 34)]


def image(dtype: type = np.uint16, *shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = shape or (H, W)
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)


def check(path: Path, expected: np.ndarray, **choice: str) -> None:
    with open_field(path, **choice) as field:
        assert (field.info.height, field.info.width) == expected.shape[:2]
        assert field.info.dtype == str(expected.dtype)
        assert field.info.colour == (expected.ndim == 3)
        for top, left, height, width in REGIONS:
            found = field.read(top, left, height, width)
            assert found.dtype == expected.dtype
            assert found.flags.c_contiguous
            assert found.flags.writeable
            np.testing.assert_array_equal(found, expected[top : top + height, left : left + width])


LAYOUTS = {
    "one strip": {},
    "strips": {"rowsperstrip": 7},
    "tiles": {"tile": (32, 16)},
    "deflated strips": {"rowsperstrip": 7, "compression": "zlib"},
    "deflated tiles": {"tile": (32, 16), "compression": "zlib"},
    "lzw with predictor": {"tile": (16, 32), "compression": "lzw", "predictor": True},
    "zstd": {"rowsperstrip": 20, "compression": "zstd"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("colour", [False, "contig", "separate"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_tiff_of_any_layout(tmp_path, layout, dtype, colour, byteorder):
    expected = image(dtype, H, W, 3) if colour else image(dtype)
    stored = np.moveaxis(expected, -1, 0) if colour == "separate" else expected
    kind = {"photometric": "rgb", "planarconfig": colour} if colour else {"photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "f.tif", stored, byteorder=byteorder, **kind, **LAYOUTS[layout])
    check(tmp_path / "f.tif", expected)
    assert describe_field(tmp_path / "f.tif").pixel_um is None


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("tile", [None, (32, 32)])
def test_alpha_is_dropped_and_other_depths_keep_their_values(tmp_path, bigtiff, tile):
    rgba = image(np.uint8, H, W, 4)
    layout = {"bigtiff": bigtiff, "tile": tile}
    tifffile.imwrite(tmp_path / "f.tif", rgba, photometric="rgb", extrasamples=["unassalpha"], **layout)
    check(tmp_path / "f.tif", rgba[..., :3])
    for dtype in (np.int16, np.float16, np.float64):
        values = image(np.int16).astype(dtype)
        tifffile.imwrite(tmp_path / "f.tif", values, photometric="minisblack", **layout)
        check(tmp_path / "f.tif", values.astype(np.float32))


def test_inverted_grey_palettes_and_packed_bits(tmp_path):
    grey = image(np.uint8)
    tifffile.imwrite(tmp_path / "f.tif", 255 - grey, photometric="miniswhite", tile=(16, 16))
    check(tmp_path / "f.tif", grey)
    palette = image(np.uint16, 3, 256) // 257 * 257
    tifffile.imwrite(tmp_path / "f.tif", grey, photometric="palette", colormap=palette, tile=(16, 16))
    check(tmp_path / "f.tif", np.moveaxis((palette >> 8)[:, grey], 0, -1).astype(np.uint8))
    mask = grey > 100
    tifffile.imwrite(tmp_path / "f.tif", mask, photometric="minisblack")
    check(tmp_path / "f.tif", mask * np.uint8(255))


def test_jpeg_tiles_and_empty_tiles(tmp_path):
    smooth = (np.add.outer(np.arange(128), np.arange(160)) // 2).astype(np.uint8)
    colour = np.stack([smooth, smooth[::-1], smooth[:, ::-1]], axis=-1)
    options = {"tile": (64, 64), "compression": "jpeg", "compressionargs": {"level": 98}}
    tifffile.imwrite(tmp_path / "f.tif", colour, photometric="rgb", **options)
    with open_field(tmp_path / "f.tif") as field:
        assert field.info.colour
        assert np.abs(field.read(50, 50, 30, 60).astype(int) - colour[50:80, 50:110]).max() <= 8
    tiles = [smooth[:64, :64], None, None, None, None, None]
    tifffile.imwrite(
        tmp_path / "g.tif", iter(tiles), shape=(128, 160), dtype=np.uint8, tile=(64, 64), compression="zlib"
    )
    with open_field(tmp_path / "g.tif") as field:
        np.testing.assert_array_equal(field.read(0, 0, 64, 64), smooth[:64, :64])
        assert not field.read(64, 0, 64, 160).any()


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_missing_tile_is_empty_or_damaged_for_fields_and_crops(tmp_path, bigtiff, compression, raises_code):
    """A tile of 0 bytes at byte 0 was left empty; one with bytes would be read from the header."""
    path, whole = tmp_path / "f.tif", image(np.uint16, 64, 64)
    tifffile.imwrite(path, whole, tile=(32, 32), compression=compression, bigtiff=bigtiff)
    with tifffile.TiffFile(path) as tif:
        (offsets, offset_size), (counts, count_size) = (
            (tif.pages.first.tags[code].valueoffset, {3: 2, 4: 4, 16: 8}[int(tif.pages.first.tags[code].dtype)])
            for code in (324, 325)
        )
    data = bytearray(path.read_bytes())
    data[offsets + offset_size : offsets + 2 * offset_size] = bytes(offset_size)
    path.write_bytes(data)
    for read in (describe_field, open_field, read_image, read_header):
        with raises_code("images.pages_damaged"):
            read(path)
    data[counts + count_size : counts + 2 * count_size] = bytes(count_size)
    path.write_bytes(data)
    whole[:32, 32:] = 0
    with open_field(path) as field:
        np.testing.assert_array_equal(field.read(0, 0, 64, 64), whole)
    np.testing.assert_array_equal(read_image(path), whole)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("colour", [False, True])
def test_png_and_jpeg(tmp_path, deep, colour):
    expected = image(np.uint16 if deep else np.uint8, *((H, W, 3) if colour else (H, W)))
    (tmp_path / "f.tif").write_bytes(imagecodecs.png_encode(expected))  # whatever its name says
    check(tmp_path / "f.tif", expected)
    if not deep:
        Image.fromarray(expected).save(tmp_path / "f.jpg", quality=95, dpi=(25400, 25400))
        with open_field(tmp_path / "f.jpg") as field:
            assert field.read(5, 6, 7, 8).shape[:2] == (7, 8)
        assert describe_field(tmp_path / "f.jpg").pixel_um is None


def test_resolutions_of_png_and_jpeg_are_not_pixel_sizes(tmp_path):
    for name in ("f.png", "f.jpg", "f.bmp"):
        Image.fromarray(image(np.uint8)).save(tmp_path / name, dpi=(50800, 50800))
        assert describe_field(tmp_path / name).pixel_um is None


# --- channels, planes, scenes, time points


def test_ome_channels_planes_scenes_and_pixel_sizes(tmp_path):
    stacks = {"well A": image(np.uint16, 2, 3, H, W), "well B": image(np.uint16, 2, 3, H, W, seed=1)}
    with tifffile.TiffWriter(tmp_path / "f.ome.tif", ome=True) as out:
        for (name, stack), size in zip(stacks.items(), (0.25, 0.5), strict=True):
            out.write(
                stack,
                photometric="minisblack",
                tile=(32, 32),
                compression="zlib",
                metadata={
                    "axes": "CZYX",
                    "Name": name,
                    "Channel": {"Name": ["Brightfield", "DAPI"]},
                    "PhysicalSizeX": size,
                    "PhysicalSizeXUnit": "µm",
                    "PhysicalSizeY": size,
                    "PhysicalSizeYUnit": "µm",
                },
            )
    info = describe_field(tmp_path / "f.ome.tif")
    assert (info.channels, info.planes, info.scenes) == (("Brightfield", "DAPI"), 3, ("well A", "well B"))
    assert info.pixel_um == pytest.approx(0.25)
    for scene, stack in stacks.items():
        for channel, c in (("dapi", 1), ("0", 0)):
            check(tmp_path / "f.ome.tif", stack[c, 2], channel=channel, z="2", scene=scene.upper())
            for z, project in (("max", np.max), ("min", np.min)):
                check(tmp_path / "f.ome.tif", project(stack[c], axis=0), channel=channel, z=z, scene=scene)
            mean = np.rint(stack[c].mean(axis=0)).astype(np.uint16)
            check(tmp_path / "f.ome.tif", mean, channel=channel, z="MEAN", scene=scene)
    with open_field(tmp_path / "f.ome.tif", channel="DAPI", z="0", scene="1") as field:
        assert field.info.pixel_um == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("choice", "code", "words"),
    [
        ({"z": "0", "scene": "0"}, "fields.choice_needed", ("0: BF, 1: DAPI", "--channel")),
        ({"channel": "BF", "scene": "0"}, "fields.z_needed", ("--z", "0 to 2, or max, mean, min, sharpest")),
        ({"channel": "BF", "z": "0"}, "fields.choice_needed", ("0: A, 1: B", "--scene")),
        ({"channel": "GFP", "z": "0", "scene": "0"}, "fields.choice_unknown", ("'GFP'", "0: BF, 1: DAPI")),
        ({"channel": "2", "z": "0", "scene": "0"}, "fields.choice_unknown", ("channel '2'",)),
        ({"channel": "BF", "z": "3", "scene": "0"}, "fields.no_such_plane", ("3", "0 to 2")),
        ({"channel": "BF", "z": "median", "scene": "0"}, "fields.no_such_plane", ("'median'", "0 to 2")),
        ({"channel": "BF", "z": "0", "scene": "C"}, "fields.choice_unknown", ("scene 'C'",)),
    ],
)
def test_a_missing_or_wrong_choice_lists_the_possible_ones(tmp_path, raises_code, choice, code, words):
    with tifffile.TiffWriter(tmp_path / "f.ome.tif", ome=True) as out:
        for name in "AB":
            metadata = {"axes": "CZYX", "Name": name, "Channel": {"Name": ["BF", "DAPI"]}}
            out.write(image(np.uint8, 2, 3, 16, 16), metadata=metadata, photometric="minisblack")
    with raises_code(code) as caught:
        open_field(tmp_path / "f.ome.tif", **choice)
    assert all(word in str(caught.value) for word in ("f.ome.tif", *words))


def test_axes_in_any_order_and_time_points_are_scenes(tmp_path):
    stack = image(np.uint8, 2, 3, 4, H, W)
    tifffile.imwrite(tmp_path / "f.ome.tif", stack, metadata={"axes": "ZTCYX"}, photometric="minisblack")
    assert describe_field(tmp_path / "f.ome.tif").scenes == ("t0", "t1", "t2")
    check(tmp_path / "f.ome.tif", stack[1, 2, 3], channel="3", z="1", scene="t2")


def test_colour_in_an_ome_tiff_is_one_channel(tmp_path):
    colour = image(np.uint8, H, W, 3)
    tifffile.imwrite(tmp_path / "f.ome.tif", colour, photometric="rgb", metadata={"axes": "YXS"}, tile=(32, 32))
    check(tmp_path / "f.ome.tif", colour)
    assert len(describe_field(tmp_path / "f.ome.tif").channels) == 1


@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
@pytest.mark.parametrize("tile", [None, (32, 32)])
def test_channels_side_by_side_in_one_page(tmp_path, planarconfig, tile):
    stack = image(np.uint16, 5, H, W)
    stored = stack if planarconfig == "separate" else np.moveaxis(stack, 0, -1)
    tifffile.imwrite(tmp_path / "f.tif", stored, photometric="minisblack", planarconfig=planarconfig, tile=tile)
    assert describe_field(tmp_path / "f.tif").channels == ("0", "1", "2", "3", "4")
    for c in (0, 4):
        check(tmp_path / "f.tif", stack[c], channel=str(c))


@pytest.mark.parametrize("planes", [3, 4])
@pytest.mark.parametrize(("axes", "order"), [("ZYX", (0, 1, 2)), ("TYX", (0, 1, 2)), ("YXZ", (1, 2, 0))])
@pytest.mark.parametrize("layout", [{}, {"tile": (32, 32), "compression": "zlib"}])
def test_a_named_axis_of_three_or_four_planes_is_not_colour(tmp_path, planes, axes, order, layout):
    """Python's tifffile stores such an array as the colours of one image, unless `photometric` is given."""
    stack = image(np.uint16, planes, H, W)
    config = {"photometric": "rgb", "planarconfig": "contig"} if axes == "YXZ" else {}
    path = tmp_path / "f.tif"
    tifffile.imwrite(path, stack.transpose(order), metadata={"axes": axes}, **config, **layout)
    with tifffile.TiffFile(path) as tif:
        assert (len(tif.pages), tif.pages.first.samplesperpixel) == (1, planes)
    info = describe_field(path)
    assert (info.planes, len(info.scenes), info.colour) == ((1, planes, False) if "T" in axes else (planes, 1, False))
    for number in (0, planes - 1):
        check(path, stack[number], **({"scene": f"t{number}"} if "T" in axes else {"z": str(number)}))


def test_planes_beside_each_other_within_time_points(tmp_path):
    stack = image(np.uint16, 2, 3, H, W)
    tifffile.imwrite(tmp_path / "f.tif", stack, metadata={"axes": "TZYX"})
    assert describe_field(tmp_path / "f.tif").scenes == ("t0", "t1")
    check(tmp_path / "f.tif", stack[1, 2], z="2", scene="t1")
    check(tmp_path / "f.tif", stack[0].max(axis=0), z="max", scene="t0")


def test_three_planes_of_an_axis_without_a_name_or_of_channels_stay_colour(tmp_path):
    stack = image(np.uint16, 3, H, W)
    for axes in ("CYX", "SYX", "QYX"):
        tifffile.imwrite(tmp_path / "f.tif", stack, metadata={"axes": axes}, photometric="rgb", planarconfig="separate")
        check(tmp_path / "f.tif", np.moveaxis(stack, 0, -1))


def test_grey_with_alpha_is_one_channel(tmp_path):
    grey = image(np.uint8)
    both = np.stack([grey, np.full_like(grey, 255)], axis=-1)
    tifffile.imwrite(tmp_path / "f.tif", both, photometric="minisblack", planarconfig="contig", extrasamples=[2])
    check(tmp_path / "f.tif", grey)


def test_pages_without_metadata_are_z_planes(tmp_path):
    stack = image(np.uint16, 4, H, W)
    with tifffile.TiffWriter(tmp_path / "f.tif") as out:
        for page in stack:
            out.write(page, photometric="minisblack", metadata=None, contiguous=False)
    assert describe_field(tmp_path / "f.tif").planes == 4
    check(tmp_path / "f.tif", stack[3], z="3")


def test_the_sharpest_plane_is_the_one_with_the_finest_structure(tmp_path):
    from scipy.ndimage import gaussian_filter

    detail = 2000 + 400 * np.random.default_rng(0).standard_normal((H, W))
    stack = np.stack([gaussian_filter(detail, s) for s in (3, 1, 0.6, 2)]).astype(np.uint16)
    stack[3] *= 8  # brighter is not sharper
    tifffile.imwrite(tmp_path / "f.tif", stack, photometric="minisblack")
    check(tmp_path / "f.tif", stack[2], z="sharpest")


def test_one_plane_has_the_number_0_and_is_its_own_projection(tmp_path, raises_code):
    tifffile.imwrite(tmp_path / "f.tif", image())
    for z in ("99", "1"):
        with raises_code("fields.no_such_plane"):
            open_field(tmp_path / "f.tif", z=z)
    for z in ("0", " 00", "max", "sharpest", "", None):
        check(tmp_path / "f.tif", image(), z=z)
    with raises_code("fields.no_such_plane"):
        open_field(tmp_path / "f.tif", z="top")


@pytest.mark.parametrize("how", ["subifds", "pages"])
@pytest.mark.parametrize("ome", [False, True])
def test_a_pyramid_is_read_at_full_resolution(tmp_path, how, ome):
    full = image(np.uint8, 256, 320)
    path = tmp_path / ("f.ome.tif" if ome else "f.tif")
    options = {"tile": (64, 64), "photometric": "minisblack"}
    with tifffile.TiffWriter(path, ome=ome and how == "subifds") as out:
        if how == "subifds":
            out.write(full, subifds=2, **options)
        else:
            out.write(full, metadata=None, **options)
        for step in (2, 4):
            out.write(full[::step, ::step], subfiletype=1, metadata=None, **options)
    info = describe_field(path)
    assert (info.height, info.width, info.planes, len(info.scenes)) == (256, 320, 1, 1)
    with open_field(path) as field:
        np.testing.assert_array_equal(field.read(100, 200, 70, 80), full[100:170, 200:280])


def test_regions_must_lie_within(tmp_path):
    tifffile.imwrite(tmp_path / "f.tif", image())
    with open_field(tmp_path / "f.tif") as field:
        for region in [(-1, 0, 5, 5), (0, 0, H + 1, 5), (0, W, 1, 1), (0, 0, 0, 5)]:
            with pytest.raises(ValueError, match="do not lie within"):
                field.read(*region)


# --- ImageJ, and pixel sizes


@pytest.mark.parametrize(
    ("unit", "per_unit", "expected"),
    [
        ("um", 4, 0.25),
        ("micron", 4, 0.25),
        ("\\u00B5m", 4, 0.25),
        ("nm", 0.004, 0.25),
        ("mm", 4000, 0.25),
        ("inch", 72, None),
        ("cm", 40000, 0.25),
        ("pixel", 1, None),
    ],
)
def test_imagej_stacks_and_units(tmp_path, unit, per_unit, expected):
    stack = image(np.uint16, 3, 2, H, W)
    tifffile.imwrite(
        tmp_path / "f.tif", stack, imagej=True, resolution=(per_unit, per_unit), metadata={"axes": "ZCYX", "unit": unit}
    )
    info = describe_field(tmp_path / "f.tif")
    assert (info.planes, info.channels) == (3, ("0", "1"))
    assert info.pixel_um == (None if expected is None else pytest.approx(expected, rel=1e-3))
    check(tmp_path / "f.tif", stack[1, 1], z="1", channel="1")


def test_imagej_stack_behind_a_single_page(tmp_path, raises_code):
    """Stacks that ImageJ writes beyond 4 GB have one page; the other planes follow its pixels."""
    stack = image(np.uint16, 5, H, W)
    tifffile.imwrite(tmp_path / "f.tif", stack, imagej=True, metadata={"axes": "ZYX"}, contiguous=True)
    with tifffile.TiffFile(tmp_path / "f.tif") as tif:
        single = len(tif.series[0].pages) == 1 or len(tif.pages) == 1
    if not single:  # cut the chain of pages
        with tifffile.TiffFile(tmp_path / "f.tif", mode="r+") as tif:
            place = tif.pages[0].offset
            handle = tif.filehandle
            handle.seek(place)
            count = int.from_bytes(handle.read(2), "big" if tif.byteorder == ">" else "little")
            handle.seek(place + 2 + 12 * count)
            handle.write(b"\0\0\0\0")
    for z in (0, 4):
        check(tmp_path / "f.tif", stack[z], z=str(z))
    data = (tmp_path / "f.tif").read_bytes()
    (tmp_path / "f.tif").write_bytes(data[: len(data) - H * W * 2 - 100])
    with raises_code("fields.planes_missing"):
        open_field(tmp_path / "f.tif", z="0")


@pytest.mark.parametrize(
    ("unit", "per_unit", "expected"),
    [
        ("INCH", (72, 72), None),
        ("INCH", (2400, 2400), None),
        ("INCH", (101600, 101600), 0.25),
        ("CENTIMETER", (40000, 40000), 0.25),
        ("CENTIMETER", (28.3, 28.3), None),
        ("CENTIMETER", (40000, 20000), None),
        ("NONE", (4, 4), None),
    ],
)
def test_plain_resolution_tags(tmp_path, unit, per_unit, expected):
    tifffile.imwrite(tmp_path / "f.tif", image(), resolution=per_unit, resolutionunit=unit, metadata=None)
    found = describe_field(tmp_path / "f.tif").pixel_um
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("size", "unit", "expected"),
    [
        ((0.25, 0.25), "µm", 0.25),
        ((250, 250), "nm", 0.25),
        ((0.00025, 0.00025), "mm", 0.25),
        ((2500, 2500), "Å", 0.25),
        ((1, 1), "pixel", None),
        ((1, 1), "reference frame", None),
        ((0, 0), "µm", None),
        ((0.25, 0.5), "µm", None),
    ],
)
def test_ome_units(tmp_path, size, unit, expected):
    across, down = size
    metadata = {"axes": "YX", "PhysicalSizeX": across, "PhysicalSizeXUnit": unit}
    metadata |= {"PhysicalSizeY": down, "PhysicalSizeYUnit": unit}
    tifffile.imwrite(tmp_path / "f.ome.tif", image(), metadata=metadata)
    found = describe_field(tmp_path / "f.ome.tif").pixel_um
    assert found == (None if expected is None else pytest.approx(expected))


# --- several files


def test_an_ome_tiff_of_several_files(tmp_path, raises_code):
    stack = image(np.uint16, 2, H, W)
    names = ["a.ome.tif", "b.ome.tif"]
    data = "".join(
        f'<TiffData FirstC="{c}" FirstZ="0" FirstT="0" IFD="0" PlaneCount="1">'
        f'<UUID FileName="{name}">urn:uuid:{c}</UUID></TiffData>'
        for c, name in enumerate(names)
    )
    for c, name in enumerate(names):
        xml = ome_xml(SizeC=2, uuid=f"urn:uuid:{c}", data=data, channels=2)
        tifffile.imwrite(tmp_path / name, stack[c], description=xml, metadata=None, tile=(32, 32), compression="zlib")
    check(tmp_path / "a.ome.tif", stack[1], channel="1")
    (tmp_path / "b.ome.tif").unlink()
    with raises_code("images.companion_missing"):
        describe_field(tmp_path / "a.ome.tif")


# --- damage


def ome_xml(*, uuid: str = "urn:uuid:0", data: str = "<TiffData/>", channels: int = 1, **sizes: object) -> str:
    values = {"SizeX": W, "SizeY": H, "SizeC": 1, "SizeZ": 1, "SizeT": 1, "Type": "uint16"} | sizes
    attributes = " ".join(f'{key}="{value}"' for key, value in values.items())
    channel = "".join(f'<Channel ID="Channel:0:{c}" SamplesPerPixel="1"/>' for c in range(channels))
    return (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        f'UUID="{uuid}"><Image ID="Image:0" Name="x"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" {attributes}>'
        f"{channel}{data}</Pixels></Image></OME>"
    )


@pytest.mark.parametrize(
    ("xml", "code", "words"),
    [
        (ome_xml(SizeX=W + 1), "fields.mislabelled", ("100 x 75", "99 x 75")),
        (ome_xml(SizeZ=5), "fields.planes_missing", ("5 planes", "1")),
        (ome_xml(Type="uint8"), "fields.mislabelled", ("uint8", "uint16")),
        (ome_xml(data=""), "images.ome_xml_invalid", ()),
        (ome_xml()[:-20], "images.ome_xml_invalid", ()),
        (ome_xml().replace("</Pixels>", ""), "images.ome_xml_invalid", ()),
        (
            '<OME><BinaryOnly MetadataFile="set.companion.ome" UUID="urn:uuid:1"/></OME>',
            "images.companion_missing",
            ("set.companion.ome",),
        ),
    ],
)
def test_ome_xml_that_contradicts_the_pages(tmp_path, raises_code, xml, code, words):
    tifffile.imwrite(tmp_path / "f.ome.tif", image(), description=xml, metadata=None)
    with raises_code(code) as caught:
        describe_field(tmp_path / "f.ome.tif")
    assert all(word in str(caught.value) for word in ("f.ome.tif", *words))


def test_ome_xml_that_names_fewer_planes_than_there_are_pages(tmp_path, raises_code):
    with tifffile.TiffWriter(tmp_path / "f.ome.tif") as out:
        for number in range(3):
            xml = ome_xml() if number == 0 else None
            out.write(image(seed=number), description=xml, metadata=None, contiguous=False)
    with raises_code("fields.mislabelled"):
        describe_field(tmp_path / "f.ome.tif")
    tifffile.imwrite(tmp_path / "f.ome.tif", image(), description=ome_xml(), metadata=None)
    check(tmp_path / "f.ome.tif", image())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ome", [False, True])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_truncated_files(tmp_path, layout, ome, share):
    path = tmp_path / ("f.ome.tif" if ome else "f.tif")
    with tifffile.TiffWriter(path, ome=ome) as out:
        if ome:
            out.write(image(np.uint16, 4, H, W), photometric="minisblack", metadata={"axes": "ZYX"}, **LAYOUTS[layout])
        else:
            out.write(image(), photometric="minisblack", **LAYOUTS[layout])
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError) as caught, open_field(path, z="3") as field:
        field.read(0, 0, H, W)
    assert path.name in str(caught.value)


def test_garbled_tiles_are_an_error_of_the_region(tmp_path, raises_code):
    path = tmp_path / "f.tif"
    tifffile.imwrite(path, image(), tile=(32, 32), compression="zlib")
    with tifffile.TiffFile(path) as tif:
        place = tif.pages[0].dataoffsets[-1]
    data = bytearray(path.read_bytes())
    data[place : place + 200] = b"\xff" * 200
    path.write_bytes(data)
    with open_field(path) as field:
        field.read(0, 0, 32, 32)
        with raises_code("images.damaged"):
            field.read(H - 8, W - 8, 8, 8)


def test_values_that_are_not_finite_are_refused(tmp_path, raises_code):
    pixels = image(np.float32)
    pixels[40, 50] = np.nan
    tifffile.imwrite(tmp_path / "f.tif", pixels)
    with open_field(tmp_path / "f.tif") as field:
        field.read(0, 0, 40, W)
        with raises_code("images.not_finite"):
            field.read(30, 40, 20, 20)


def claim(path: Path, height: int, width: int, compression: int = 8) -> None:
    """Write a TIFF of a few bytes that claims height x width px in one strip."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, compression), (262, 3, 1)]
    tags += [(273, 4, 200), (277, 3, 1), (278, 4, height), (279, 4, 50)]
    ifd = len(tags).to_bytes(2, "little")
    for code, kind, value in tags:
        ifd += code.to_bytes(2, "little") + kind.to_bytes(2, "little") + (1).to_bytes(4, "little")
        ifd += value.to_bytes(4, "little")
    path.write_bytes((b"II*\0" + (8).to_bytes(4, "little") + ifd).ljust(250, b"\0"))


@pytest.mark.parametrize("compression", [1, 8])
def test_a_claim_of_more_than_a_billion_pixels_without_tiles(tmp_path, compression, raises_code):
    claim(tmp_path / "f.tif", 40_000, 40_000, compression)
    with raises_code("fields.damaged" if compression == 1 else "fields.not_tiled") as caught:
        describe_field(tmp_path / "f.tif")
    assert "40000 x 40000 px" in str(caught.value)


def test_a_large_png_is_refused(tmp_path, raises_code):
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for edge in (12_000, 40_000):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", edge, edge, 8, 0, 0, 0, 0))
        (tmp_path / "f.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
        with raises_code("fields.not_tiled" if edge == 12_000 else "images.too_large"):
            describe_field(tmp_path / "f.png")


def test_files_that_are_not_fields_are_named(tmp_path, raises_code):
    (tmp_path / "f.tif").write_bytes(b"")
    (tmp_path / "g.tif").write_bytes(b"not an image at all")
    (tmp_path / "h.tif").write_bytes(b"II*\0" + b"\xff" * 40)
    tifffile.imwrite(tmp_path / "i.tif", image(np.uint32))
    tifffile.imwrite(tmp_path / "j.tif", image(np.uint8, 4, 50))
    codes = {
        "f.tif": "images.empty",
        "g.tif": "images.format_unknown",
        "h.tif": "images.pages_damaged",
        "i.tif": "images.depth_unsupported",
        "j.tif": "fields.scene_unusable",
        "absent.tif": "images.not_found",
        "absent.czi": "fields.missing",
    }
    for name, code in codes.items():
        with raises_code(code) as caught:
            describe_field(tmp_path / name)
        assert name in str(caught.value)


def test_files_can_be_removed_once_closed(tmp_path):
    tifffile.imwrite(tmp_path / "f.tif", image(), tile=(32, 32))
    with open_field(tmp_path / "f.tif") as field:
        field.read(0, 0, 5, 5)
    assert field._source.files.tif.filehandle.closed


# --- memory

MEASURE = """
import json, resource, sys
from urnet.fields.io.read import open_field
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
total = 0
with open_field(sys.argv[1]) as field:
    step = 1024
    for top in range(0, field.info.height, step):
        for left in range(0, field.info.width, step):
            height, width = min(step, field.info.height - top), min(step, field.info.width - left)
            total += int(field.read(top, left, height, width).sum(dtype="int64"))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"before": before / 1024, "peak": peak / 1024, "total": total}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="resource is not there")
@pytest.mark.parametrize(
    ("layout", "compression"), [({"tile": (512, 512)}, "lzw"), ({"rowsperstrip": 64}, "lzw"), ({}, None)]
)
def test_memory_stays_small(tmp_path, layout, compression):
    """Reading regions needs memory for cached tiles or strips only, not for the whole field; here 128 MB."""
    edge = 8000
    band = image(np.uint16, 64, edge) // 16

    def pieces():
        piece = np.resize(band, (512, 512))
        for _ in range(16 * 16):
            yield piece

    options = {"shape": (edge, edge), "dtype": np.uint16, "compression": compression, "photometric": "minisblack"}
    tifffile.imwrite(
        tmp_path / "f.tif", pieces() if "tile" in layout else np.resize(band, (edge, edge)), **options, **layout
    )
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "f.tif")], capture_output=True, text=True, check=True
    )
    result = json.loads(run.stdout)
    assert result["total"] > 0
    assert result["peak"] - result["before"] < 100, result
