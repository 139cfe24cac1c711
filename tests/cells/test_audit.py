"""The audit finds copies, leaks and unusable images, names their files, and reports nothing else."""

import errno
import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

from urnet.cells import audit as audit_module
from urnet.cells.audit import FINDING_KINDS, Audit, audit_cells
from urnet.cells.read import read_cells
from urnet.cells.table import Cells


def cell(seed: int, size: int = 24) -> np.ndarray:
    """Draw a unique blurred texture, 8 bits."""
    rng = np.random.default_rng(seed)
    texture = gaussian_filter(rng.normal(size=(size, size)), 2)
    return (128 + 35 * texture / texture.std()).clip(1, 254).astype(np.uint8)


class Folder:
    """Crops and their table."""

    def __init__(self, root: Path):
        self.root, self.rows = root, []

    def add(self, name: str, image: np.ndarray | None, label: str = "a", **columns: str) -> str:
        path = self.root / name
        if image is not None:
            tifffile.imwrite(path, image, photometric="rgb" if image.ndim == 3 else "minisblack")
        self.rows.append({"path": name, "label": label, **columns})
        return name

    def cells(self) -> Cells:
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        lines = [",".join(columns), *(",".join(row.get(c, "") for c in columns) for row in self.rows)]
        (self.root / "cells.csv").write_text("\n".join(lines), encoding="utf-8")
        return read_cells(self.root)


@pytest.fixture
def folder(tmp_path) -> Folder:
    """Folder with four sound cells of two classes."""
    folder = Folder(tmp_path)
    for number in range(4):
        folder.add(f"sound{number}.tif", cell(number), "ab"[number % 2])
    return folder


def kinds(audit: Audit) -> list[tuple[str, tuple[str, ...]]]:
    return [(finding.kind, finding.paths) for finding in audit.findings]


def test_sound_cells_have_no_findings(folder):
    audit = audit_cells(folder.cells())
    assert audit.clean
    assert audit.distinct.all()
    assert audit.exclusions == [""] * 4
    assert audit.notes == [
        "distinct cells: a 2, b 2",
        "images: 4 of 24 x 24 px grey, uint8",
        "donors: not known. Cells are grouped by source image",
    ]
    assert audit.to_frame().empty
    audit.raise_leaks()


def test_copies_count_once(folder):
    copy = folder.add("copy.tif", cell(0))
    turned = folder.add("turned.tif", np.rot90(cell(1)[:, ::-1]), "b")
    audit = audit_cells(folder.cells())
    assert kinds(audit) == [("copy", ("sound0.tif", copy)), ("turned copy", ("sound1.tif", turned))]
    assert audit.distinct.tolist() == [True] * 4 + [False] * 2
    assert audit.exclusions[4:] == ["copy of sound0.tif", "copy of sound1.tif"]
    assert audit.copy_keys[0] == audit.copy_keys[4]
    assert audit.copy_keys[1] == audit.copy_keys[5]
    assert audit.notes[0] == "distinct cells: a 2, b 2"
    audit.raise_leaks()


def test_counts_the_copy_that_the_given_split_uses(folder):
    folder.add("first.tif", cell(9), split="")
    folder.add("second.tif", cell(9), split="test")
    audit = audit_cells(folder.cells())
    assert audit.distinct.tolist() == [True] * 4 + [False, True]


def test_often_repeated_tile_is_padding_in_any_class(folder):
    padding = [folder.add(f"pad{number}.tif", cell(9), "ab"[number % 2], split="train") for number in range(12)]
    black = [folder.add(f"black{number}.tif", np.zeros((24, 24), np.uint8)) for number in range(12)]
    audit = audit_cells(folder.cells())
    assert kinds(audit) == [("padding", tuple(padding)), ("padding", tuple(black))]
    assert audit.distinct.tolist() == [True] * 4 + [False] * 24
    audit.raise_leaks()


def test_eleven_copies_are_no_padding(folder):
    for number in range(11):
        folder.add(f"copy{number}.tif", cell(9))
    audit = audit_cells(folder.cells())
    assert [finding.kind for finding in audit.findings] == ["copy"]
    assert audit.distinct.sum() == 5


def test_label_conflict_raises_even_if_leaks_are_allowed(folder, raises_code):
    folder.add("other.tif", np.rot90(cell(0)), "b")
    audit = audit_cells(folder.cells())
    assert [finding.kind for finding in audit.findings] == ["label conflict", "turned copy"]
    assert audit.findings[0].detail == "a / b"
    for allowed in (False, True):
        with raises_code("cells.label_conflict") as caught:
            audit.raise_leaks(allowed)
        assert "sound0.tif, other.tif" in str(caught.value)


