"""Reading a TIFF of any bytes gives pixels or an `ImageError`, quickly."""

import struct
import time

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from urnet.errors import ImageError
from urnet.fields.io.read import describe_field, open_field
from urnet.images.montage import list_images, read_crop
from urnet.images.read import read_header, read_image, survey_pages

H, W = 24, 32
STACK = np.arange(3 * H * W, dtype=np.uint16).reshape(3, H, W)


def read_all(path):
    """Read a file in every way; return each result or the code of the error."""
    results, messages = [], []
    for read in (
        describe_field,
        lambda p: _region(p, channel="0", z="0", scene="0"),
        lambda p: _region(p, channel="1", z="max", scene="0"),
        read_header,
        read_image,
        survey_pages,
        lambda p: [read_crop(p.parent, str(one)).shape for one in list_images(p.parent, p.name, None)[:3]],
    ):
        started = time.process_time()
        try:
            results.append(read(path))
        except ImageError as error:
            messages.append(str(error))
            results.append(error.code)
        assert time.process_time() - started < 5
    assert all(str(path) in message for message in messages)
    return results


def _region(path, **choice):
    with open_field(path, **choice) as field:
        found = field.read(0, 0, 8, 8)
        assert found.shape[:2] == (8, 8)
        assert str(found.dtype) == field.info.dtype
        return found.shape


LAYOUTS = {
    "ome tiles": {"ome": True, "metadata": {"axes": "ZYX"}, "tile": (16, 16), "compression": "zlib"},
    "ome bigtiff": {"ome": True, "metadata": {"axes": "CYX"}, "bigtiff": True},
    "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "shaped": {"compression": "lzw", "rowsperstrip": 7},
}
CHANGE = st.tuples(
    st.floats(0, 1), st.one_of(st.binary(min_size=1, max_size=1), st.sampled_from([b"\xff" * 4, bytes(4)]))
)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(CHANGE, min_size=1, max_size=4), cut=st.one_of(st.none(), st.floats(0.01, 1)))
def test_damaged_files_give_pixels_or_one_error(tmp_path, layout, changes, cut):
    path = tmp_path / "f.tif"
    tifffile.imwrite(path, STACK, photometric="minisblack", **LAYOUTS[layout])
    data = bytearray(path.read_bytes())
    for share, content in changes:
        # Most of what can be wrong is in the first bytes and in the directories, at either end of these files.
        place = int(share**3 * (len(data) - len(content)))
        data[place : place + len(content)] = content
    path.write_bytes(data if cut is None else data[: max(8, int(cut * len(data)))])
    read_all(path)


def ome_xml(sizes: str, data: str, before: str = "") -> str:
    return (
        f'<?xml version="1.0"?>{before}<OME UUID="urn:uuid:0"><Image ID="Image:0"><Pixels DimensionOrder="XYZCT" '
        f'Type="uint16" SizeX="{W}" SizeY="{H}" {sizes}>{data}</Pixels></Image></OME>'
    )


