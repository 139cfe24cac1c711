"""Pages are counted, surveyed and read in linear time, even in malicious files."""

import struct
import time
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from urnet.images import tiff_pages
from urnet.images.read import read_header, read_image, survey_pages
from urnet.images.tiff_pages import MAX_PAGES, list_pages


def directory(next_at: int, **values: int) -> bytes:
    """Make a directory of one strip, with the position of the next directory."""
    tags = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "start": 273}
    tags |= {"rows": 278, "count": 279}
    entries = sorted((tags[name], value) for name, value in values.items())
    data = struct.pack("<H", len(entries))
    for code, value in entries:
        data += struct.pack("<HHII", code, 4, 1, value)
    return data + struct.pack("<I", next_at)


def shared_strip(edge: int, pages: int) -> bytes:
    """Make pages that share one deflated strip."""
    strip = zlib.compress(bytes(edge * edge), 9)
    first = 8 + len(strip) + len(strip) % 2
    about = {"width": edge, "height": edge, "bits": 8, "compression": 8, "photometric": 1, "rows": edge}
    one = len(directory(0, start=8, count=1, **about))
    data = b"II*\0" + struct.pack("<I", first) + strip + bytes(len(strip) % 2)
    for page in range(pages):
        follows = first + (page + 1) * one if page + 1 < pages else 0
        data += directory(follows, start=8, count=len(strip), **about)
    return data


def test_counts_each_page_that_shares_a_strip(tmp_path):
    (tmp_path / "bomb.tif").write_bytes(shared_strip(1000, 500))
    survey = survey_pages(tmp_path / "bomb.tif")
    assert (survey.pages, survey.largest_pixels, survey.total_pixels) == (500, 10**6, 500 * 10**6)
    assert not read_image(tmp_path / "bomb.tif", 499).any()


def test_survey_counts_every_page(tmp_path):
    with tifffile.TiffWriter(tmp_path / "f.tif") as out:
        for edge in (8, 100, 16):
            out.write(np.zeros((edge, edge), np.uint8), metadata=None)
    assert survey_pages(tmp_path / "f.tif").largest_pixels == 10**4
    assert survey_pages(tmp_path / "f.tif").total_pixels == 8 * 8 + 10**4 + 16 * 16
    Image.new("L", (20, 30)).save(tmp_path / "f.png")
    assert survey_pages(tmp_path / "f.png").total_pixels == 600


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_lists_pages_as_the_decoder_does(tmp_path, bigtiff, byteorder):
    path = tmp_path / "f.tif"
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=byteorder) as out:
        out.write(np.zeros((30, 40, 3), np.uint8), photometric="rgb", tile=(16, 16), compression="zlib")
        out.write(np.ones((9, 300), np.uint16), rowsperstrip=2, description="later", subfiletype=1)
    with tifffile.TiffFile(path) as tif:
        for ours, theirs in zip(list_pages(path), tif.pages, strict=True):
            assert (ours.offset, ours.width, ours.height) == (theirs.offset, theirs.imagewidth, theirs.imagelength)
            assert (ours.samples, ours.segments) == (theirs.samplesperpixel, len(theirs.dataoffsets))
            assert ours.stored == sum(theirs.databytecounts)
            assert ours.reduced == theirs.is_reduced
            ends = [a + b for a, b in zip(theirs.dataoffsets, theirs.databytecounts, strict=True)]
            assert (ours.start, ours.end) == (theirs.dataoffsets[0], max(ends))


def chain(pages: int, last: int) -> bytes:
    about = {"width": 8, "height": 8, "bits": 8, "compression": 1, "photometric": 1, "rows": 8}
    one = len(directory(0, start=8, count=64, **about))
    data = bytearray(b"II*\0" + struct.pack("<I", 72) + bytes(64))
    for page in range(pages):
        data += directory(72 + (page + 1) * one if page + 1 < pages else last, start=8, count=64, **about)
    return data


@pytest.mark.parametrize("last", [72, 72 + 102, 2**31, 2**32 - 1, 60])
def test_refuses_a_chain_that_loops_or_leaves_the_file(tmp_path, last, raises_code):
    (tmp_path / "f.tif").write_bytes(chain(3, last))
    for read in (survey_pages, read_image):
        with raises_code("images.pages_damaged"):
            read(tmp_path / "f.tif")