def test_cell_in_two_parts_raises_unless_allowed(folder, raises_code):
    folder.add("train.tif", cell(9), split="train")
    folder.add("test.tif", cell(9)[::-1], split="test")
    folder.add("unused.tif", cell(0), split="")
    audit = audit_cells(folder.cells())
    assert [finding.kind for finding in audit.findings] == ["copy across parts", "copy", "turned copy"]
    assert audit.findings[0].detail == "test / train"
    with raises_code("cells.leak") as caught:
        audit.raise_leaks()
    for text in ("--allow-leaks", "train.tif, test.tif"):
        assert text in str(caught.value)
    audit.raise_leaks(allow_leaks=True)


def test_donor_in_two_parts_raises_unless_allowed(folder, raises_code):
    for number, part in enumerate(("train", "train", "validation", "")):
        folder.add(f"donor{number}.tif", cell(10 + number), donor="d7", split=part)
    folder.add("else.tif", cell(20), donor="", split="test")
    audit = audit_cells(folder.cells())
    assert kinds(audit) == [("donor across parts", ("donor0.tif", "donor1.tif", "donor2.tif"))]
    assert audit.findings[0].detail == "donor d7 in train (2) / validation (1)"
    with raises_code("cells.leak") as caught:
        audit.raise_leaks()
    assert "donor d7" in str(caught.value)
    audit.raise_leaks(allow_leaks=True)


