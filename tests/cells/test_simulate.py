"""Simulated cells folders are complete, repeatable and atomic."""

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from urnet.cells import simulate
from urnet.cells.read import read_cells
from urnet.cells.simulate import write_destained, write_phantom
from urnet.errors import ImageError
from urnet.images.read import read_image


def digests(folder: Path) -> dict[str, str]:
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return {f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture
def stained(tmp_path) -> Path:
    """Six rectangular stained crops of two classes, with difficult names."""
    rng = np.random.default_rng(0)
    for label, names in {
        "lymphocyte": ("a.png", "b é.png", "c.v2.png"),
        "monocyte": ("a.png", "A.jpg", "d.bmp"),
    }.items():
        for name in names:
            image = np.full((60, 70, 3), (250, 225, 215), np.uint8)
            image[20:40, 25:45] = rng.integers(40, 120, 3)
            (tmp_path / "stained" / label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / "stained" / label / name)
    return tmp_path / "stained"


def test_phantom_is_a_cells_folder_with_natural_imbalance(tmp_path):
    cells = read_cells(write_phantom(tmp_path / "cells", 150, donors=3, size=32))
    assert len(cells) == 150
    share = cells.table["label"].value_counts(normalize=True)
    assert share["granulocyte"] == pytest.approx(0.60, abs=0.02)
    assert share["lymphocyte"] == pytest.approx(0.32, abs=0.02)
    assert share["monocyte"] == pytest.approx(0.08, abs=0.01)
    counts = cells.table.groupby(["donor", "label"]).size().unstack()
    assert counts.shape == (3, 3)
    assert counts.min().min() >= 3
    for row in cells.table.to_dict("records"):
        crop = read_image(cells.root / row["path"])
        assert crop.shape == (32, 32)
        assert crop.dtype == np.uint8
        for kind in ("clean", "nuclei"):
            assert (cells.root / row["path"].replace("cells/", f"{kind}/", 1)).is_file()
        assert row["target"] == row["path"].replace("cells/", "clean/", 1)
    assert "seed 0" in (cells.root / "README.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_same_seed_same_files(tmp_path):
    first, again, other = (
        write_phantom(tmp_path / n, 12, donors=2, fields=1, size=128, seed=s)
        for n, s in zip("abc", (4, 4, 5), strict=True)
    )
    assert digests(first) == digests(again)
    images = {name for name in digests(first) if name.endswith((".png", ".tif"))}
    assert all(digests(first)[name] != digests(other).get(name) for name in images)


def test_cell_is_independent_of_the_number_drawn(tmp_path):
    few, many = write_phantom(tmp_path / "few", 20, donors=2), write_phantom(tmp_path / "many", 60, donors=2)
    shared = {name: digest for name, digest in digests(few).items() if name.endswith(".png")}
    assert shared.items() <= digests(many).items()


@pytest.mark.slow
def test_fields_come_with_their_truth(tmp_path):
    folder = write_phantom(tmp_path / "cells", 6, donors=2, fields=3) / "fields"
    with (folder / "truth.csv").open(encoding="utf-8", newline="") as file:
        truth = list(csv.DictReader(file))
    assert list(truth[0]) == ["field", "x", "y", "radius", "label", "donor", "overlap", "simulated"]
    assert {row["field"] for row in truth} == {"field_000.tif", "field_001.tif", "field_002.tif"}
    assert {row["donor"] for row in truth} == {"d00", "d01"}
    with (folder / "fields.csv").open(encoding="utf-8", newline="") as file:
        named = list(csv.DictReader(file))
    assert [row["donor"] for row in named] == ["d00", "d01", "d00"]
    assert all((folder / row["field"]).is_file() and (folder / row["nuclei"]).is_file() for row in named)
    brightfield = tifffile.imread(folder / "field_001.tif")
    nuclei = tifffile.imread(folder / "field_001_nuclei.tif")
    assert brightfield.shape == nuclei.shape == (1024, 1024)
    assert brightfield.dtype == nuclei.dtype == np.uint16
    for row in truth:
        if row["field"] == "field_001.tif":
            x, y, radius = int(row["x"]), int(row["y"]), int(float(row["radius"]))
            assert nuclei[y - radius : y + radius + 1, x - radius : x + radius + 1].max() > 1000
    with tifffile.TiffFile(folder / "field_000.tif") as tif:
        numerator, denominator = tif.pages.first.tags["XResolution"].value
    assert 1e4 / (numerator / denominator) == pytest.approx(20 / 48, rel=1e-3), "pixel size, micrometres"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"cells": 35}, "at least 36"),
        ({"cells": 36, "size": 4}, "16 to 1024"),
        ({"cells": 36, "donors": 0}, "donors is 0"),
        ({"cells": 36, "seed": -1}, "seed is -1"),
    ],
)
def test_refuses_impossible_numbers(tmp_path, arguments, text, raises_code):
    with raises_code("cells.simulation_invalid") as caught:
        write_phantom(tmp_path / "cells", **arguments)
    assert text in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_smallest_phantom_has_every_class_in_every_donor(tmp_path):
    table = read_cells(write_phantom(tmp_path / "cells", 6, donors=2)).table
    assert (table.groupby(["donor", "label"]).size() == 1).all()