def test_refuses_too_long_a_chain_at_once(tmp_path, monkeypatch, raises_code):
    """The rate allows 30 s for the real limit."""
    assert MAX_PAGES == 100_000
    monkeypatch.setattr(tiff_pages, "MAX_PAGES", 5_000)
    (tmp_path / "f.tif").write_bytes(chain(5_001, 0))
    started = time.process_time()
    with raises_code("images.pages_damaged"):
        survey_pages(tmp_path / "f.tif")
    assert time.process_time() - started < 30 * 5_000 / MAX_PAGES


def test_refuses_directories_that_share_a_long_strip_list(tmp_path, raises_code):
    """Without a limit, a file of 4 MB takes minutes."""
    strips = 2**19
    data = bytearray(b"II*\0" + struct.pack("<I", 8))
    tags = [(256, 1, 8), (257, 1, 8), (258, 1, 8), (259, 1, 1), (262, 1, 1)]
    one = 2 + 12 * (len(tags) + 3) + 4
    pages = 2000
    lists = 8 + pages * one
    tags += [(273, strips, lists), (278, 1, 1), (279, strips, lists)]
    for page in range(pages):
        data += struct.pack("<H", len(tags))
        for code, count, value in tags:
            data += struct.pack("<HHII", code, 4, count, value)
        data += struct.pack("<I", 8 + (page + 1) * one if page + 1 < pages else 0)
    data += bytes(4 * strips)
    (tmp_path / "f.tif").write_bytes(data)
    with raises_code("images.pages_damaged"):
        survey_pages(tmp_path / "f.tif")


@pytest.mark.slow
def test_reads_pages_of_a_long_stack_in_linear_time(tmp_path):
    pages = 1000
    stack = np.arange(pages * 64, dtype=np.uint16).reshape(pages, 8, 8)
    with tifffile.TiffWriter(tmp_path / "f.tif") as out:
        for page in stack:
            out.write(page, photometric="minisblack", metadata=None, contiguous=False)
    started = time.process_time()
    for page in range(pages):
        np.testing.assert_array_equal(read_image(tmp_path / "f.tif", page), stack[page])
    assert time.process_time() - started < 15 * pages / 4000


def one_tile(edge: int, tile: int, pages: int = 1, kind: int = 4, depth: int = 1) -> bytes:
    """Make small pages that share one deflated tile. Its size has any numeric TIFF type."""
    stored = zlib.compress(bytes(tile * tile), 9)
    first = 8 + len(stored) + len(stored) % 2
    tags = {256: edge, 257: edge, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 8, 325: len(stored)}
    tags |= {32998: depth} if depth > 1 else {}
    one = 2 + 12 * len(tags) + 4
    data = b"II*\0" + struct.pack("<I", first) + stored + bytes(len(stored) % 2)
    for page in range(pages):
        data += struct.pack("<H", len(tags))
        for code, value in tags.items():
            data += struct.pack("<HHII", code, kind if code in (322, 323) else 4, 1, value)
        data += struct.pack("<I", first + (page + 1) * one if page + 1 < pages else 0)
    return data


@pytest.mark.slow
@pytest.mark.parametrize("kind", [4, 9])
def test_counts_whole_tiles_of_small_pages(tmp_path, raises_code, kind):
    path = tmp_path / "f.tif"
    path.write_bytes(one_tile(64, 16_000, kind=kind))
    assert survey_pages(path).largest_pixels == 16_000**2
    for read in (read_image, read_header):
        with raises_code("images.too_large"):
            read(path)
    path.write_bytes(one_tile(64, 1024, pages=60, kind=kind))
    assert survey_pages(path).total_pixels == 60 * 1024**2
    path.write_bytes(one_tile(64, 1024, depth=1000))
    assert survey_pages(path).largest_pixels == 1000 * 1024**2
    with raises_code("images.too_large"):
        read_image(path)


def test_reads_a_tile_larger_than_its_page(tmp_path):
    pixels = np.arange(200 * 200, dtype=np.uint16).reshape(200, 200)
    tifffile.imwrite(tmp_path / "f.tif", pixels, tile=(1024, 1024), compression="zlib")
    assert survey_pages(tmp_path / "f.tif").total_pixels == 1024**2
    np.testing.assert_array_equal(read_image(tmp_path / "f.tif"), pixels)


def test_strips_end_with_their_page(tmp_path):
    about = {"width": 16, "height": 16, "bits": 8, "compression": 1, "photometric": 1, "rows": 2**32 - 1}
    (tmp_path / "f.tif").write_bytes(
        b"II*\0" + struct.pack("<I", 264) + bytes(256) + directory(0, start=8, count=256, **about)
    )
    assert survey_pages(tmp_path / "f.tif").total_pixels == 256
    assert read_image(tmp_path / "f.tif").shape == (16, 16)
