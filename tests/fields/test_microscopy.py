"""CZI, ND2 and LIF: files of each format made here, among them such as a common layer reads wrongly. Without the extra,
the error says what to install.
"""

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from urnet.fields.io.read import describe_field, open_field

H, W = 60, 80
PACKAGES = {"czi": "pylibCZIrw", "nd2": "nd2", "LIF": "liffile"}


def stack(*lead: int, seed: int = 0, dtype: type = np.uint16) -> np.ndarray:
    top = 250 if dtype == np.uint8 else 4000
    return np.random.default_rng(seed).integers(0, top, (*lead, H, W)).astype(dtype)


def red_left(dtype: type = np.uint8) -> np.ndarray:
    """(H, W, 3): the left half is red, the right one of three different values."""
    pixels = np.empty((H, W, 3), dtype)
    pixels[:, : W // 2] = (200, 30, 20)
    pixels[:, W // 2 :] = (90, 150, 220)
    return pixels if dtype == np.uint8 else pixels * 250


def read_all(path: Path, **choice: str) -> np.ndarray:
    with open_field(path, **choice) as field:
        return field.read(0, 0, field.info.height, field.info.width)


@pytest.mark.parametrize("suffix", PACKAGES)
def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch, raises_code, suffix):
    monkeypatch.setitem(sys.modules, PACKAGES[suffix], None)
    monkeypatch.setitem(sys.modules, f"{PACKAGES[suffix]}.czi", None)
    monkeypatch.delitem(sys.modules, f"urnet.fields.io.{suffix.lower()}", raising=False)
    (tmp_path / f"f.{suffix}").write_bytes(b"whatever")
    with raises_code("fields.reader_missing") as caught:
        describe_field(tmp_path / f"f.{suffix}")
    for word in (f"f.{suffix}", suffix.upper(), PACKAGES[suffix], "urnet[microscopy]", "OME-TIFF"):
        assert word in str(caught.value)


def test_importing_the_reader_does_not_import_the_packages():
    code = (
        "import sys, urnet.fields.io.read; sys.exit(bool({'pylibCZIrw', 'nd2', 'liffile', 'dask'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# CZI


def write_czi(
    path: Path,
    planes: list[dict],
    um: float | None = 0.25,
    names: tuple[str, ...] = (),
    compression: str = "uncompressed:",
) -> Path:
    """Write planes, each with `data` and other arguments of `CziWriter.write`."""
    czi = pytest.importorskip("pylibCZIrw.czi")
    with czi.create_czi(str(path), compression_options=compression) as out:
        for one in planes:
            data = one["data"]
            out.write(**one | {"data": data[..., None] if data.ndim == 2 else data})
        if um is not None:
            out.write_metadata("f", channel_names=dict(enumerate(names)), scale_x=um * 1e-6, scale_y=um * 1e-6)
    return path


def test_czi(tmp_path, raises_code):
    planes = stack(2, 3)
    parts = [{"data": planes[c, z], "plane": {"C": c, "Z": z, "T": 0}} for c in range(2) for z in range(3)]
    path = write_czi(tmp_path / "f.czi", parts, names=("BF", "DAPI"))
    info = describe_field(path)
    assert (info.height, info.width, info.planes, info.channels, info.dtype) == (H, W, 3, ("BF", "DAPI"), "uint16")
    assert info.pixel_um == pytest.approx(0.25)
    assert not info.colour
    with open_field(path, channel="dapi", z="2") as field:
        np.testing.assert_array_equal(field.read(10, 20, 30, 40), planes[1, 2, 10:40, 20:60])
    np.testing.assert_array_equal(read_all(path, channel="0", z="max"), planes[0].max(axis=0))
    with raises_code("fields.choice_needed"):
        open_field(path, z="0")


CHANNELS = {
    "grey8": stack(dtype=np.uint8),
    "grey16": stack(seed=1) * 16,
    "float": stack(seed=2).astype(np.float32) / 7 - 200,
    "colour8": red_left(),
    "colour16": red_left(np.uint16),
}


@pytest.mark.parametrize("pair", [(one, two) for one in CHANNELS for two in CHANNELS], ids="-".join)
def test_every_channel_of_a_czi_keeps_its_values_and_its_colour(tmp_path, pair):
    given = [CHANNELS[name] for name in pair]
    path = write_czi(tmp_path / "f.czi", [{"data": _bgr(one), "plane": {"C": c}} for c, one in enumerate(given)])
    for number, pixels in enumerate(given):
        with open_field(path, channel=str(number)) as field:
            assert (field.info.dtype, field.info.colour) == (pixels.dtype.name, pixels.ndim == 3)
        got = read_all(path, channel=str(number))
        assert got.dtype == pixels.dtype
        np.testing.assert_array_equal(got, pixels)
    widest = max((one.dtype for one in given), key=lambda dtype: dtype.itemsize).name
    assert describe_field(path).dtype == widest


@pytest.mark.parametrize(
    "compression",
    ["zstd0:ExplicitLevel=2", "zstd1:ExplicitLevel=2", "zstd1:ExplicitLevel=2;PreProcess=HiLoByteUnpack"],
)
@pytest.mark.parametrize("kind", CHANNELS)
def test_a_compressed_czi_has_the_same_values_or_is_refused(tmp_path, raises_code, kind, compression):
    pixels = CHANNELS[kind]
    path = write_czi(tmp_path / "f.czi", [{"data": _bgr(pixels)}], compression=compression)
    if (kind, compression[:5]) == ("colour16", "zstd1"):  # which ZEISS's library takes apart wrongly
        with raises_code("fields.compression_unsupported"):
            describe_field(path)
    else:
        np.testing.assert_array_equal(read_all(path), pixels)


def _bgr(pixels: np.ndarray) -> np.ndarray:
    """Reorder colours to those of CZI."""
    return np.ascontiguousarray(pixels[..., ::-1]) if pixels.ndim == 3 else pixels


def test_times_and_scenes_of_a_czi(tmp_path):
    first, second = stack(2), stack(2, seed=1)[:, :40, :50]
    parts = [
        {"data": data[t], "plane": {"T": t}, "scene": s, "location": place}
        for s, (data, place) in enumerate([(first, (0, 0)), (second, (500, 300))])
        for t in range(2)
    ]
    path = write_czi(tmp_path / "f.czi", parts)
    assert describe_field(path).scenes == ("0 t0", "0 t1", "1 t0", "1 t1")
    for scene, pixels in zip(("0 t0", "0 t1", "1 t0", "1 t1"), (*first, *second), strict=True):
        info = describe_field(path, scene)
        assert (info.height, info.width) == pixels.shape
        np.testing.assert_array_equal(read_all(path, scene=scene), pixels)


@pytest.mark.parametrize("first", [{"C": 1}, {"T": 3}, {"Z": 2}, {"C": 2, "T": 1, "Z": 4}])
def test_planes_of_a_czi_need_not_begin_at_zero(tmp_path, first):
    """A file that was cut out of a larger one has such planes."""
    for dtype in (np.uint8, np.uint16):
        path = write_czi(
            tmp_path / f"{np.dtype(dtype)}.czi", [{"data": stack(dtype=dtype), "plane": first, "scene": 2}]
        )
        np.testing.assert_array_equal(read_all(path), stack(dtype=dtype))


def test_a_mosaic_of_a_czi_is_one_field(tmp_path):
    whole = stack()
    parts = [{"data": whole[y : y + 30, x : x + 40], "location": (x - 1000, y + 50)} for y in (0, 30) for x in (0, 40)]
    np.testing.assert_array_equal(read_all(write_czi(tmp_path / "f.czi", parts)), whole)


def test_a_czi_that_does_not_know_its_pixel_size(tmp_path):
    for um in (None, 0.0):
        info = describe_field(write_czi(tmp_path / f"{um}.czi", [{"data": stack()}], um))
        assert info.pixel_um is None
        assert (info.height, info.width, info.channels) == (H, W, ("Channel:0",))


def test_a_missing_plane_of_a_czi_is_an_error(tmp_path, raises_code):
    parts = [{"data": stack(), "plane": {"C": c, "Z": z}} for c, z in ((0, 0), (1, 0), (1, 1))]
    path = write_czi(tmp_path / "f.czi", parts)
    assert read_all(path, channel="1", z="1").any()
    with open_field(path, channel="0", z="1") as field, raises_code("fields.planes_missing"):
        field.read(0, 0, 10, 10)


@pytest.mark.parametrize("axis", "RIHVB")
def test_an_extra_dimension_of_a_czi_is_refused(tmp_path, raises_code, axis):
    path = write_czi(tmp_path / "f.czi", [{"data": stack(seed=t), "plane": {"T": t}} for t in range(2)])
    data = path.read_bytes()
    for t in range(2):  # another letter where each part says at which time it was taken
        place = struct.pack("<ii", t, 1)
        data = data.replace(b"T\0\0\0" + place, axis.encode() + b"\0\0\0" + place)
    path.write_bytes(data)
    with raises_code("fields.dimension_unsupported") as caught:
        describe_field(path)
    assert "2 values of" in str(caught.value)


def test_the_czi_cases(cases):
    pytest.importorskip("pylibCZIrw")
    colour = np.asarray(Image.open(cases / "czi-colour" / "red_left.png").convert("RGB"))
    np.testing.assert_array_equal(read_all(cases / "czi-colour" / "red_left.czi"), colour)
    depths = cases / "czi-depths"
    expected = np.load(depths / "gray8_gray16.npz")
    for channel, key in enumerate(("a8", "a16")):
        got = read_all(depths / "gray8_gray16.czi", channel=str(channel))
        assert got.dtype == expected[key].dtype
        np.testing.assert_array_equal(got, expected[key].squeeze())
        np.testing.assert_array_equal(read_all(depths / "gray8_gray16.czi", channel=("bf", "dapi")[channel]), got)
    for channel, kind in enumerate([("uint8", True), ("uint16", False)]):
        with open_field(depths / "bgr24_gray16.czi", channel=str(channel)) as field:
            assert (field.info.dtype, field.info.colour) == kind
    got = read_all(depths / "bgr24_gray16.czi", channel="1")
    np.testing.assert_array_equal(got, expected["a16"].squeeze())
    np.testing.assert_array_equal(read_all(depths / "float.czi"), np.load(depths / "float.npz")["f"].squeeze())
    scenes = np.load(depths / "scenes.npz")
    for scene, key in enumerate(("s0", "s1")):
        np.testing.assert_array_equal(read_all(depths / "scenes.czi", scene=str(scene)), scenes[key].squeeze())


# LIF


def write_lif(path: Path, images: dict[str, dict]) -> Path:
    """A minimal LIF file: a header in XML, then a block of memory for each image.

    Args:
        path: the file.
        images: by their names: `pixels`, the bytes of the block; `channels`, (bits, step in bytes, tag, name); and
            `dimensions`, (number, values, step in bytes, length in m).
    """

    def text(value: str) -> bytes:
        return value.encode("utf-16-le")

    elements, blocks = "", b""
    for number, (name, image) in enumerate(images.items()):
        channels = "".join(
            f'<ChannelDescription DataType="{int(bits == 32)}" ChannelTag="{tag}" Resolution="{bits}" Min="0" Max="1" '
            f'NameOfMeasuredQuantity="" Unit="" LUTName="{lut}" IsLUTInverted="0" BytesInc="{step}" BitInc="0"/>'
            for bits, step, tag, lut in image["channels"]
        )
        dimensions = "".join(
            f'<DimensionDescription DimID="{axis}" NumberOfElements="{n}" Origin="{5e-7 if axis in (5, 9) else 0}" '
            f'Length="{length:.9e}" Unit="m" BytesInc="{step}" BitInc="0"/>'
            for axis, n, step, length in image["dimensions"]
        )
        pixels = image["pixels"]
        elements += (
            f'<Element Name="{name}" Visibility="1" CopyOption="1"><Data><Image TextDescription=""><ImageDescription>'
            f"<Channels>{channels}</Channels><Dimensions>{dimensions}</Dimensions></ImageDescription></Image></Data>"
            f'<Memory Size="{len(pixels)}" MemoryBlockID="MemBlock_{number}"/><Children/></Element>'
        )
        label = text(f"MemBlock_{number}")
        head = b"\x2a" + struct.pack("<Q", len(pixels)) + b"\x2a" + struct.pack("<I", len(label) // 2) + label
        blocks += struct.pack("<II", 0x70, len(head)) + head + pixels
    xml = text(
        '<LMSDataContainerHeader Version="2"><Element Name="f" Visibility="1" CopyOption="1"><Data><Experiment/></Data>'
        f'<Memory Size="0" MemoryBlockID="MemBlock_none"/><Children>{elements}</Children></Element>'
        "</LMSDataContainerHeader>"
    )
    head = b"\x2a" + struct.pack("<I", len(xml) // 2) + xml
    path.write_bytes(struct.pack("<II", 0x70, len(head)) + head + blocks)
    return path


def lif_planes(planes: np.ndarray, um: float = 0.5, axis: int | None = None, names: tuple[str, ...] = ()) -> dict:
    """Grey planes (n, H, W): channels, or values of a dimension of one channel."""
    n, (rows, columns) = len(planes), planes.shape[1:]
    bits, size = 8 * planes.dtype.itemsize, planes.dtype.itemsize
    plane = rows * columns * size
    dimensions = [(1, columns, size, (columns - 1) * um * 1e-6), (2, rows, columns * size, (rows - 1) * um * 1e-6)]
    if axis is not None:
        dimensions.append((axis, n, plane, (n - 1) * 1e-8))
    count = n if axis is None else 1
    return {
        "pixels": planes.tobytes(),
        "channels": [(bits, c * plane, 0, names[c] if names else "Gray") for c in range(count)],
        "dimensions": dimensions,
    }


def lif_mixed(first: np.ndarray, second: np.ndarray) -> dict:
    """Two channels of different depth one after the other; the steps of rows and columns are the first one's."""
    image = lif_planes(np.stack([first]))
    bits = 8 * second.dtype.itemsize
    return image | {
        "pixels": first.tobytes() + second.tobytes(),
        "channels": [*image["channels"], (bits, first.nbytes, 0, "DAPI")],
    }


def test_lif(tmp_path):
    pytest.importorskip("liffile")
    images = {"first": stack(2), "second": stack(2, seed=1)}
    write_lif(tmp_path / "f.lif", {name: lif_planes(pixels) for name, pixels in images.items()})
    info = describe_field(tmp_path / "f.lif")
    assert (info.height, info.width, info.planes, len(info.channels)) == (H, W, 1, 2)
    assert info.scenes == ("first", "second")
    assert info.pixel_um == pytest.approx(0.5, rel=0.02)
    for index, pixels in enumerate(images.values()):
        with open_field(tmp_path / "f.lif", channel="1", scene=str(index)) as field:
            np.testing.assert_array_equal(field.read(10, 20, 30, 40), pixels[1, 10:40, 20:60])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 1, 3)])
def test_colours_of_a_lif_are_identified_by_their_tags(tmp_path, order, dtype):
    pytest.importorskip("liffile")
    colour = red_left(dtype)
    stored = colour[..., [tag - 1 for tag in order]]
    size = np.dtype(dtype).itemsize
    image = {
        "pixels": stored.tobytes(),
        "channels": [(8 * size, k * size, tag, "") for k, tag in enumerate(order)],
        "dimensions": [(1, W, 3 * size, 1e-5), (2, H, 3 * size * W, 1e-5)],
    }
    path = write_lif(tmp_path / "f.lif", {"f": image})
    assert describe_field(path).colour
    np.testing.assert_array_equal(read_all(path), colour)


def test_lif_channels_with_names_of_colours_stay_separate(tmp_path):
    pytest.importorskip("liffile")
    planes = stack(3)
    image = lif_planes(planes, names=("Red", "Green", "Blue"))
    image["channels"] = [(16, k * H * W * 2, k + 1, name) for k, name in enumerate(("Red", "Green", "Blue"))]
    path = write_lif(tmp_path / "f.lif", {"f": image})
    assert not describe_field(path).colour
    np.testing.assert_array_equal(read_all(path, channel="green"), planes[1])


@pytest.mark.parametrize("axis", [5, 9])
def test_the_wavelengths_of_a_lif_are_channels(tmp_path, axis, raises_code):
    pytest.importorskip("liffile")
    planes = stack(4)
    path = write_lif(tmp_path / "f.lif", {"f": lif_planes(planes, axis=axis, names=("PMT",))})
    assert describe_field(path).channels == ("PMT 500 nm", "PMT 510 nm", "PMT 520 nm", "PMT 530 nm")
    for number, pixels in enumerate(planes):
        np.testing.assert_array_equal(read_all(path, channel=str(number)), pixels)
    with raises_code("fields.choice_needed"):
        open_field(path)


def test_times_tiles_and_planes_of_a_lif(tmp_path):
    pytest.importorskip("liffile")
    planes = stack(3)
    paths = {axis: write_lif(tmp_path / f"{axis}.lif", {"f": lif_planes(planes, axis=axis)}) for axis in (3, 4, 10)}
    assert describe_field(paths[3]).planes == 3
    assert describe_field(paths[4]).scenes == ("t0", "t1", "t2")
    assert describe_field(paths[10]).scenes == ("tile 0", "tile 1", "tile 2")
    for number, pixels in enumerate(planes):
        np.testing.assert_array_equal(read_all(paths[3], z=str(number)), pixels)
        for axis in (4, 10):
            np.testing.assert_array_equal(read_all(paths[axis], scene=str(number)), pixels)


def test_an_unreadable_image_of_a_lif_does_not_affect_the_others(tmp_path, raises_code):
    pytest.importorskip("liffile")
    good = stack(1)
    turned = lif_planes(stack(4), axis=6)
    line = lif_planes(good)
    line["dimensions"] = line["dimensions"][:1]
    path = write_lif(tmp_path / "f.lif", {"turned": turned, "line": line, "good": lif_planes(good)})
    assert describe_field(path).scenes == ("turned", "line", "good")
    assert describe_field(path).height == H
    np.testing.assert_array_equal(read_all(path, scene="good"), good[0])
    for scene, words in (("turned", "4 values of rotation"), ("line", "line scan")):
        with raises_code("fields.scene_unusable") as caught:
            open_field(path, scene=scene)
        assert words in str(caught.value)


# ND2


def write_nd2(path: Path, frames: list[np.ndarray], loops: list[dict] = (), channels: int = 1, um: float = 0.2) -> Path:
    """A minimal ND2 file: frames (H, W, components), one after the other in the order of the loops."""
    height, width, components = frames[0].shape
    count = int(np.prod([one["count"] for one in loops])) if loops else 1

    def element(name: str, kind: str, value: object) -> str:
        return f'<{name} runtype="{kind}" value="{value}"/>'

    def document(body: str) -> bytes:
        return f'<?xml version="1.0"?><variant version="1.0"><no_name runtype="X">{body}</no_name></variant>'.encode()

    size = frames[0].dtype.itemsize
    attributes = {
        "uiWidth": width, "uiHeight": height, "uiWidthBytes": width * components * size, "uiComp": components,
        "uiBpcInMemory": 8 * size, "uiBpcSignificant": 8 * size, "uiSequenceCount": len(frames), "eCompression": 2,
    }  # fmt: skip
    probe = f'<pFluorescentProbe runtype="X">{element("m_sName", "CLxStringW", "none")}</pFluorescentProbe>'
    planes = "".join(
        f'<a{c} runtype="X">{element("sDescription", "CLxStringW", ("TD", "Hoechst", "GFP")[c])}{probe}'
        f"{element('uiCompCount', 'lx_uint32', components // channels)}</a{c}>"
        for c in range(channels)
    )
    metadata = (
        element("dCalibration", "double", um) + element("bCalibrated", "bool", "true" if um > 0 else "false")
        + f'<sPicturePlanes runtype="X">{element("uiCount", "lx_uint32", channels)}'
        f'<sPlaneNew runtype="X">{planes}</sPlaneNew></sPicturePlanes>'
    )  # fmt: skip
    experiment = ""
    for one in reversed(loops):
        inner = f'<ppNextLevelEx runtype="X"><no_name runtype="X">{experiment}</no_name></ppNextLevelEx>'
        point = f'<no_name runtype="X">{element("dPosX", "double", 0.0)}</no_name>'
        points = point * one["count"]
        parameters = "".join(
            [
                element("uiCount", "lx_uint32", one["count"]),
                *(element(name, "double", 1.0) for name in ("dStart", "dPeriod", "dDuration", "dZStep")),
                f'<Points runtype="X">{points}</Points>' if one["type"] == 2 else "",
            ]
        )
        experiment = (
            element("eType", "lx_uint32", one["type"])
            + f'<uLoopPars runtype="X">{parameters}</uLoopPars>'
            + (inner if experiment else "")
        )
    chunks = {
        "ImageAttributesLV!": document("".join(element(k, "lx_uint32", v) for k, v in attributes.items())),
        "ImageMetadataSeqLV|0!": document(metadata),
    }
    if experiment:
        chunks["ImageMetadataLV!"] = document(experiment)
    assert len(frames) <= count
    chunks |= {f"ImageDataSeq|{i}!": bytes(8) + frame.tobytes() for i, frame in enumerate(frames)}
    data = struct.pack("<IIQ", 0x0ABECEDA, 32, 64) + b"ND2 FILE SIGNATURE CHUNK NAME01!" + b"Ver3.0".ljust(64, b"\0")
    places = b""
    for name, content in chunks.items():
        places += name.encode() + struct.pack("<QQ", len(data), len(content))
        data += struct.pack("<IIQ", 0x0ABECEDA, 4072, len(content)) + name.encode().ljust(4072, b"\0") + content
    at = len(data)
    places += b"ND2 CHUNK MAP SIGNATURE 0000001!" + struct.pack("<Q", at)
    data += struct.pack("<IIQ", 0x0ABECEDA, 32, len(places)) + b"ND2 FILEMAP SIGNATURE NAME 0001!" + places
    path.write_bytes(data)
    return path


TIME, POSITION, DEPTH, CUSTOM = 1, 2, 4, 7


def test_nd2(tmp_path):
    pytest.importorskip("nd2")
    planes = stack(2, 2, 3, 2)  # position, time, z, channel
    loops = [{"type": kind, "count": n} for kind, n in ((POSITION, 2), (TIME, 2), (DEPTH, 3))]
    frames = [np.moveaxis(planes[p, t, z], 0, -1) for p in range(2) for t in range(2) for z in range(3)]
    path = write_nd2(tmp_path / "f.nd2", frames, loops, channels=2)
    info = describe_field(path)
    assert info.scenes == ("XYPos:0 t0", "XYPos:0 t1", "XYPos:1 t0", "XYPos:1 t1")
    assert (info.channels, info.planes, info.dtype) == (("TD", "Hoechst"), 3, "uint16")
    assert info.pixel_um == pytest.approx(0.2)
    with open_field(path, channel="hoechst", z="1", scene="XYPos:1 t1") as field:
        np.testing.assert_array_equal(field.read(10, 20, 30, 40), planes[1, 1, 1, 1, 10:40, 20:60])
        np.testing.assert_array_equal(field.read(0, 0, H, W), planes[1, 1, 1, 1])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_nd2_in_colour_is_stored_blue_first(tmp_path, dtype):
    pytest.importorskip("nd2")
    colour = red_left(dtype)
    path = write_nd2(tmp_path / "f.nd2", [colour[..., ::-1]])
    assert describe_field(path).colour
    np.testing.assert_array_equal(read_all(path), colour)


def test_missing_planes_and_extra_dimensions_of_an_nd2_are_refused(tmp_path, raises_code):
    pytest.importorskip("nd2")
    frames = [stack(seed=k)[..., None] for k in range(3)]
    stopped = write_nd2(tmp_path / "stopped.nd2", frames[:2], [{"type": DEPTH, "count": 3}])
    np.testing.assert_array_equal(read_all(stopped, z="1"), frames[1][..., 0])
    with open_field(stopped, z="2") as field, raises_code("fields.planes_missing"):
        field.read(0, 0, 8, 8)
    custom = write_nd2(tmp_path / "custom.nd2", frames, [{"type": CUSTOM, "count": 3}])
    with raises_code("fields.dimension_unsupported"):
        describe_field(custom)
    assert describe_field(write_nd2(tmp_path / "uncalibrated.nd2", frames[:1], um=-1.0)).pixel_um is None


# All


@pytest.fixture
def one_of_each(tmp_path):
    for package in ("pylibCZIrw", "nd2", "liffile"):
        pytest.importorskip(package)
    return {
        "czi": write_czi(tmp_path / "f.czi", [{"data": stack()}]),
        "lif": write_lif(tmp_path / "f.lif", {"f": lif_planes(stack(1))}),
        "nd2": write_nd2(tmp_path / "f.nd2", [stack()[..., None]]),
    }


def test_large_planes_are_read_in_regions(one_of_each, monkeypatch):
    monkeypatch.setattr("urnet.fields.io.microscopy_source.MAX_WHOLE_PLANE_BYTES", 1000)
    for path in one_of_each.values():
        with open_field(path) as field:
            for top in (0, 30):
                np.testing.assert_array_equal(field.read(top, 20, 30, 40), stack()[top : top + 30, 20:60])


def test_regions_are_copies(one_of_each):
    for path in one_of_each.values():
        with open_field(path) as field:
            field.read(0, 0, H, W)[:] = 0
            np.testing.assert_array_equal(field.read(0, 0, H, W), stack())


def test_the_content_must_match_the_suffix(one_of_each, tmp_path, raises_code):
    Image.fromarray(red_left()).save(tmp_path / "p.png")
    others = {suffix: path.read_bytes() for suffix, path in one_of_each.items()}
    others["png"] = (tmp_path / "p.png").read_bytes()
    for suffix, path in one_of_each.items():
        for content in (bytes for kind, bytes in others.items() if kind != suffix):
            path.write_bytes(content)
            with raises_code("fields.not_as_named"):
                describe_field(path)
        path.write_bytes(b"")
        with raises_code("fields.truncated"):
            describe_field(path)


ATTACK = """
import sys
from pathlib import Path
import numpy as np
from urnet.errors import ImageError
from urnet.fields.io.read import open_field

source, at = Path(sys.argv[1]), Path(sys.argv[2])
whole, random = source.read_bytes(), np.random.default_rng(0)
errors = 0
for trial in range(int(sys.argv[3])):
    data = bytearray(whole)
    if trial % 2:
        del data[random.integers(1, len(data)) :]
    else:
        for place in random.integers(0, min(len(data), 3000), 4):
            data[place] = random.integers(0, 256)
    at.write_bytes(data)
    try:
        with open_field(at) as field:
            if field.info.height * field.info.width < 10**6:
                field.read(0, 0, field.info.height, field.info.width)
    except ImageError as error:
        assert at.name in str(error)
        errors += 1
print(errors)
"""


@pytest.mark.parametrize("suffix", ["czi", "lif", "nd2"])
def test_damaged_files_are_errors_that_name_them(one_of_each, tmp_path, suffix):
    command = [sys.executable, "-c", ATTACK, str(one_of_each[suffix]), str(tmp_path / f"damaged.{suffix}"), "60"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 30  # at the least those that are cut off
