"""Metrics of calibration, and the separation of unknown cells from known ones."""

import numpy as np
import pytest
from PIL import Image

from urnet.cells.copies import hash_any_orientation
from urnet.cells.read import find_images
from urnet.evaluation.calibration_metrics import calibration_metrics, mean_with_interval
from urnet.evaluation.out_of_distribution import COLUMNS, measure_rejection
from urnet.evaluation.predictions import overlap_warnings, score_run_part, training_cell_keys


def test_a_share_has_the_interval_of_a_proportion():
    hits = np.arange(400) % 4 == 0
    found = mean_with_interval(hits, np.ones(400, bool), np.arange(400))
    assert found["value"] == 0.25
    low, high = found["interval"]
    assert low == pytest.approx(0.25 - 1.96 * np.sqrt(0.25 * 0.75 / 400), abs=0.01)
    assert high == pytest.approx(0.25 + 1.96 * np.sqrt(0.25 * 0.75 / 400), abs=0.01)


def test_alike_cells_of_one_image_widen_the_interval():
    hits = np.repeat([True, False, False, False], 100)
    alone, together = (
        mean_with_interval(hits, np.ones(400, bool), groups)["interval"]
        for groups in (np.arange(400), np.arange(400) // 50)
    )
    assert together[1] - together[0] > 3 * (alone[1] - alone[0])


def test_a_share_of_nothing_is_undefined_and_a_share_of_none_has_an_exact_interval():
    nobody, everybody = np.zeros(30, bool), np.ones(30, bool)
    assert mean_with_interval(everybody, nobody, np.arange(30)) == {"value": None, "interval": None}
    assert mean_with_interval(nobody, everybody, np.arange(30))["interval"][0] == 0
    assert mean_with_interval(nobody, everybody, np.arange(30))["interval"][1] == pytest.approx(1 - 0.025 ** (1 / 30))


def test_calibration_metrics_are_none_without_calibration(trained):
    from dataclasses import replace

    from urnet.bundle.model import Model

    one = score_run_part(trained, "test", None)
    groups = np.arange(len(one.truth))
    assert calibration_metrics([one], groups)["rejection"]["false_rejection"] == 0.02
    assert calibration_metrics([replace(one, model=Model(one.model.config, one.model.joint))], groups) is None


def noisy(folder, count):
    (folder / "noise").mkdir(parents=True)
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (24, 24)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "noise" / f"{index}.png")


def test_noise_is_rejected_and_cells_of_the_same_kind_are_not(trained, draw, tmp_path):
    noisy(tmp_path / "cells", 15)
    draw(tmp_path / "cells", 15, classes=("disc",), seed=5)
    (tmp_path / "cells" / "disc").rename(tmp_path / "cells" / "plate")
    table = measure_rejection(trained, tmp_path / "cells").set_index("label")
    assert [*COLUMNS[1:]] == table.columns.tolist()
    assert table["cells"].to_dict() == {"noise": 15, "plate": 15, "": 12}
    assert table.loc["noise", "auroc"] == 1
    assert table.loc["noise", "auroc_low"] == pytest.approx(0.025 ** (1 / 12))  # as 12 single cells without an error
    assert table.loc["noise", "auroc_high"] == 1
    assert table.loc["noise", "rejected"] == 1
    assert 0.2 < table.loc["plate", "auroc"] < 0.85
    assert table.loc["plate", "auroc_low"] < table.loc["plate", "auroc"] < table.loc["plate", "auroc_high"]
    assert np.isnan(table.loc["", "auroc"])


def test_cells_of_known_classes_are_not_unknown(trained, shapes, raises_code):
    with raises_code("evaluation.no_unknown_cells"):
        measure_rejection(trained, shapes)


def test_a_run_without_calibration_has_no_rejection(trained, draw, tmp_path, monkeypatch, raises_code):
    from urnet.bundle.model import Model
    from urnet.run_folder import Run

    monkeypatch.setattr(Run, "load_model", lambda self: Model.load(self.folder, calibrated=False))
    with raises_code("evaluation.not_calibrated"):
        measure_rejection(trained, draw(tmp_path / "cells", 2))


def test_training_images_are_recognised(trained, shapes, draw, tmp_path):
    trained_on = training_cell_keys(trained)
    for folder, warnings in ((draw(tmp_path / "other", 3, seed=9), 0), (shapes, 1)):
        cells = find_images([folder])
        keys = [hash_any_orientation(cells.read(index)) for index in range(len(cells))]
        assert len(overlap_warnings(keys, trained_on)) == warnings
    assert "of 60 cells took part" in overlap_warnings(keys, trained_on)[0]
    assert overlap_warnings([], trained_on) == []
