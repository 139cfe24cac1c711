"""Files of earlier versions open, with the same results."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

FROZEN = Path(__file__).parent / "frozen"
SMALL = (
    *("enhancer.width=1", "classifier.name=resnet10t", "classifier.options.channels=[4,4,4,4]"),
    *("classifier.options.stem_width=4", "classifier.pretrained=false", "classifier.weights=null", "input.size=32"),
    *("augment.per_class=24", "train.batch_size=16", "train.epochs=2", "pretrain.epochs=1", "pretrain.batch_size=16"),
)
"""Changes to the recipes of the benchmark folder."""
INTERRUPTED = (
    *("pretrain.epochs=0", "train.epochs=6", "augment.per_class=400", "enhancer.width=1"),
    *("classifier.options.channels=[4,4,4,4]", "classifier.options.stem_width=4"),
)
"""Changes to the recipe of the interrupted run."""


@pytest.fixture(params=sorted(folder.name for folder in FROZEN.iterdir() if folder.is_dir()))
def frozen(request, tmp_path) -> Path:
    """A copy of the files of one version."""
    return Path(shutil.copytree(FROZEN / request.param, tmp_path / request.param))


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_a_bundle_predicts_as_it_did(frozen, engine, tmp_path, monkeypatch):
    from urnet.bundle.model import Model
    from urnet.predict import predict_files

    monkeypatch.chdir(frozen)
    predict_files(Model.load("run"), ["cells"], tmp_path / "now.csv", engine=engine)
    before, now = table(frozen / "predictions.csv"), table(tmp_path / "now.csv")
    columns = ["path", "predicted", "rejected", "set"]
    pd.testing.assert_frame_equal(now[columns], before[columns])
    probabilities = [name for name in before if name.startswith("p_")]
    np.testing.assert_allclose(now[probabilities], before[probabilities], atol=1e-5)


@pytest.mark.slow
def test_a_run_is_evaluated_as_it_was(frozen):
    from urnet.evaluation.evaluate import evaluate

    before = json.loads((frozen / "run/evaluation/test/metrics.json").read_text(encoding="utf-8"))
    now = evaluate(frozen / "run", out=frozen / "again").metrics
    for name in ("accuracy", "macro_recall", "macro_precision", "macro_f1"):
        assert now[name]["value"] == pytest.approx(before[name]["value"], abs=1e-6), name
    assert now["n"] == before["n"]
    assert now["classes"] == before["classes"]


@pytest.mark.slow
def test_fields_are_cut_and_counted_as_they_were(frozen):
    from urnet.counting.differential import count_cells

    count_cells(frozen / "run", frozen / "fields.csv", frozen / "now", engine="torch")
    before, now = table(frozen / "count/differential.csv"), table(frozen / "now/differential.csv")
    columns = ["sample", "class", "count", "raw_percent", "cells", "accepted"]
    pd.testing.assert_frame_equal(now[columns], before[columns])


@pytest.mark.slow
def test_an_interrupted_run_is_resumed(frozen):
    from urnet.training.fit import train

    run = train(frozen / "cells", frozen / "recipe.yaml", frozen / "interrupted", overrides=INTERRUPTED, resume=True)[0]
    before, now = table(FROZEN / frozen.name / "interrupted/history.csv"), table(run.history_path)
    assert list(now["epoch"]) == [1, 2, 3, 4, 5, 6]
    pd.testing.assert_frame_equal(now.head(2), before.head(2))  # it was killed before the third one was kept
    assert run.load_model().classes == ("granulocyte", "mononuclear")


def test_a_recipe_is_read(frozen):
    from urnet.recipe import load_recipe

    recipe = load_recipe(frozen / "recipe.yaml")
    assert (recipe.name, recipe.enhancer.name, recipe.train.epochs) == ("frozen", "urnet", 14)
    assert load_recipe(frozen / "run/recipe.yaml") == recipe.model_copy(update={"seed": 0})


def test_labels_and_corrections_are_kept(frozen):
    pytest.importorskip("sqlalchemy")
    from urnet.serve.database.store import Store

    store = Store(frozen / "labels.db")
    try:
        progress = store.labels.progress("cells")
        assert (progress.cells, progress.labelled, progress.people) == (12, 6, {"Ada": 6, "Bela": 5})
        assert [(one.predicted, one.label) for one in store.reviews.read_reviewed("sample")] == [
            ("granulocyte", "mononuclear"),
            *[("granulocyte", "granulocyte")] * 3,
        ]
    finally:
        store.close()


@pytest.mark.slow
def test_a_benchmark_folder_is_read(frozen, monkeypatch):
    from urnet.benchmark.run import run_benchmark

    monkeypatch.setattr("urnet.benchmark.report._draw_figures", lambda *_: [])
    before = table(frozen / "bench/table3/results.csv").query("recipe == 'net1'")
    arguments = {"folds": 2, "scale": "laptop", "only": ["net1"], "overrides": SMALL, "train": False}
    done = run_benchmark("table3", frozen / "cells", frozen / "bench", **arguments)
    now = table(done.folder / "results.csv")
    columns = ["recipe", "fold", "accuracy", "macro_recall", "parameters", "status"]
    pd.testing.assert_frame_equal(now[columns], before[columns])


@pytest.mark.slow
def test_runs_of_a_benchmark_are_compared(frozen):
    from urnet.benchmark.compare import compare

    runs = sorted((frozen / "bench/runs").glob("*/seed0-fold0"))
    assert compare(runs, frozen / "comparison").report.is_file()
