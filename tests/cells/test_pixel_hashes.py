"""Pixel hashes depend on the content of images only."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from urnet.cells.pixel_hashes import add_pixel_hashes, find_changed_images
from urnet.cells.read import read_cells
from urnet.cells.table import Cells


@pytest.fixture
def cells(draw, tmp_path) -> Cells:
    folder = draw(tmp_path / "cells", 4)
    drawn = read_cells(folder)
    table = drawn.table.assign(split=["train", "validation", "test", ""] * 3, target=list(drawn.table["path"][::-1]))
    (folder / "cells.csv").write_text(table.to_csv(index=False), encoding="utf-8")
    return read_cells(folder)


def invert(path) -> None:
    """Invert the pixels of a file, with the same size and times as far as possible."""
    about = path.stat()
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def write_and_read(cells: Cells) -> Cells:
    cells.write(cells.root / "written" / "cells.csv")
    return read_cells(cells.root / "written")


def test_unchanged_pixels_are_not_reported(cells):
    known = write_and_read(add_pixel_hashes(cells, ["path", "target"]))
    assert find_changed_images(known) == []
    assert (known.table["content"] == "").tolist() == [False, False, False, True] * 3
    for path in cells.root.rglob("*.png"):
        Image.open(path).save(path, compress_level=1)
    assert find_changed_images(known) == []
    moved = shutil.copytree(cells.root, cells.root.with_name("moved"))
    assert find_changed_images(read_cells(moved / "written")) == []


def test_reports_changed_pixels_of_used_cells_and_targets(cells):
    paths = cells.table["path"]
    alone, both = (write_and_read(add_pixel_hashes(cells, columns)) for columns in (["path"], ["path", "target"]))
    invert(cells.root / paths[3])  # in no part; the target of the cell in row 8
    assert find_changed_images(alone) == []
    both = add_pixel_hashes(cells, ["path", "target"])
    assert find_changed_images(both) == []
    invert(cells.root / paths[3])
    assert find_changed_images(both) == [paths[3]]
    (cells.root / paths[4]).write_bytes(b"no image")
    assert find_changed_images(both) == [paths[4], paths[3]]


def test_replaces_hashes_of_an_older_run(cells):
    both = add_pixel_hashes(cells, ["path", "target"])
    fresh = add_pixel_hashes(both, ["path"])
    assert (fresh.table["target_content"] == "").all()
    pd.testing.assert_series_equal(fresh.table["content"], both.table["content"])


def test_table_without_hashes_reports_nothing(cells):
    invert(cells.root / cells.table["path"][0])
    assert find_changed_images(cells) == []


def test_progress_comes_to_its_end(cells):
    progress: list[float] = []
    known = add_pixel_hashes(cells, ["path", "target"], progress.append)
    assert progress == sorted(progress)
    assert progress[-1] == 1
    progress.clear()
    find_changed_images(known, progress.append)
    assert progress[-1] == 1
