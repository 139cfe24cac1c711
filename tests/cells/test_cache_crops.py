"""Cached crops: equal to decoded crops, and replaced by decoding when unusable."""

import errno
import os
import pickle
import shutil
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tifffile
from filelock import FileLock
from PIL import Image

from urnet.cells.audit import audit_cells
from urnet.cells.cache import crops as crop_cache
from urnet.cells.cache.arrays import load_cached_pixels
from urnet.cells.cache.crops import cache_crops, use_cached_crops
from urnet.cells.cache.storage import locate_cell_cache
from urnet.cells.read import read_cells
from urnet.cells.table import Cells
from urnet.errors import ImageError
from urnet.images import montage


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("URNET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def cells(tmp_path) -> Cells:
    """A table of every kind of crop: sizes, depths, colour, pages and tiles; one of them constant."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "cells"
    folder.mkdir()
    for name, shape, dtype in (("grey", (24, 30), "u1"), ("colour", (20, 20, 3), "u1"), ("deep", (24, 24), "u2")):
        Image.fromarray(rng.integers(0, 255, shape, dtype)).save(folder / f"{name}.png")
    tifffile.imwrite(folder / "float.tif", rng.normal(size=(17, 19)).astype(np.float32))
    tifffile.imwrite(
        folder / "stack.tif", rng.integers(0, 4000, (3, 16, 16), "u2"), byteorder=">", photometric="minisblack"
    )
    tifffile.imwrite(folder / "montage.tif", rng.integers(0, 255, (32, 48), "u1"))
    Image.fromarray(np.full((24, 24), 7, np.uint8)).save(folder / "constant.png")
    names = ("grey.png", "colour.png", "deep.png", "float.tif", "stack.tif", "montage.tif", "constant.png")
    tiles = ("", "", "", "", "", "16", "")
    pd.DataFrame({"path": names, "label": "a", "tile": tiles}).to_csv(folder / "cells.csv", index=False)
    return read_cells(folder)


@pytest.fixture
def decodings(monkeypatch) -> Counter:
    """Count how often each file is decoded."""
    seen: Counter = Counter()
    read = montage.read_image

    def counted(path, page=0):
        seen[path.name, page] += 1
        return read(path, page)

    monkeypatch.setattr(montage, "read_image", counted)
    montage._read_montage.cache_clear()
    return seen


def entries() -> list[str]:
    return sorted(file.name for file in locate_cell_cache().glob("*")) if locate_cell_cache().is_dir() else []


def crops(cells: Cells) -> list[np.ndarray]:
    return [cells.read(index) for index in range(len(cells))]


def all_equal(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(first, second, strict=True)
    )


def test_audit_stores_exact_crops_and_repeats_from_them(cells, decodings):
    expected = crops(cells)
    decodings.clear()
    montage._read_montage.cache_clear()
    first = audit_cells(cells)
    assert set(decodings.values()) == {1}
    assert len(decodings) == 9
    assert len(entries()) == 1
    again, known = audit_cells(cells), use_cached_crops(cells)
    assert all_equal(crops(known), expected)
    assert again == first
    assert decodings.total() == 9


def test_selections_of_the_table_read_their_own_crops(cells, decodings):
    audit_cells(cells)
    expected = crops(cells)
    decodings.clear()
    known = use_cached_crops(cells)
    mask = np.arange(len(cells)) % 3 == 1
    chosen = [crop for crop, wanted in zip(expected, mask, strict=True) if wanted]
    assert all_equal(crops(known.where(mask)), chosen)
    assert all_equal(crops(known.with_columns(split="test").part("test").where(mask)), chosen)
    assert all_equal(crops(pickle.loads(pickle.dumps(known.where(mask)))), chosen)
    assert len(pickle.dumps(known)) < 10_000
    assert not decodings
    backwards = known.table[::-1].reset_index(drop=True)
    assert all_equal(crops(replace(known, table=backwards)), expected[::-1])
    assert all_equal(
        crops(known.with_columns(path=list(backwards["path"]), tile=list(backwards["tile"]))), expected[::-1]
    )
    assert decodings


def test_moved_table_reads_the_same_entry(cells, tmp_path, decodings):
    audit_cells(cells)
    decodings.clear()
    cells.write(tmp_path / "run" / "cells.csv")
    moved = read_cells(tmp_path / "run" / "cells.csv")
    assert moved.table["path"][0] == "../cells/grey.png"
    assert all_equal(crops(use_cached_crops(moved)), crops(use_cached_crops(cells)))
    assert not decodings
    other = read_cells(shutil.copytree(cells.root, tmp_path / "copied"))
    assert use_cached_crops(other).cached_crops is None
    assert all_equal(crops(replace(use_cached_crops(cells), root=other.root)), crops(other))


def test_unreadable_crop_raises_the_same_error_from_the_cache(cells):
    (cells.root / "deep.png").write_bytes(b"no image")
    messages = []
    for _ in range(2):
        audit = audit_cells(cells)
        messages.append([finding.detail for finding in audit.findings if finding.kind == "unreadable"])
    assert len(messages[0]) == 1
    assert messages[0] == messages[1]
    known = use_cached_crops(cells)
    assert known.cached_crops is not None
    with pytest.raises(ImageError) as first:
        known.read(2)
    with pytest.raises(ImageError) as second:
        cells.read(2)
    assert str(first.value) == str(second.value)


def test_decodes_changed_files(cells, monkeypatch, decodings):
    audit_cells(cells)
    os.utime(cells.root / "grey.png", ns=(0, 10**18))
    assert use_cached_crops(cells).cached_crops is None
    (cells.root / "grey.png").write_bytes((cells.root / "colour.png").read_bytes())
    with cache_crops(cells) as read:
        for index in range(len(cells)):
            read(index)
        os.utime(cells.root / "grey.png", ns=(0, 10**18))
    assert use_cached_crops(cells).cached_crops is None
    assert len(entries()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows tells no time at which a file was renamed")
def test_decodes_swapped_files_of_equal_size_and_time(tmp_path):
    """Files from an archive share size and time. A user swaps two of them to correct a class."""
    for name, value in (("a", 10), ("b", 200)):
        (tmp_path / "cells" / name).mkdir(parents=True)
        pixels = np.full((24, 24), value, np.uint8) + np.eye(24, dtype=np.uint8)
        tifffile.imwrite(tmp_path / "cells" / name / "0.tif", pixels)
        os.utime(tmp_path / "cells" / name / "0.tif", ns=(10**18, 10**18))
    cells = read_cells(tmp_path / "cells")
    audit_cells(cells)
    (cells.root / "a" / "0.tif").rename(tmp_path / "aside")
    (cells.root / "b" / "0.tif").rename(cells.root / "a" / "0.tif")
    (tmp_path / "aside").rename(cells.root / "b" / "0.tif")
    assert all_equal(crops(use_cached_crops(cells)), crops(cells))


@pytest.mark.parametrize("reason", ["large", "disk", "folder", "stopped", "write", "part"])
def test_reading_works_if_the_cache_is_unusable(cells, monkeypatch, tmp_path, reason):
    expected = crops(cells)
    if reason == "large":
        monkeypatch.setattr(crop_cache, "MAX_TABLE_BYTES", sum(crop.nbytes for crop in expected) - 1)
    elif reason == "disk":
        monkeypatch.setattr(crop_cache, "MIN_FREE_BYTES", 10**18)
    elif reason == "folder":
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("URNET_CACHE", str(tmp_path / "file"))
    elif reason == "write":

        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(crop_cache.os, "fsync", full)
    seen = []
    try:
        with cache_crops(cells) as read:
            for index in range(len(cells)):
                seen.append(read(index))
                if reason == "stopped" and index == 4:
                    raise KeyboardInterrupt
                if reason == "part" and index == len(cells) - 2:
                    break
    except KeyboardInterrupt:
        assert reason == "stopped"
    assert all_equal(seen, expected[: len(seen)])
    assert entries() == []
    assert use_cached_crops(cells).cached_crops is None


def test_replaces_the_unfinished_entry_of_a_killed_process(cells):
    audit_cells(cells)
    (entry,) = locate_cell_cache().iterdir()
    whole = entry.read_bytes()
    entry.rename(entry.with_name(f"{entry.name}.part"))
    entry.with_name(f"{entry.name}.lock").touch()
    audit_cells(cells)
    assert entries() == [entry.name]
    assert entry.read_bytes() == whole


def test_only_one_process_writes_an_entry(cells):
    audit_cells(cells)
    (entry,) = locate_cell_cache().iterdir()
    entry.unlink()
    with FileLock(entry.with_name(f"{entry.name}.lock")):
        audit_cells(cells)
    assert not entry.exists()


def test_ignores_and_rebuilds_a_damaged_entry(cells):
    audit_cells(cells)
    (entry,) = locate_cell_cache().iterdir()
    whole = entry.read_bytes()
    for content in (b"", b"short", whole[:-1], whole[8:], whole[:-24] + bytes(24), whole[:-1] + b"\xff"):
        entry.write_bytes(content)
        assert use_cached_crops(cells).cached_crops is None
        audit_cells(cells)
        assert entry.read_bytes() == whole


def test_decodes_after_the_entry_was_removed(cells):
    audit_cells(cells)
    known = use_cached_crops(cells)
    expected, sent = crops(known), pickle.dumps(known)
    (entry,) = locate_cell_cache().iterdir()
    entry.unlink()
    assert all_equal(crops(pickle.loads(sent)), expected)


def test_network_arrays_are_built_from_cached_crops(draw, tmp_path, decodings):
    cells = read_cells(draw(tmp_path / "shapes", 4))
    expected = load_cached_pixels(cells, 16, 3).copy()
    shutil.rmtree(locate_cell_cache())
    decodings.clear()
    audit_cells(cells)
    np.testing.assert_array_equal(load_cached_pixels(use_cached_crops(cells), 16, 3), expected)
    assert set(decodings.values()) <= {1, 3}  # three folders have files of the same names
    assert decodings.total() == 12


def test_decodes_a_damaged_crop(cells, decodings):
    expected = crops(cells)
    audit_cells(cells)
    (entry,) = locate_cell_cache().iterdir()
    content = bytearray(entry.read_bytes())
    place = use_cached_crops(cells).cached_crops.records[1]
    content[place["start"] + 5] ^= 1
    entry.write_bytes(content)
    decodings.clear()
    known = use_cached_crops(cells)
    assert known.cached_crops is not None
    assert all_equal(crops(known), expected)
    assert list(decodings) == [("colour.png", 0)]
