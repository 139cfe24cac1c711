"""Addresses of tiles and pages, and the images that they name."""

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from urnet.errors import ImageError
from urnet.images.montage import Address, list_images, read_crop, resolve_address
from urnet.images.read import read_image

NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(
    lambda name: Address.parse(name) == Address(name)
)
SMALL = st.integers(0, 2000)


@settings(deadline=None)
@given(NAMES, st.one_of(st.none(), SMALL, st.tuples(SMALL, SMALL)))
def test_parsing_inverts_formatting(name, place):
    tile = isinstance(place, tuple)
    address = Address(name, row=place[0], column=place[1]) if tile else Address(name, page=place)
    assert Address.parse(str(address)) == address


def test_address_format():
    assert str(Address("g1/brightfield.tif", row=3, column=17)) == "g1/brightfield.tif#r03c17"
    assert str(Address("stack.tif", page=2)) == "stack.tif#p002"


@settings(deadline=None)
@given(st.text(min_size=1, max_size=30))
def test_any_text_is_an_address(text):
    assert text.startswith(Address.parse(text).file)
    assert Address.parse(text).file


@pytest.mark.parametrize("text", ["a.tif#r1", "a.tif#p", "a#b.tif", "#p1", "a.tif#p1x", "a.tif#r1c2\n"])
def test_similar_text_is_a_plain_path(text):
    assert Address.parse(text) == Address(text)


@pytest.fixture
def montage(tmp_path):
    """Montage of 3 rows and 4 columns of 10 px tiles, each with a different count."""
    tiles = np.arange(12, dtype=np.uint16).reshape(3, 4) * 100 + 500
    tifffile.imwrite(tmp_path / "m.tif", np.kron(tiles, np.ones((10, 10), np.uint16)))
    return tmp_path


def test_lists_the_tiles_of_a_montage(montage):
    addresses = list_images(montage, "m.tif", 10)
    assert [str(a) for a in addresses[:5]] == [
        "m.tif#r00c00",
        "m.tif#r00c01",
        "m.tif#r00c02",
        "m.tif#r00c03",
        "m.tif#r01c00",
    ]
    assert len(addresses) == 12
    for number, address in enumerate(addresses):
        crop = read_crop(montage, str(address), 10)
        assert crop.shape == (10, 10)
        assert (crop == 500 + 100 * number).all()


def test_single_tile_and_plain_file_have_plain_addresses(montage):
    tifffile.imwrite(montage / "one.tif", np.zeros((10, 10), np.uint16))
    assert list_images(montage, "one.tif", 10) == [Address("one.tif")]
    assert list_images(montage, "m.tif", None) == [Address("m.tif")]


def test_lists_the_pages_of_a_stack(tmp_path):
    stack = np.random.default_rng(0).integers(0, 255, (4, 9, 11), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "s.tif", stack, photometric="minisblack")
    addresses = list_images(tmp_path, "s.tif", None)
    assert [str(a) for a in addresses] == ["s.tif#p000", "s.tif#p001", "s.tif#p002", "s.tif#p003"]
    for address, page in zip(addresses, stack, strict=True):
        np.testing.assert_array_equal(read_crop(tmp_path, str(address)), page)
    np.testing.assert_array_equal(read_crop(tmp_path, "s.tif"), stack[0])


def test_refuses_edges_that_are_no_multiple_of_the_tile(montage, raises_code):
    with raises_code("images.not_a_montage") as caught:
        list_images(montage, "m.tif", 7)
    for text in ("m.tif: 40 x 30 px", "7 px"):
        assert text in str(caught.value)
    tifffile.imwrite(montage / "s.tif", np.zeros((2, 20, 20), np.uint8), photometric="minisblack")
    with raises_code("images.not_a_montage") as caught:
        list_images(montage, "s.tif", 10)
    assert "2 page(s)" in str(caught.value)


@pytest.mark.parametrize("address", ["m.tif#r03c00", "m.tif#r00c04", "m.tif#r99c99"])
def test_refuses_a_tile_outside_the_montage(montage, address, raises_code):
    with raises_code("images.tile_missing") as caught:
        read_crop(montage, address, 10)
    assert address in str(caught.value)


