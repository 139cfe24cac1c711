"""Comparison of trained runs."""

import shutil

import pandas as pd
import pytest

from urnet.benchmark.compare import compare
from urnet.evaluation.evaluate import evaluate
from urnet.training.fit import train

SHORT = ("train.epochs=1", "augment.per_class=8")


@pytest.fixture(scope="module")
def runs(shapes, tiny, tmp_path_factory):
    """Short runs over the shapes, by name; not to be changed."""
    home = tmp_path_factory.mktemp("runs")

    def run(name, *overrides, seed=0, cells=shapes):
        train(cells, tiny, home / name, overrides=[*SHORT, *overrides], seed=seed)
        return home / name

    return {
        "cv": run("cv", "split.folds=2"),
        "other-cv": run("deep/er/other-cv", "split.folds=2", "enhancer.name=none", seed=1),
        "one": run("one"),
        "deep": run("deep/er/one", seed=2),
        "fold0": run("fold0", "split.folds=2", "split.fold=0", seed=3),
        "fold1": run("fold1", "split.folds=2", "split.fold=1", seed=3),
        "elsewhere": run("elsewhere", "split.seed=5"),
        "two": run("two", "classes.bar=bar", "classes.round=[disc, ring]"),
    }


def differences(folder) -> pd.DataFrame:
    return pd.read_csv(folder / "differences.csv")


@pytest.mark.slow
def test_two_runs(runs, trained, tmp_path):
    steps = []
    report = compare([trained.folder, runs["one"]], tmp_path / "out", progress=lambda *step: steps.append(step)).report
    assert report == tmp_path / "out" / "report.html"
    assert steps[0] == ("test", 0.0)
    assert steps[-1] == ("test", 1.0)
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert results["recipe"].tolist() == ["run", "one"]
    assert set(results["status"]) == {"done"}
    found = differences(tmp_path / "out")
    assert set(zip(found["first"], found["second"], strict=True)) == {("run", "one")}
    accuracy = [
        evaluate(run, out=tmp_path / run.name).metrics["accuracy"]["value"] for run in (trained.folder, runs["one"])
    ]
    row = found[found["metric"] == "accuracy"].iloc[0]
    assert row["difference"] == pytest.approx(accuracy[1] - accuracy[0])
    assert set(found["cells"]) == {12}
    page = report.read_text(encoding="utf-8")
    assert "these two trained models" in page
    assert found["chance"].isna().all()
    assert page.count("<img") >= 6
    for name in ("compare.md", "compare-cost.tex", "differences.md"):
        assert (tmp_path / "out" / "tables" / name).is_file()


@pytest.mark.slow
def test_a_cross_validation_against_another_in_a_deeper_folder(runs, tmp_path):
    """Each run names the same images from where it is."""
    compare([runs["cv"], runs["other-cv"]], tmp_path / "out")
    found = differences(tmp_path / "out")
    assert set(found["cells"]) == {60}
    assert set(found["folds"]) == {2}
    assert "t over 2 folds" in found["method"][0]
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert results[["recipe", "fold"]].to_numpy().tolist() == [["cv", 0], ["cv", 1], ["other-cv", 0], ["other-cv", 1]]


@pytest.mark.slow
def test_repeats_of_a_cross_validation_are_compared_together(runs, shapes, tiny, tmp_path):
    for name in ("a", "b"):
        for repeat in (0, 1):
            folder = tmp_path / name / f"repeat{repeat}"
            train(shapes, tiny, folder, overrides=[*SHORT, "split.folds=2", f"split.seed={repeat}"])
    compare([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    found = differences(tmp_path / "out")
    assert found[["repeats", "folds"]].drop_duplicates().to_numpy().tolist() == [[2, 4]]
    assert set(found["cells"]) == {60}
    compare([tmp_path / "a", tmp_path / "b" / "repeat1"], tmp_path / "one")
    assert set(differences(tmp_path / "one")["cells"]) == {60}


@pytest.mark.slow
def test_a_run_of_one_fold_is_compared_on_that_fold(runs, tmp_path):
    compare([runs["cv"], runs["fold1"]], tmp_path / "out")
    assert set(differences(tmp_path / "out")["cells"]) == {30}


@pytest.mark.slow
def test_runs_of_the_same_name_are_told_apart_by_their_folders(runs, tmp_path):
    compare([runs["one"], runs["deep"]], tmp_path / "out")
    names = pd.read_csv(tmp_path / "out" / "results.csv")["recipe"].tolist()
    assert names == [f"{runs['one'].parent.name}/one", "er/one"]


@pytest.mark.slow
def test_a_second_comparison_does_not_classify_again(runs, tmp_path, monkeypatch):
    compare([runs["one"], runs["deep"]], tmp_path / "first")
    monkeypatch.setattr("urnet.benchmark.collect.score_job", lambda cell: pytest.fail("classified again"))
    compare([runs["one"], runs["deep"]], tmp_path / "second")
    first, second = (tmp_path / name / "differences.csv" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.slow
def test_one_run_cannot_be_compared(runs, tmp_path, raises_code):
    for given in ([], [runs["one"]]):
        with raises_code("benchmark.too_few_runs"):
            compare(given, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "code"),
    [
        (("one", "elsewhere"), "evaluation.cells_differ"),
        (("one", "cv"), "evaluation.cells_differ"),
        (("fold0", "fold1"), "evaluation.cells_differ"),
        (("one", "two"), "evaluation.classes_differ"),
        (("one", "one"), "evaluation.run_repeated"),
    ],
)
def test_runs_that_cannot_be_compared(runs, tmp_path, names, code, raises_code):
    with raises_code(code):
        compare([runs[name] for name in names], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_run_in_two_spellings_is_named_twice(runs, tmp_path, raises_code):
    with raises_code("evaluation.run_repeated"):
        compare([runs["one"], runs["one"] / ".." / "one"], tmp_path / "out")


@pytest.mark.slow
def test_cells_in_another_folder_are_other_cells_despite_equal_names(runs, shapes, draw, tiny, tmp_path, raises_code):
    others = draw(tmp_path / "cells", 20, seed=1)
    run = train(others, tiny, tmp_path / "run", overrides=SHORT)[0]
    with raises_code("evaluation.cells_differ"):
        compare([runs["one"], run.folder], tmp_path / "out")


def test_unfinished_runs_and_other_folders_are_refused(runs, shapes, tmp_path, raises_code):
    home = runs["one"].parent
    unfinished = shutil.copytree(runs["one"], home / "unfinished")
    shutil.rmtree(unfinished / "model")
    shutil.rmtree(unfinished / "benchmark", ignore_errors=True)
    half = shutil.copytree(runs["cv"], home / "half")
    shutil.rmtree(half / "fold1" / "model")
    for folder, code, names in (
        (unfinished, "model.not_found", ["unfinished", "urnet train"]),
        (half, "evaluation.folds_unfinished", ["half", "1 of 2"]),
        (shapes, "run.not_a_run", [str(shapes)]),
        (runs["one"] / "model", "run.is_bundle", ["model"]),
        (tmp_path / "nothing", "run.not_a_run", ["nothing"]),
    ):
        with raises_code(code) as caught:
            compare([runs["one"], folder], tmp_path / "out")
        assert all(name in str(caught.value) for name in names)
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_left_alone(runs, tmp_path, raises_code):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    with raises_code("run.exists"):
        compare([runs["one"], runs["deep"]], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