def test_destained_cells_keep_label_source_and_pair(tmp_path, stained):
    cells = read_cells(write_destained(stained, tmp_path / "größe", size=48))
    original = read_cells(stained)
    assert list(cells.table["label"]) == list(original.table["label"])
    assert list(cells.table["source"]) == list(original.table["path"])
    assert cells.table["source"].is_unique
    assert cells.table["path"].str.casefold().is_unique
    for index, row in cells.table.iterrows():
        assert cells.read(index).shape == (48, 48)
        assert cells.read(index, "target").shape == (48, 48, 3)
        assert row["target"] == row["path"].replace("cells/", "stained/", 1)
        assert read_image(cells.root / row["path"].replace("cells/", "clean/", 1)).shape == (48, 48)
    assert "Simulated destaining" in (cells.root / "README.txt").read_text(encoding="utf-8")


def test_destained_target_can_be_the_phase(tmp_path, stained, raises_code):
    cells = read_cells(write_destained(stained, tmp_path / "out", size=32, target="clean"))
    assert cells.table["target"].str.startswith("clean/").all()
    with raises_code("cells.simulation_invalid") as caught:
        write_destained(stained, tmp_path / "other", target="phase")
    assert "stained, clean" in str(caught.value)


def test_destaining_repeats_with_the_seed(tmp_path, stained):
    first, again, other = (
        write_destained(stained, tmp_path / n, size=32, seed=s) for n, s in zip("abc", (1, 1, 2), strict=True)
    )
    assert digests(first) == digests(again)
    assert digests(first)["cells/lymphocyte/a.png"] != digests(other)["cells/lymphocyte/a.png"]
    assert digests(first)["stained/lymphocyte/a.png"] == digests(other)["stained/lymphocyte/a.png"]


def test_copies_donor_and_split(tmp_path, stained):
    table = "path,label,donor,split,source\nlymphocyte/a.png,L,p1,train,s1\nmonocyte/a.png,M,p2,test,s2\n"
    (stained / "cells.csv").write_text(table, encoding="utf-8")
    cells = read_cells(write_destained(stained, tmp_path / "out", size=32))
    assert cells.table[["label", "donor", "split", "source"]].to_numpy().tolist() == [
        ["L", "p1", "train", "s1"],
        ["M", "p2", "test", "s2"],
    ]


def test_refuses_to_overwrite(tmp_path, stained, raises_code):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine", encoding="utf-8")
    for write in (lambda: write_phantom(out, 6, donors=2), lambda: write_destained(stained, out)):
        with raises_code("run.exists"):
            write()
    assert [f.name for f in out.iterdir()] == ["mine.txt"]


def test_accepts_an_empty_folder(tmp_path):
    (tmp_path / "out").mkdir()
    assert len(read_cells(write_phantom(tmp_path / "out", 6, donors=2))) == 6


@pytest.mark.parametrize("kind", ["truncated", "grey", "16-bit"])
def test_error_names_an_unusable_stained_crop_and_leaves_no_folder(tmp_path, stained, kind):
    bad = stained / "monocyte" / "d.bmp"
    if kind == "truncated":
        bad.write_bytes(bad.read_bytes()[:200])
    elif kind == "grey":
        Image.fromarray(np.zeros((60, 60), np.uint8)).save(bad)
    else:
        bad.unlink()
        bad = bad.with_suffix(".tif")
        tifffile.imwrite(bad, np.zeros((60, 60, 3), np.uint16), photometric="rgb")
    with pytest.raises(ImageError) as caught:
        write_destained(stained, tmp_path / "out")
    assert bad.name in str(caught.value)
    assert [f.name for f in tmp_path.iterdir()] == ["stained"]


def test_interrupted_writing_leaves_no_folder(tmp_path):
    def stop(share: float) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path / "out", 12, donors=2, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_no_folder(tmp_path, monkeypatch):
    def full(path, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(simulate, "_write_csv", full)
    with pytest.raises(OSError, match="No space"):
        write_phantom(tmp_path / "out", 6, donors=2)
    assert list(tmp_path.iterdir()) == []


def test_progress_runs_to_one(tmp_path, stained):
    shares: list[float] = []
    write_phantom(tmp_path / "phantom", 6, donors=2, fields=1, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    shares.clear()
    write_destained(stained, tmp_path / "destained", size=32, progress=shares.append)
    assert shares[-1] == 1
    assert len(shares) == 6