def test_refuses_unreadable_addresses(montage, raises_code):
    with raises_code("images.tile_size_missing"):
        read_crop(montage, "m.tif#r00c00")
    with raises_code("images.page_missing"):
        read_crop(montage, "m.tif#p003")
    with raises_code("images.not_found"):
        read_crop(montage, "absent.tif#r00c00", 10)


def test_accepts_a_file_named_like_an_address(montage):
    image = np.arange(100, dtype=np.uint8).reshape(10, 10)
    Image.fromarray(image).save(montage / "x.png")
    (montage / "x.png").rename(montage / "x#p001")
    assert resolve_address(montage, "x#p001") == Address("x#p001")
    np.testing.assert_array_equal(read_crop(montage, "x#p001"), image)


def test_rereads_a_changed_montage_and_returns_copies(montage):
    crop = read_crop(montage, "m.tif#r00c00", 10)
    crop[:] = 0
    assert (read_crop(montage, "m.tif#r00c00", 10) == 500).all()
    tifffile.imwrite(montage / "m.tif", np.full((30, 40), 7, np.uint16))
    assert (read_crop(montage, "m.tif#r00c00", 10) == 7).all()


@pytest.mark.real_data
def test_jurkat_tiles(jurkat):
    addresses = list_images(jurkat, "g1/brightfield.tif", 40)
    assert len(addresses) == 24 * 30
    whole = read_image(jurkat / "g1" / "brightfield.tif")
    np.testing.assert_array_equal(read_crop(jurkat, "g1/brightfield.tif#r03c17", 40), whole[120:160, 680:720])


def test_too_long_name_is_no_file(tmp_path):
    name = "x" * 5000 + ".png"
    assert resolve_address(tmp_path, name) == Address(name)
    with pytest.raises(ImageError):
        read_crop(tmp_path, name)


# --- which pages are cells

IMAGE = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)


def pyramid(path):
    with tifffile.TiffWriter(path) as out:
        for step in (1, 2, 4):
            out.write(IMAGE[::step, ::step], metadata=None, subfiletype=int(step > 1))


def unmarked_pyramid(path):
    with tifffile.TiffWriter(path) as out:
        for step in (1, 2, 4):
            out.write(IMAGE[::step, ::step], metadata=None)


def slide(path):
    with tifffile.TiffWriter(path) as out:
        out.write(IMAGE, metadata=None)
        for number in range(2):  # label and overview, of which only one is marked
            out.write(IMAGE[:20, :24], metadata=None, subfiletype=number)


def with_mask(path):
    with tifffile.TiffWriter(path) as out:
        out.write(IMAGE, metadata=None)
        out.write(IMAGE > 100, metadata=None, subfiletype=4)


def colour_and_grey(path):
    with tifffile.TiffWriter(path) as out:
        out.write(IMAGE, metadata=None)
        out.write(np.stack([IMAGE] * 3, -1), metadata=None, photometric="rgb")


def imagej(axes):
    def write(path):
        stack = np.stack([IMAGE + number for number in range(4)])
        shape = (2, 2) if len(axes) == 4 else (4,)
        tifffile.imwrite(path, stack.reshape(*shape, 64, 64), imagej=True, metadata={"axes": axes})

    return write


def shaped(axes):
    def write(path):
        tifffile.imwrite(path, np.stack([IMAGE] * 3), photometric="minisblack", metadata={"axes": axes})

    return write


def ome(axes):
    def write(path):
        tifffile.imwrite(path, np.stack([IMAGE] * 3), photometric="minisblack", ome=True, metadata={"axes": axes})

    return write


def ome_scenes(path):
    with tifffile.TiffWriter(path, ome=True) as out:
        for number in range(3):
            out.write(IMAGE + number, metadata={"axes": "YX"})


def cells_of_similar_sizes(path):
    with tifffile.TiffWriter(path) as out:
        for edge in (40, 64, 52):
            out.write(IMAGE[:edge, :60], metadata=None)


