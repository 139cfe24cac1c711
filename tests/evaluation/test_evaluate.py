"""From a run to metrics.json, predictions.csv, figures and report: on its own parts and on other cells."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from urnet.counting.estimate import adjusted_count
from urnet.evaluation.evaluate import evaluate
from urnet.images.read import read_image
from urnet.nets import Enhancer
from urnet.training.fit import train

SHORT = ("train.epochs=1", "augment.per_class=8")


@pytest.fixture(scope="module")
def evaluation(trained):
    return evaluate(trained)


@pytest.fixture
def run(trained, tmp_path):
    """A copy next to the cells folder, so that its relative paths stay valid."""
    copy = trained.folder.parent / f"copy-{tmp_path.name}"
    yield shutil.copytree(trained.folder, copy, ignore=shutil.ignore_patterns("evaluation"))
    shutil.rmtree(copy)


@pytest.mark.slow
def test_the_folder_of_an_evaluation(evaluation, trained):
    assert evaluation.folder == trained.folder / "evaluation" / "test"
    assert {path.name for path in evaluation.folder.iterdir()} == {
        *("metrics.json", "predictions.csv", "figures", "report.html"),
    }
    assert {path.stem for path in (evaluation.folder / "figures").iterdir()} == {
        *("confusion", "curves", "gallery", "grad_cam", "reliability", "class_counts"),
    }
    assert all(min(read_image(path).shape[:2]) > 100 for path in (evaluation.folder / "figures").iterdir())


def is_figure(entry) -> bool:
    value, interval = entry["value"], entry["interval"]
    inside = interval is None or (len(interval) == 2 and interval[0] <= value <= interval[1])
    return entry.keys() == {"value", "interval"} and (value is None or 0 <= value <= 1) and inside


@pytest.mark.slow
def test_metrics_json_has_the_promised_form(evaluation):
    metrics = json.loads((evaluation.folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics == evaluation.metrics
    for name in ("accuracy", "macro_recall", "macro_precision", "macro_f1", "expected_calibration_error"):
        assert is_figure(metrics[name])
    assert list(metrics["per_class"]) == metrics["classes"] == ["bar", "disc", "ring"]
    for figures in metrics["per_class"].values():
        assert figures.keys() == {"recall", "precision", "f1", "support"}
        assert all(is_figure(figures[name]) for name in ("recall", "precision", "f1"))
        assert type(figures["support"]) is int
    matrix = metrics["confusion_matrix"]
    assert all(type(count) is int for row in matrix for count in row)
    assert [sum(row) for row in matrix] == [f["support"] for f in metrics["per_class"].values()] == [4, 4, 4]
    assert type(metrics["n"]) is int
    assert metrics["n"] == 12
    assert metrics["protocol"] == "honest"
    assert metrics["optimistic"] is False
    assert metrics["intervals"]["unit"] == "source image"
    assert metrics["versions"].keys() >= {"urnet", "torch", "python"}


def test_predictions_hold_a_row_for_each_cell_and_agree_with_the_metrics(evaluation, trained):
    table = pd.read_csv(evaluation.folder / "predictions.csv")
    assert table.columns[:6].tolist() == ["path", "label", "predicted", "p_bar", "p_disc", "p_ring"]
    parts = pd.read_csv(trained.cells_path)
    assert sorted(table["path"]) == sorted(parts.loc[parts["split"] == "test", "path"])
    right = (table["label"] == table["predicted"]).mean()
    assert right == pytest.approx(evaluation.metrics["accuracy"]["value"])
    assert np.allclose(table[["p_bar", "p_disc", "p_ring"]].sum(axis=1), 1, atol=1e-5)


def test_calibration_metrics_agree_with_the_predictions(evaluation, trained):
    trust = evaluation.metrics["calibration"]
    assert trust["temperature"] == [trained.load_model().calibration.temperature]
    table = pd.read_csv(evaluation.folder / "predictions.csv", keep_default_na=False)
    assert (table["rejected"] != "").mean() == pytest.approx(trust["rejection"]["rejected"]["value"])
    covered = [label in names.split("|") for label, names in zip(table["label"], table["set"], strict=True)]
    assert np.mean(covered) == pytest.approx(trust["sets"]["covered"]["value"])
    assert table["set"].str.split("|").str.len().mean() == pytest.approx(trust["sets"]["mean_size"]["value"])
    error = trust["expected_calibration_error"]
    assert error["after"] == evaluation.metrics["expected_calibration_error"]
    assert is_figure(error["before"])
    assert evaluation.metrics["n"] == len(table) == 12
    page = evaluation.report.read_text(encoding="utf-8")
    assert "How far to trust single cells" in page
    assert f"A prediction set has {trust['sets']['mean_size']['value']:.2f} of 3 classes" in page
    sizes = trust["sets"]["size_per_class"]
    assert np.mean([size["value"] for size in sizes.values()]) == pytest.approx(trust["sets"]["mean_size"]["value"])


@pytest.mark.slow
def test_a_run_without_calibration_is_evaluated(run):
    for name in ("calibration.json", "seal.json"):  # there was no seal either
        (run / "model" / name).unlink()
    result = evaluate(run)
    assert result.metrics["calibration"] is None
    assert "the model is not calibrated" in result.metrics["differential_note"]
    assert "How far to trust single cells" not in result.report.read_text(encoding="utf-8")
    assert "set" not in pd.read_csv(result.folder / "predictions.csv")


def test_the_differential_says_why_it_is_not_corrected(evaluation, trained):
    """A correction that was measured on these cells would return their true shares."""
    note = evaluation.metrics["differential_note"]
    assert note.startswith("Counted, not corrected: the correction was measured on these very cells")
    assert note in evaluation.report.read_text(encoding="utf-8")
    confusion = trained.load_model().calibration.confusion
    shares = adjusted_count(confusion[:, :-1].sum(axis=0), confusion)
    assert shares == pytest.approx([one["true_percent"] / 100 for one in evaluation.metrics["differential"].values()])


def test_the_report_needs_no_other_file(evaluation):
    page = evaluation.report.read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= 4
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "name: tiny" in page
    assert "optimistic" not in page


@pytest.mark.slow
def test_the_part_and_the_output_folder_can_be_chosen(trained, tmp_path):
    steps = []
    result = evaluate(trained.folder, split="validation", out=tmp_path / "prüfung", progress=lambda *s: steps.append(s))
    assert result.folder == tmp_path / "prüfung"
    assert result.metrics["part"] == "validation"
    assert result.metrics["n"] == 6
    last = dict(steps)
    assert set(last) == {"read cells", "classify", "draw"}
    assert set(last.values()) == {1.0}


@pytest.mark.slow
def test_the_range_of_the_enhanced_images_is_stated_and_warned_of(trained, evaluation, tmp_path, monkeypatch):
    stated = evaluation.metrics["enhanced"]
    assert stated.keys() == {"minimum", "maximum", "share_outside", "correlation"}
    assert not any("leaves [0, 1]" in warning for warning in evaluation.metrics["warnings"])
    shown = f"enhanced pixels lie between {stated['minimum']:.2f} and {stated['maximum']:.2f}"
    assert shown in evaluation.report.read_text(encoding="utf-8")

    forward = Enhancer.forward
    monkeypatch.setattr(Enhancer, "forward", lambda self, x: 100 * forward(self, x))
    left = evaluate(trained, out=tmp_path / "left")
    assert left.metrics["enhanced"]["maximum"] == pytest.approx(100 * stated["maximum"], rel=1e-3)
    assert left.metrics["enhanced"]["share_outside"] > 0.9
    warning = next(warning for warning in left.metrics["warnings"] if "leaves [0, 1]" in warning)
    assert "The enhanced image leaves [0, 1]: " in left.report.read_text(encoding="utf-8")
    assert "enhancer.bounded=true" in warning


@pytest.mark.slow
def test_a_warning_says_that_enhanced_images_hardly_differ_from_raw_ones(trained, evaluation, tmp_path, monkeypatch):
    assert -1 <= evaluation.metrics["enhanced"]["correlation"] <= 1
    monkeypatch.setattr(Enhancer, "forward", lambda self, x: 0.5 * x + 0.2)
    same = evaluate(trained, out=tmp_path / "same")
    assert same.metrics["enhanced"]["correlation"] == pytest.approx(1, abs=1e-4)
    assert "almost the raw images (mean correlation 1.000)" in same.report.read_text(encoding="utf-8")


def test_in_python_the_result_is_an_object_with_frames(evaluation):
    classes, matrix = evaluation.classes, evaluation.confusion_matrix
    assert classes.index.tolist() == matrix.index.tolist() == matrix.columns.tolist() == ["bar", "disc", "ring"]
    assert classes["cells"].tolist() == matrix.sum(axis=1).tolist() == [4, 4, 4]
    assert classes["recall"].tolist() == pytest.approx([matrix.loc[name, name] / 4 for name in matrix])
    assert (classes["recall_low"] <= classes["recall"]).all()
    assert len(evaluation.predictions) == 12
    pd.testing.assert_frame_equal(
        evaluation.predictions, pd.read_csv(evaluation.folder / "predictions.csv", keep_default_na=False)
    )
    assert evaluation.judgement.startswith(f"The model is right for {int(np.trace(matrix))} of 12 cells")
    assert repr(evaluation).startswith("<Evaluation of tiny on test: 12 cells, accuracy ")
    assert evaluation.plot().axes
    html = evaluation._repr_html_()
    assert html.count("<table") == 2
    assert "recall, %" in html


@pytest.mark.slow
def test_a_second_evaluation_gives_the_same_metrics(trained, evaluation):
    assert evaluate(trained).metrics == evaluation.metrics


def test_bad_requests(trained, tmp_path, raises_code):
    with raises_code("evaluation.split_unknown"):
        evaluate(trained, split="tset")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine", encoding="utf-8")
    with raises_code("run.exists"):
        evaluate(trained, out=tmp_path / "full")
    for code, request in (
        ("run.not_a_run", [tmp_path / "nothing"]),
        ("cells.not_found", [trained, tmp_path / "nothing"]),
    ):
        with raises_code(code) as caught:
            evaluate(*request)
        assert "nothing" in str(caught.value)


def test_an_unfinished_run_has_nothing_to_evaluate(run, raises_code):
    (run / "model" / "config.json").unlink()
    with raises_code("model.not_found") as caught:
        evaluate(run)
    assert "urnet train" in str(caught.value)


@pytest.mark.slow
def test_other_cells_without_a_split_are_used_whole(trained, draw, tmp_path):
    other = draw(tmp_path / "other", 9, seed=7)
    result = evaluate(trained, other, out=tmp_path / "out")
    assert result.metrics["n"] == 27
    assert result.metrics["part"] == "other"
    assert "urnet differential corrects it" in result.metrics["differential_note"]
    assert not any("training" in warning for warning in result.metrics["warnings"])


@pytest.mark.slow
def test_other_cells_with_a_split_give_the_part(trained, draw, tmp_path, raises_code):
    other = draw(tmp_path / "other", 10, seed=7)
    paths = sorted(other.rglob("*.png"))
    parts = ["train"] * 6 + ["test"] * 4
    rows = [(p.relative_to(other).as_posix(), p.parent.name, parts[int(p.stem)]) for p in paths]
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(other / "cells.csv", index=False)
    result = evaluate(trained, other, out=tmp_path / "out")
    assert result.metrics["n"] == 12
    assert result.metrics["part"] == "other-test"
    with raises_code("evaluation.part_empty"):
        evaluate(trained, other, split="validation", out=tmp_path / "out2")


@pytest.mark.slow
def test_training_cells_are_recognised_in_any_orientation(trained, draw, tmp_path):
    other = draw(tmp_path / "other", 9, seed=7)
    table = pd.read_csv(trained.cells_path)
    for number, part in enumerate(("train", "train", "validation", "test")):
        path = trained.folder / table.loc[table["split"] == part, "path"].iloc[number]
        Image.open(path).rotate(90).save(other / path.parent.name / f"turned{number}.png")
    result = evaluate(trained, other, out=tmp_path / "out")
    assert (
        "3 of 31 cells took part in this run's training; the figures are too optimistic." in result.metrics["warnings"]
    )
    assert "took part" in result.report.read_text(encoding="utf-8")


@pytest.mark.slow
def test_copies_and_unreadable_images_of_other_cells_are_left_out_and_counted(trained, draw, tmp_path):
    other = draw(tmp_path / "other", 5, seed=7)
    shutil.copy(other / "bar" / "000.png", other / "bar" / "again.png")
    (other / "disc" / "broken.png").write_bytes(b"")
    result = evaluate(trained, other, out=tmp_path / "out")
    assert result.metrics["n"] == 15
    assert any(w.startswith("2 image(s) are not counted:") for w in result.metrics["warnings"])


@pytest.mark.slow
def test_labels_that_the_model_does_not_know_are_refused(trained, draw, tmp_path, raises_code):
    other = draw(tmp_path / "other", 3, seed=7)
    (other / "ring").rename(other / "square")
    with raises_code("evaluation.label_unknown"):
        evaluate(trained, other)


@pytest.mark.slow
def test_a_class_may_be_absent_from_other_cells(trained, draw, tmp_path):
    result = evaluate(trained, draw(tmp_path / "other", 4, seed=7, classes=("bar", "disc")), out=tmp_path / "out")
    assert result.metrics["per_class"]["ring"]["recall"]["value"] is None
    assert result.metrics["per_class"]["ring"]["support"] == 0


def test_another_depth_is_an_error_that_names_the_cell(trained, draw, tmp_path, raises_code):
    other = draw(tmp_path / "other", 3, seed=7, dtype=np.uint16)
    with raises_code("images.other_depth") as caught:
        evaluate(trained, other)
    assert all(part in str(caught.value) for part in ("bar/000.png", "uint16", "uint8"))


@pytest.mark.slow
def test_results_of_other_cells_with_the_same_name_are_not_overwritten(run, draw, tmp_path, raises_code):
    first = evaluate(run, draw(tmp_path / "a" / "cells", 3, seed=7))
    assert first.folder == run / "evaluation" / "cells"
    with raises_code("run.exists"):
        evaluate(run, draw(tmp_path / "b" / "cells", 3, seed=8))


@pytest.mark.slow
def test_a_run_without_its_images_can_evaluate_other_cells(draw, tiny, tmp_path, raises_code):
    cells = draw(tmp_path / "cells", 8)
    run = train(cells, tiny, tmp_path / "run", overrides=SHORT)[0]
    shutil.rmtree(cells)
    result = evaluate(run, draw(tmp_path / "other", 4, seed=7))
    assert any("not known whether these are among them" in warning for warning in result.metrics["warnings"])
    with raises_code("cells.files_missing"):
        evaluate(run)


@pytest.mark.slow
def test_protocol_paper_is_named_optimistic_everywhere(shapes, tiny, tmp_path):
    run = train(shapes, tiny, tmp_path / "run", overrides=[*SHORT, "protocol=paper"])[0]
    result = evaluate(run)
    assert result.metrics["protocol"] == "paper"
    assert result.metrics["optimistic"] is True
    assert result.metrics["warnings"][0].startswith("Protocol paper is optimistic")
    page = result.report.read_text(encoding="utf-8")
    assert "optimistic" in page
    assert "Protocol paper is optimistic: the epoch" not in page  # the report has a banner of its own
    assert result.metrics["n"] == sum(f["support"] for f in result.metrics["per_class"].values())


@pytest.mark.slow
def test_without_enhancer_there_is_no_gallery_and_without_feature_maps_no_grad_cam(shapes, tiny, tmp_path):
    recipe = tmp_path / "vit.yaml"
    recipe.write_text(
        "name: vit\ninput: {size: 32}\nenhancer: {name: none}\n"
        "classifier: {name: test_vit, pretrained: false, options: {img_size: 32}}\n"
        "train: {epochs: 1, batch_size: 16}\n",
        encoding="utf-8",
    )
    run = train(shapes, recipe, tmp_path / "run")[0]
    result = evaluate(run)
    assert {path.stem for path in (result.folder / "figures").iterdir()} == {
        *("confusion", "curves", "reliability", "class_counts"),
    }
    assert any(warning.startswith("No Grad-CAM: classifier test_vit") for warning in result.metrics["warnings"])
    assert result.metrics["enhanced"] is None


@pytest.mark.slow
def test_a_fold_folder_pools_test_parts_only(shapes, tiny, tmp_path, raises_code):
    train(shapes, tiny, tmp_path / "cv", overrides=[*SHORT, "split.folds=2"])
    (tmp_path / "cv" / "fold_notes").mkdir()
    result = evaluate(tmp_path / "cv")
    assert result.folder == tmp_path / "cv" / "evaluation" / "test"
    assert result.metrics["warnings"][0].startswith("2 folds are pooled")
    table = pd.read_csv(result.folder / "predictions.csv")
    assert table["fold"].value_counts().to_dict() == {0: 30, 1: 30}
    with raises_code("evaluation.folds_pool_test"):
        evaluate(tmp_path / "cv", split="train")
    with raises_code("run.is_cross_validation"):
        evaluate(tmp_path / "cv", shapes)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\n", b"a,b\n1,2\n", b"stage,epoch\ntrain,x\n"])
def test_a_damaged_history_is_named(run, content, raises_code):
    (run / "history.csv").write_bytes(content)
    with raises_code("run.history_damaged") as caught:
        evaluate(run)
    assert "history.csv" in str(caught.value)


def test_without_a_history_there_are_no_curves(run):
    (run / "history.csv").unlink()
    folder = evaluate(run).folder
    assert not (folder / "figures" / "curves.png").exists()
    assert (folder / "report.html").is_file()


def test_changed_labels_in_the_runs_table_are_refused(run, raises_code):
    text = (run / "cells.csv").read_text(encoding="utf-8")
    (run / "cells.csv").write_text(text.replace(",bar", ",foo"), encoding="utf-8")
    with raises_code("run.classes_changed"):
        evaluate(run)


def test_a_runs_table_without_split_is_refused(run, raises_code):
    table = pd.read_csv(run / "cells.csv", dtype=str).drop(columns="split")
    table.to_csv(run / "cells.csv", index=False)
    with raises_code("run.no_split") as caught:
        evaluate(run)
    assert "cells.csv" in str(caught.value)


@pytest.mark.slow
def test_intervals_over_training_donors_say_so(shapes, tiny, tmp_path):
    paths = sorted(shapes.glob("*/*.png"))
    rows = [(path.as_posix(), path.parent.name, f"d{k % 8}") for k, path in enumerate(paths)]
    pd.DataFrame(rows, columns=["path", "label", "donor"]).to_csv(tmp_path / "cells.csv", index=False)
    overrides = [*SHORT, "protocol=paper", "split.test=0.5"]
    run = train(tmp_path / "cells.csv", tiny, tmp_path / "run", overrides=overrides)[0]
    intervals = evaluate(run).metrics["intervals"]
    assert intervals["unit"] == "donor"
    assert "8 of these 8 gave cells to training too" in intervals["note"]


@pytest.mark.slow
def test_excluded_images_are_reported_for_the_runs_own_parts_only(shapes, tiny, tmp_path):
    cells = shutil.copytree(shapes, tmp_path / "cells")
    shutil.copy(cells / "bar" / "000.png", cells / "bar" / "zz.png")
    run = train(cells, tiny, tmp_path / "run", overrides=SHORT)[0]
    assert any("1 images of the table" in note and "1 copy" in note for note in evaluate(run).metrics["warnings"])
    other = evaluate(run, shapes, out=tmp_path / "other").metrics["warnings"]
    assert not any("of the table" in note for note in other)