LAUGHS = "".join(f'<!ENTITY l{k} "{f"&l{k - 1};" * 10 if k else "lol"}">' for k in range(12))
XMLS = {
    "billion laughs": (
        ome_xml('SizeC="1" SizeZ="1" SizeT="1"', "&l11;<TiffData/>", f"<!DOCTYPE OME [{LAUGHS}]>"),
        "images.ome_xml_invalid",
    ),
    "external entity": (
        ome_xml('SizeC="1"', "&x;<TiffData/>", '<!DOCTYPE OME [<!ENTITY x SYSTEM "file:///etc/hostname">]>'),
        "images.ome_xml_invalid",
    ),
    "more planes than atoms": (ome_xml('SizeC="999999999" SizeZ="999999999"', "<TiffData/>"), "fields.planes_missing"),
    "sizes that are no numbers": (ome_xml('SizeC="1e9"', "<TiffData/>"), "images.ome_xml_invalid"),
    "negative sizes": (ome_xml('SizeC="-1"', "<TiffData/>"), "images.ome_xml_invalid"),
    "no planes at all": (ome_xml('SizeZ="0"', "<TiffData/>"), "images.ome_xml_invalid"),
    "a count without end": (
        ome_xml('SizeZ="999999999999"', '<TiffData IFD="0" PlaneCount="999999999999"/>'),
        "fields.planes_missing",
    ),
    "a page that is not there": (ome_xml('SizeZ="3"', '<TiffData IFD="999" PlaneCount="3"/>'), "fields.planes_missing"),
    "the same over and over": (
        ome_xml('SizeZ="3"', '<TiffData IFD="0" PlaneCount="3"/>' * 50_000),
        "images.ome_xml_invalid",
    ),
    "ten thousand images of one page": (
        ome_xml('SizeZ="3"', "<TiffData/>").replace("</OME>", "")
        + f'<Image><Pixels SizeX="{W}" SizeY="{H}"><TiffData/></Pixels></Image>' * 10_000
        + "</OME>",
        "fields.page_twice",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", XMLS)
def test_hostile_metadata(tmp_path, kind, raises_code):
    xml, code = XMLS[kind]
    with tifffile.TiffWriter(tmp_path / "f.tif") as out:
        for number, page in enumerate(STACK):
            text = xml.encode() if number == 0 else None
            out.write(page, photometric="minisblack", metadata=None, description=text, contiguous=False)
    read_all(tmp_path / "f.tif")
    with raises_code(code):
        describe_field(tmp_path / "f.tif")


def page(tags: dict[int, tuple[int, int, int]], next_at: int = 0) -> bytes:
    """Build a directory from the type, count and value of each tag."""
    entries = [struct.pack("<HHII", code, *tags[code]) for code in sorted(tags)]
    return struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", next_at)


PLAIN = {256: (4, 1, W), 257: (4, 1, H), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 278: (4, 1, H)}
PLAIN |= {273: (4, 1, 8), 279: (4, 1, W * H)}
START = 8 + W * H

DIRECTORIES = {
    "strips beyond the end": page(PLAIN | {273: (4, 1, 2**32 - 1)}),
    "more bytes than there are": page(PLAIN | {279: (4, 1, 2**32 - 1)}),
    "no bytes": page(PLAIN | {279: (4, 1, 0)}),
    "fewer strips than rows need": page(PLAIN | {278: (4, 1, 1)}),
    "a strip of no rows": page(PLAIN | {278: (4, 1, 0)}),
    "no width": page(PLAIN | {256: (4, 1, 0)}),
    "no height": page({code: value for code, value in PLAIN.items() if code != 257}),
    "four thousand million rows": page(PLAIN | {257: (4, 1, 2**32 - 1)}),
    "sixty thousand values a pixel": page(PLAIN | {277: (3, 1, 65535)}),
    "a deep volume": page(PLAIN | {32997: (4, 1, 2**31)}),
    "tiles of no size": page(PLAIN | {322: (4, 1, 0), 323: (4, 1, 0), 324: (4, 1, 8), 325: (4, 1, 1)}),
    "tiles of all sizes": page(PLAIN | {322: (4, 1, 2**31), 323: (4, 1, 2**31), 324: (4, 1, 8), 325: (4, 1, 1)}),
    "too few tiles": page(PLAIN | {322: (4, 1, 16), 323: (4, 1, 16), 324: (4, 1, 8), 325: (4, 1, 256)}),
    "a list of strips without end": page(PLAIN | {273: (4, 2**32 - 1, 8), 279: (4, 2**32 - 1, 8)}),
    "a directory within itself": page(PLAIN | {330: (4, 1, START)}),
    "two directories within themselves": page(PLAIN | {330: (4, 2, 8)}),
    "no bits": page(PLAIN | {258: (3, 1, 0)}),
    "deflate of nothing": page(PLAIN | {259: (3, 1, 8)}),
    "an unknown compression": page(PLAIN | {259: (3, 1, 60000)}),
    "a description beyond the end": page(PLAIN | {270: (2, 100, 2**31)}),
    "itself as the next": page(PLAIN, START),
    "its own description": page(PLAIN | {270: (2, 60, START)}),
}


READABLE = (
    *("a directory within itself", "two directories within themselves", "its own description"),
    "fewer strips than rows need",  # all bytes are there in one piece
)


@pytest.mark.parametrize("kind", DIRECTORIES)
def test_hostile_directories(tmp_path, kind):
    path = tmp_path / "f.tif"
    path.write_bytes(struct.pack("<4sI", b"II*\0", START) + bytes(W * H) + DIRECTORIES[kind])
    results = read_all(path)
    if kind not in READABLE:
        assert isinstance(results[1], str), results


def test_a_thicket_of_directories_within_directories(tmp_path):
    """Each level has two links to the next, so a reader that follows all links never ends."""
    data = bytearray(struct.pack("<4sI", b"II*\0", START) + bytes(W * H))
    text = b'{"shape": [24, 32]}\0'
    for level in range(40):
        start = len(data)
        behind = start + 2 + 12 * 10 + 4
        follows = behind + 8 + len(text)
        tags = PLAIN | {270: (2, len(text), behind + 8), 330: (4, 2, behind) if level < 39 else (4, 1, 0)}
        data += page(tags) + struct.pack("<II", follows, follows) + text
    (tmp_path / "f.tif").write_bytes(data)
    read_all(tmp_path / "f.tif")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "shaped", "imagej", "ome planes", "ome scenes"])
def test_a_stack_of_four_thousand_pages_is_read_in_linear_time(tmp_path, kind):
    stack = np.arange(4000 * 256, dtype=np.uint16).reshape(4000, 16, 16)
    path = tmp_path / "f.tif"
    if kind == "plain":
        with tifffile.TiffWriter(path) as out:
            for one in stack:
                out.write(one, photometric="minisblack", metadata=None, contiguous=False)
    elif kind == "ome scenes":
        with tifffile.TiffWriter(path, ome=True) as out:
            for one in stack:
                out.write(one, photometric="minisblack", metadata={"axes": "YX"})
    else:
        options = {"imagej": {"imagej": True, "metadata": {"axes": "ZYX"}}, "shaped": {}}
        more = options.get(kind, {"ome": True, "metadata": {"axes": "ZYX"}})
        tifffile.imwrite(path, stack, photometric="minisblack", **more)
    started = time.process_time()
    scenes = kind == "ome scenes"
    with open_field(path, z=None if scenes else "max", scene="3999" if scenes else None) as field:
        found = field.read(0, 0, 16, 16)
    np.testing.assert_array_equal(found, stack[3999] if scenes else stack.max(axis=0))
    assert time.process_time() - started < 5