def test_shortens_long_lists_of_findings(folder, raises_code):
    for number in range(60):
        folder.add(f"x{number}.tif", cell(100 + number // 2), split=("train", "test")[number % 2])
    with raises_code("cells.leak") as caught:
        audit_cells(folder.cells()).raise_leaks()
    assert "30 leak" in str(caught.value)
    lines = str(caught.value).splitlines()
    assert len(lines) == 22
    assert "and 10 more" in lines[-1]


def test_finds_unreadable_constant_and_saturated_files(folder):
    (folder.root / "broken.tif").write_bytes(b"II*\0")
    broken = folder.add("broken.tif", None)
    grey = folder.add("grey.tif", np.full((24, 24), 77, np.uint8))
    also = folder.add("also.tif", np.full((24, 24), 77, np.uint8), "b")
    bright = cell(9).copy()
    bright[:8] = bright.max()
    bright = folder.add("bright.tif", bright)
    twelve = cell(10).astype(np.uint16) * 16
    twelve[:8] = 4095
    twelve = folder.add("twelve.tif", twelve)
    audit = audit_cells(folder.cells())
    assert kinds(audit) == [
        *(("unreadable", (broken,)), ("constant", (grey,)), ("constant", (also,))),
        *(("saturated", (bright,)), ("saturated", (twelve,)), ("mixed depth", (twelve,))),
    ]
    details = [finding.detail for finding in audit.findings]
    assert str(folder.root / broken) in details[0]
    assert details[1] == "every pixel is 77"
    assert details[4] == "33% of the pixels are 4095"
    assert audit.exclusions[4:] == ["unreadable", "constant", "constant", "", ""]


def test_reports_mixed_depth_and_colour(folder):
    deep = folder.add("deep.tif", cell(9).astype(np.float32))
    folder.add("colour.tif", np.stack([cell(10)] * 3, axis=-1))
    audit = audit_cells(folder.cells())
    assert kinds(audit) == [("mixed depth", (deep,))]
    assert audit.findings[0].detail == "several depths: float32, uint8"
    assert audit.notes[1] == (
        "images: 4 of 24 x 24 px grey, uint8; 1 of 24 x 24 px grey, float32; 1 of 24 x 24 px colour, uint8"
    )


def test_near_copies_only_warn(folder):
    noisy = cell(0) + np.random.default_rng(0).integers(0, 3, (24, 24), dtype=np.uint8)
    folder.rows[0]["split"] = "train"
    near = folder.add("near.tif", noisy, "b", split="test")
    audit = audit_cells(folder.cells())
    assert kinds(audit) == [("near-copy", ("sound0.tif", near))]
    assert "(train / test)" in audit.findings[0].detail
    assert audit.distinct.all()
    audit.raise_leaks()
    assert audit_cells(folder.cells(), near_copies=False).clean


def test_augmented_copies_are_no_findings(folder):
    folder.add("augmented.tif", np.rot90(cell(0)), augmented="sound0.tif")
    folder.add("noisy.tif", cell(1) + np.uint8(1), "b", augmented="sound1.tif")
    audit = audit_cells(folder.cells())
    assert audit.clean
    assert audit.distinct.all()
    assert len(set(audit.copy_keys)) == 6


def test_worst_findings_come_first_and_all_files_are_listed(folder):
    folder.add("copy.tif", cell(1))
    folder.add("black.tif", np.zeros((24, 24), np.uint8))
    frame = audit_cells(folder.cells()).to_frame()
    assert list(frame["kind"]) == ["label conflict"] * 2 + ["constant"] + ["copy"] * 2
    assert list(frame["finding"]) == [1, 1, 2, 3, 3]
    assert list(frame["path"]) == ["sound1.tif", "copy.tif", "black.tif", "sound1.tif", "copy.tif"]
    assert set(frame["kind"]) <= set(FINDING_KINDS)


def test_audit_changes_nothing_on_disk(folder):
    folder.add("copy.tif", cell(0))
    cells = folder.cells()
    before = {f: f.read_bytes() for f in folder.root.iterdir()}
    audit_cells(cells)
    assert {f: f.read_bytes() for f in folder.root.iterdir()} == before


def test_thumbnails_on_disk_give_the_same_audit(folder, monkeypatch):
    folder.add("near.tif", (cell(0) + np.random.default_rng(0).normal(0, 2, (24, 24))).astype(np.uint8))
    folder.add("again.tif", np.rot90(cell(1)), "b")
    in_memory = audit_cells(folder.cells())
    assert {finding.kind for finding in in_memory.findings} == {"near-copy", "turned copy"}
    monkeypatch.setattr(audit_module, "MAX_CELLS_IN_MEMORY", 2)
    assert audit_cells(folder.cells()) == in_memory


def test_full_disk_for_thumbnails_is_named(folder, monkeypatch, raises_code):
    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(audit_module, "MAX_CELLS_IN_MEMORY", 2)
    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    with raises_code("cells.no_space") as caught:
        audit_cells(folder.cells())
    for text in ("No space left on device", "TMPDIR"):
        assert text in str(caught.value)


def test_progress_rises_to_one(folder):
    shares: list[float] = []
    audit_cells(folder.cells(), progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.slow
@pytest.mark.real_data
def test_jurkat_has_the_cell_counts_of_its_readme(jurkat):
    audit = audit_cells(read_cells(jurkat, tile=40, image="brightfield.tif"))
    assert audit.notes[0] == (
        "distinct cells: anaphase 15, g1 720, g2 720, metaphase 57, prophase 486, s 720, telophase 24"
    )
    # Known defects: padding of four montages, one prophase cell twice, and one cell that is hardly shifted.
    padding = [finding for finding in audit.findings if finding.kind == "padding"]
    assert sorted(len(finding.paths) for finding in padding) == [234, 663, 696, 704]
    for finding in padding:
        assert len({path.split("/")[0] for path in finding.paths}) == 1
    assert [finding.kind for finding in audit.findings if finding.kind != "padding"] == ["copy", "near-copy"]


@pytest.mark.slow
@pytest.mark.real_data
def test_pbc_is_clean(pbc):
    cells = read_cells(pbc)
    sample = cells.where(np.arange(len(cells)) % 5 == 0)
    audit = audit_cells(sample)
    assert audit.clean
    assert audit.distinct.all()


@pytest.mark.real_data
def test_a_jpeg_saved_again_is_a_near_copy(pbc, tmp_path):
    for number, path in enumerate(sorted((pbc / "basophil").glob("*.jpg"))[:5]):
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / f"{number}.jpg").write_bytes(path.read_bytes())
    with Image.open(tmp_path / "x" / "2.jpg") as image:
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "x" / "again.jpg", quality=70)
    assert kinds(audit_cells(read_cells(tmp_path))) == [("near-copy", ("x/2.jpg", "x/again.jpg"))]


def test_prints_the_first_ten_of_many_findings(draw, tmp_path, capsys):
    from urnet.cli.app import run

    folder = draw(tmp_path / "cells", 30, classes=("bar", "disc"))
    for number in range(25):
        Image.fromarray(np.full((24, 24), number, np.uint8)).save(folder / "bar" / f"flat{number:02d}.png")
    for number in range(14):
        Image.fromarray(np.eye(24, dtype=np.uint8)).save(folder / "disc" / f"same{number:02d}.png")
    assert run(["audit", str(folder)]) == 1
    printed = capsys.readouterr().out
    assert printed.count("constant: every pixel is") == 10
    assert "constant: … and 15 more of 25" in printed
    assert "  … and 4 more files" in printed
    assert printed.splitlines()[-1].startswith("27 finding(s): 25 constant, 1 padding, 1 near-copy")
    assert run(["audit", str(folder), "--out", str(tmp_path / "all.csv")]) == 1
    assert f"15 more of 25; see {tmp_path / 'all.csv'}" in capsys.readouterr().out
    assert (tmp_path / "all.csv").read_text(encoding="utf-8").count("constant") == 25