def large_imagej(path):
    imagej("ZYX")(path)
    with tifffile.TiffFile(path, mode="r+") as tif:
        handle, start = tif.filehandle, tif.pages[0].offset
        handle.seek(start)
        count = int.from_bytes(handle.read(2), "big" if tif.byteorder == ">" else "little")
        handle.seek(start + 2 + 12 * count)
        handle.write(bytes(4))


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (pyramid, [""]),
        (with_mask, [""]),
        (imagej("ZYX"), ["#p000", "#p001", "#p002", "#p003"]),
        (imagej("TYX"), ["#p000", "#p001", "#p002", "#p003"]),
        (shaped("QYX"), ["#p000", "#p001", "#p002"]),
        (ome_scenes, ["#p000", "#p001", "#p002"]),
        (cells_of_similar_sizes, ["#p000", "#p001", "#p002"]),
        (unmarked_pyramid, "images.pages_ambiguous"),
        (slide, "images.pages_ambiguous"),
        (colour_and_grey, "images.pages_ambiguous"),
        (large_imagej, "images.pages_ambiguous"),
        (imagej("CYX"), "images.pages_of_one_image"),
        (imagej("ZCYX"), "images.pages_of_one_image"),
        (imagej("TZYX"), "images.pages_of_one_image"),
        (shaped("CYX"), "images.pages_of_one_image"),
        (shaped("ZYX"), "images.pages_of_one_image"),
        (ome("CYX"), "images.pages_of_one_image"),
        (ome("ZYX"), "images.pages_of_one_image"),
        (ome("TYX"), "images.pages_of_one_image"),
    ],
)
def test_counts_only_pages_that_are_cells(tmp_path, write, expected, raises_code):
    write(tmp_path / "s.tif")
    if isinstance(expected, str):
        for read in (lambda: list_images(tmp_path, "s.tif", None), lambda: read_crop(tmp_path, "s.tif")):
            with raises_code(expected):
                read()
    else:
        assert [str(a) for a in list_images(tmp_path, "s.tif", None)] == ["s.tif" + one for one in expected]
    with tifffile.TiffFile(tmp_path / "s.tif") as tif:  # addresses of old tables keep their meaning
        for number, page in enumerate(tif.pages):
            if min(page.shape[:2]) >= 16 and page.dtype == np.uint16:
                found = read_crop(tmp_path, f"s.tif#p{number:03d}")
                np.testing.assert_array_equal(found, page.asarray())


def test_ignores_smaller_versions_of_a_montage(tmp_path):
    pyramid(tmp_path / "s.tif")
    assert len(list_images(tmp_path, "s.tif", 16)) == 16
    np.testing.assert_array_equal(read_crop(tmp_path, "s.tif#r01c02", 16), IMAGE[16:32, 32:48])


NESTED = '{"axes":' + "[" * 60_000
PART = (
    '<OME UUID="urn:uuid:1"><Image><Pixels SizeX="16" SizeY="16" SizeC="3" SizeZ="5"><TiffData/></Pixels></Image></OME>'
)

ONE = PART.replace("5", "1").replace("3", "1")


@pytest.mark.parametrize(
    ("description", "pages", "expected"),
    [
        (NESTED, 1, [""]),
        (NESTED, 2, ["#p000", "#p001"]),
        (PART, 1, [""]),
        (ONE, 1, [""]),
        (ONE, 2, "images.pages_ambiguous"),
        (ONE, 5, "images.pages_ambiguous"),
        (PART[:-20], 1, [""]),
        (PART, 2, "images.pages_of_one_image"),
        (PART[:-20], 2, "images.ome_xml_invalid"),
        ("ImageJ=1.53\nimages=5\n", 1, "images.pages_ambiguous"),
    ],
)
def test_reads_metadata_of_multi_page_files_only(tmp_path, description, pages, expected, raises_code):
    path = tmp_path / "f.tif"
    with tifffile.TiffWriter(path) as out:
        for number in range(pages):
            text = description.encode() if number == 0 else None
            page = np.full((16, 16), number, np.uint8)
            out.write(page, photometric="minisblack", metadata=None, description=text, contiguous=False)
    if isinstance(expected, str):
        with raises_code(expected):
            list_images(tmp_path, "f.tif", None)
    else:
        assert [str(one) for one in list_images(tmp_path, "f.tif", None)] == [f"f.tif{place}" for place in expected]
        assert read_crop(tmp_path, "f.tif" + expected[-1]).shape == (16, 16)
