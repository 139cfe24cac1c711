"""Calibration of a run: its cells, its repetition, and its errors."""

import shutil

import numpy as np
import pandas as pd
import pytest

from urnet.run_folder import Run
from urnet.training import calibrate as calibrating
from urnet.training.calibrate import calibrate, calibrate_model
from urnet.training.fit import train

SHORT = ("train.epochs=1", "augment.per_class=8")


@pytest.fixture
def run(trained):
    """A copy next to the cells folder, so that its relative paths stay valid."""
    copy = trained.folder.with_name("calibrated-copy")
    yield Run(shutil.copytree(trained.folder, copy, ignore=shutil.ignore_patterns("evaluation")))
    shutil.rmtree(copy)


def test_training_leaves_the_calibration_that_calibrate_makes(trained, run):
    for name in ("calibration.json", "calibration.safetensors"):
        (run.model / name).unlink()
    calibrate(run)
    for name in ("calibration.json", "calibration.safetensors"):
        assert (run.model / name).read_bytes() == (trained.model / name).read_bytes()


def test_the_confusion_counts_the_test_part_with_a_column_of_those_rejected(trained):
    calibration = trained.load_model().calibration
    assert calibration.parts == {"train": 42, "validation": 6, "test": 12}
    assert calibration.reference_part == "test"
    assert calibration.confusion.shape == (3, 4)
    assert calibration.confusion.sum(axis=1).tolist() == [4, 4, 4]
    assert [len(scores) for scores in calibration.scores] == [4, 4, 4]
    assert calibration.false_rejection == 0.02


@pytest.mark.slow
def test_another_rate_rejects_more(run, shapes):
    paths = sorted(shapes.rglob("*.png"))
    rejected = []
    for rate in (0.02, 0.3):
        steps = []
        found = calibrate(run, false_rejection=rate, progress=lambda *step, steps=steps: steps.append(step))
        assert found.false_rejection == run.load_model().calibration.false_rejection == rate
        assert steps[-1] == ("calibrate", 1.0)
        rejected.append((run.load_model().predict(paths)["rejected"] != "").mean())
    assert rejected[0] < rejected[1]
    assert 0.15 < rejected[1] < 0.5


@pytest.mark.slow
def test_a_damaged_calibration_can_be_replaced(run):
    (run.model / "calibration.json").write_text("{", encoding="utf-8")
    calibrate(run)
    assert run.load_model().calibration is not None


@pytest.mark.slow
def test_a_large_training_part_is_sampled_with_the_seed(run, monkeypatch):
    monkeypatch.setattr(calibrating, "TRAIN_CELLS", 20)
    one, same = calibrate(run), calibrate(run)
    assert one.parts["train"] == 20
    assert (one.rejection.quantiles == same.rejection.quantiles).all()


@pytest.mark.parametrize("rate", [0, -1, 0.6, 2])
def test_a_rate_out_of_range_is_refused(run, rate, raises_code):
    with raises_code("calibration.false_rejection"):
        calibrate(run, false_rejection=rate)


@pytest.mark.slow
def test_protocol_paper_has_nothing_to_calibrate_on(shapes, tiny, tmp_path, raises_code):
    run = train(shapes, tiny, tmp_path / "run", overrides=[*SHORT, "protocol=paper"])[0]
    with raises_code("calibration.protocol"):
        calibrate(run)


@pytest.mark.slow
def test_without_a_test_part_the_confusion_is_counted_on_the_validation_part(shapes, tiny, tmp_path):
    paths = sorted(shapes.rglob("*.png"))
    rows = [(p.as_posix(), p.parent.name, "validation" if int(p.stem) < 4 else "train") for p in paths]
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(tmp_path / "cells.csv", index=False)
    run = train(tmp_path / "cells.csv", tiny, tmp_path / "run", overrides=SHORT)[0]
    calibration = run.load_model().calibration
    assert calibration.reference_part == "validation"
    assert calibration.confusion.sum() == 12


@pytest.mark.slow
def test_edge_and_touching_of_the_table_are_learned_and_applied(shapes, tiny, tmp_path):
    paths = sorted(shapes.rglob("*.png"))
    rows = [(p.as_posix(), p.parent.name, 0.0, 0.02) for p in paths]
    pd.DataFrame(rows, columns=["path", "label", "edge", "touching"]).to_csv(tmp_path / "cells.csv", index=False)
    run = train(tmp_path / "cells.csv", tiny, tmp_path / "run", overrides=SHORT)[0]
    model, cells = run.load_model(), run.cells().part("test")
    limits = model.calibration.rejection.limits()
    assert limits["cut by the field's border"] == pytest.approx(0.03, abs=0.03)
    images = model.read(cells)
    features = np.concatenate([outputs.features for outputs in model.outputs(model.config.scaling.apply(images))])
    before = model.reject(images, features, cells.table)
    cut = cells.table.assign(edge=["0.5"] + [""] * (len(cells) - 1))
    after = model.reject(images, features, cut)
    assert after[0] == "cut by the field's border" != before[0]
    assert after[1:] == before[1:]


def test_a_part_without_cells_is_named(trained, raises_code):
    cells = trained.cells()
    with raises_code("cells.empty_part"):
        calibrate_model(trained.load_model(), cells.where(cells.table["split"] != "validation"))
