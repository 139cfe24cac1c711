"""Cached arrays: decoded once, equal to decoded cells, and replaced by decoding when unusable."""

import errno
import os
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from urnet.cells.cache import arrays, storage
from urnet.cells.cache.arrays import load_cached_pixels
from urnet.cells.cache.storage import fingerprint_images, locate_cell_cache
from urnet.cells.pixels import load_pixels
from urnet.cells.read import read_cells
from urnet.cells.table import Cells
from urnet.images.rows import LazyRows


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("URNET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def cells(draw, tmp_path) -> Cells:
    return read_cells(draw(tmp_path / "cells", 4))


@pytest.fixture
def reads(monkeypatch):
    """Record the decoded cells in order."""
    seen = []
    read = Cells.read

    def counted(self, index, column="path"):
        seen.append(index)
        return read(self, index, column)

    monkeypatch.setattr(Cells, "read", counted)
    return seen


def entries() -> list[str]:
    return sorted(file.name for file in locate_cell_cache().iterdir())


@pytest.mark.parametrize(("size", "channels"), [(24, 1), (16, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_cached_pixels_equal_decoded_pixels_and_are_decoded_once(draw, tmp_path, reads, size, channels, dtype):
    cells = read_cells(draw(tmp_path / "deep", 4, dtype=dtype))
    expected = load_pixels(cells, size, channels).images
    reads.clear()
    for _ in range(3):
        images = load_cached_pixels(cells, size, channels)
        np.testing.assert_array_equal(images, expected)
        assert images.dtype == expected.dtype == dtype
        assert isinstance(images, np.memmap)
        assert not images.flags.writeable
    assert reads == list(range(12))
    assert entries() == [f"{fingerprint_images(cells, size, channels, 'path')}.npy"]


def test_several_depths_become_float32(draw, tmp_path, cells):
    draw(tmp_path / "cells", 2, seed=5, dtype=np.uint16, suffix=".tif")
    both = read_cells(tmp_path / "cells")
    images = load_cached_pixels(both, 24, 1)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, load_pixels(both, 24, 1).images)


def test_progress_ends_at_the_number_of_cells(cells):
    for expected in (list(range(1, 13)), []):
        progress = []
        load_cached_pixels(cells, 24, 1, progress=progress.append)
        assert progress == [*expected, 12]


@pytest.mark.parametrize(
    "change", ["content", "time", "order", "fewer", "size", "channels", "column", "decoder", "root"]
)
def test_every_change_of_pixels_makes_a_new_entry(cells, monkeypatch, tmp_path, change):
    cells = cells.with_columns(target=cells.table["path"])
    arguments, first = {"size": 24, "channels": 1, "column": "path"}, cells.root / cells.table["path"][3]
    load_cached_pixels(cells, **arguments)
    if change == "content":
        Image.fromarray(255 - np.asarray(Image.open(first))).save(first)
    elif change == "time":
        os.utime(first, ns=(0, 10**18))
    elif change == "order":
        cells = Cells(cells.root, cells.table[::-1].reset_index(drop=True), cells.classes)
    elif change == "fewer":
        cells = cells.where(np.arange(12) != 5)
    elif change == "decoder":
        monkeypatch.setattr(storage, "DECODER_VERSION", "other")
    elif change == "root":
        cells = read_cells(shutil.copytree(cells.root, tmp_path / "elsewhere"))
    else:
        cells = cells.with_columns(target=cells.table["path"].to_numpy()[::-1])
        arguments |= {"size": {"size": 16}, "channels": {"channels": 3}, "column": {"column": "target"}}[change]
    images = load_cached_pixels(cells, **arguments)
    expected = load_pixels(cells, arguments["size"], arguments["channels"], column=arguments["column"]).images
    np.testing.assert_array_equal(images, expected)
    assert len(entries()) == 2


def test_does_not_store_files_that_change_while_read(cells, monkeypatch, caplog):
    build = arrays._write_entry

    def meanwhile(*arguments):
        build(*arguments)
        os.utime(cells.root / cells.table["path"][0], ns=(0, 10**18))

    monkeypatch.setattr(arrays, "_write_entry", meanwhile)
    np.testing.assert_array_equal(load_cached_pixels(cells, 24, 1), load_pixels(cells, 24, 1).images)
    assert entries() == []
    assert "files change while they are read" in caplog.text


def test_rebuilds_a_damaged_entry(cells, reads):
    load_cached_pixels(cells, 24, 1)
    (entry,) = locate_cell_cache().iterdir()
    whole = entry.read_bytes()
    for content in (b"", b"no array", whole[:-5], whole[:60], np.zeros(3).tobytes()):
        entry.write_bytes(content)
        reads.clear()
        np.testing.assert_array_equal(load_cached_pixels(cells, 24, 1), load_pixels(cells, 24, 1).images)
        assert reads[:12] == list(range(12))
        assert entry.read_bytes() == whole


@pytest.mark.parametrize("where", ["folder", "disk", "lock", "midway"])
def test_decodes_into_memory_with_a_warning_if_the_cache_is_unusable(cells, monkeypatch, caplog, tmp_path, where):
    reason = {"folder": "", "disk": os.strerror(errno.ENOSPC), "lock": "no locks", "midway": os.strerror(errno.EIO)}[
        where
    ]
    if where == "folder":
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("URNET_CACHE", str(tmp_path / "file"))
    elif where == "disk":
        monkeypatch.setattr(arrays, "MIN_FREE_BYTES", 10**18)
    elif where == "lock":

        def refuse(*_, **__):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr("urnet.files.locks.FileLock.acquire", refuse)
    else:

        def fail(*_):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(np.lib.format, "write_array_header_1_0", fail)
    for _ in range(2):
        images = load_cached_pixels(cells, 24, 1)
        np.testing.assert_array_equal(images, load_pixels(cells, 24, 1).images)
        assert not isinstance(images, np.memmap)
        assert not images.flags.writeable
    assert "decoded into memory" in caplog.text
    assert reason in caplog.text
    if where != "folder":
        assert entries() == []


def test_raises_without_disk_space_and_memory(cells, monkeypatch, raises_code):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(arrays, "MIN_FREE_BYTES", 10**18)
    monkeypatch.setattr(arrays, "load_pixels", full)
    with raises_code("cells.no_space") as caught:
        load_cached_pixels(cells, 24, 1)
    assert "12 cells of 24 px" in str(caught.value)


def test_error_names_a_bad_image_and_leaves_no_entry(cells, raises_code):
    (cells.root / cells.table["path"][7]).write_bytes(b"no image")
    with raises_code("images.format_unknown") as caught:
        load_cached_pixels(cells, 24, 1)
    assert cells.table["path"][7] in str(caught.value)
    assert entries() == []


def test_interrupted_build_leaves_no_entry(cells):
    def interrupt(done: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_cached_pixels(cells, 24, 1, progress=interrupt)
    assert entries() == []
    assert isinstance(load_cached_pixels(cells, 24, 1), np.memmap)


def test_removes_old_files_of_killed_processes(cells):
    folder = locate_cell_cache()
    folder.mkdir(parents=True)
    for name in ("0.77.npy.part", "0.lock", "1.78.npy.part"):
        (folder / name).write_bytes(b"half")
    os.utime(folder / "1.78.npy.part", (time.time(), time.time() - 2 * storage.MAX_UNFINISHED_AGE_S))
    load_cached_pixels(cells, 24, 1)
    assert {"0.77.npy.part", "0.lock"} < set(entries())
    assert "1.78.npy.part" not in entries()


def test_removes_unfinished_files_of_the_entry_it_builds(cells):
    folder, key = locate_cell_cache(), fingerprint_images(cells, 24, 1, "path")
    folder.mkdir(parents=True)
    for name in (f"{key}.77.npy.part", f"{key}.78.npy", f"{key}.lock"):
        (folder / name).write_bytes(b"half")
    load_cached_pixels(cells, 24, 1)
    assert entries() == [f"{key}.npy"]


def test_concurrent_builds_decode_once(cells, reads):
    with ThreadPoolExecutor(4) as pool:
        several = list(pool.map(lambda _: load_cached_pixels(cells, 24, 1), range(4)))
    assert sorted(reads) == list(range(12))
    for images in several:
        np.testing.assert_array_equal(images, several[0])


def test_evicts_the_least_recently_used_entries(cells, monkeypatch):
    monkeypatch.setattr(storage, "MAX_BYTES", 12 * (16**2 + 20**2) + 2 * 128 + 12 * 24**2)
    made = {}
    for age, size in ((300, 16), (200, 20), (100, 24)):
        load_cached_pixels(cells, size, 1)
        made[size] = locate_cell_cache() / f"{fingerprint_images(cells, size, 1, 'path')}.npy"
        os.utime(made[size], (time.time() - age, time.time() - age))
    load_cached_pixels(cells, 16, 1)  # is used again
    load_cached_pixels(cells, 22, 1)
    assert [size for size, file in made.items() if file.exists()] == [16]
    monkeypatch.setattr(storage, "MAX_BYTES", 1)
    assert isinstance(load_cached_pixels(cells, 40, 1), np.memmap)
    assert len(entries()) == 1


def test_lazy_rows_read_on_demand_and_pickle_without_pixels(cells):
    whole = load_cached_pixels(cells, 24, 1)
    rows = LazyRows(whole, np.array([7, 2, 2, 11]))
    assert (len(rows), rows.shape, rows.size, rows.dtype) == (4, (4, 1, 24, 24), 4 * 24**2, np.uint8)
    np.testing.assert_array_equal(rows[[3, 0]], whole[[11, 7]])
    assert type(rows[[3, 0]]) is np.ndarray
    np.testing.assert_array_equal(np.concatenate(list(rows.iterate_parts())), rows[:])
    sent = pickle.dumps(rows)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent)[:], rows[:])
    in_memory = LazyRows(np.arange(24).reshape(4, 1, 2, 3), np.array([1]))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(in_memory))[:], in_memory[:])


@pytest.mark.parametrize("where", [200, -5, -1])
def test_rebuilds_an_entry_with_damaged_pixels(cells, reads, where):
    expected = load_cached_pixels(cells, 24, 1).copy()
    (entry,) = locate_cell_cache().iterdir()
    whole = entry.read_bytes()
    content = bytearray(whole)
    content[where] ^= 1
    entry.write_bytes(content)
    reads.clear()
    np.testing.assert_array_equal(load_cached_pixels(cells, 24, 1), expected)
    assert reads == list(range(12))
    assert entry.read_bytes() == whole
