"""A benchmark from cells to tables: its files, how it resumes, and its errors."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from urnet.benchmark import run as benchmark
from urnet.benchmark.compare import compare
from urnet.benchmark.run import run_benchmark
from urnet.cells.read import read_cells
from urnet.evaluation.evaluate import evaluate
from urnet.progress import NoProgress
from urnet.run_folder import Run
from urnet.training import fit

pytestmark = pytest.mark.slow

TWO_ROWS = {"only": ["net1", "net4"], "folds": 2, "scale": "laptop"}


def outcomes(out: Path) -> dict[str, int]:
    """Read the time at which each job was finished."""
    found = out.glob("runs/*/*/benchmark/outcome.json")
    return {path.relative_to(out).as_posix(): path.stat().st_mtime_ns for path in found}


def predictions(out: Path) -> dict[str, pd.DataFrame]:
    """Read the predictions of each job, by row and fold."""
    found = sorted(out.glob("runs/*/*/benchmark/predictions.csv.gz"))
    return {f"{path.parts[-4].rsplit('-', 1)[0]}/{path.parts[-3]}": pd.read_csv(path) for path in found}


def same_answers(some: dict[str, pd.DataFrame], others: dict[str, pd.DataFrame]) -> None:
    """Check for the same probabilities of the same cells; their paths depend on the place of the run folder."""
    assert some.keys() == others.keys()
    for name, table in some.items():
        pd.testing.assert_frame_equal(table.drop(columns="path"), others[name].drop(columns="path"), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def begun(phantoms, small, tmp_path_factory):
    """Two rows of Table 3 over two folds, finished; not to be changed."""
    out = tmp_path_factory.mktemp("begun") / "out"
    return out, run_benchmark("table3", phantoms, out, overrides=small, **TWO_ROWS)


@pytest.fixture
def copied(begun, tmp_path) -> Path:
    """A copy of `begun` that a test may change."""
    return shutil.copytree(begun[0], tmp_path / "nowhere" / "copied")


@pytest.fixture
def partial(copied) -> Path:
    """A copy of `begun` without the runs of Net4; its fold 0 comes next."""
    for folder in copied.glob("runs/net4-*"):
        shutil.rmtree(folder)
    shutil.rmtree(copied / "table3")
    return copied


@pytest.fixture
def go_on(phantoms, small, undrawn):
    """Repeat the command of `begun` with a few changes."""

    def call(out, overrides=(), **changes):
        settings = {"table": "table3", "cells": phantoms, **TWO_ROWS} | changes
        return run_benchmark(
            settings.pop("table"), settings.pop("cells"), out, overrides=[*small, *overrides], **settings
        )

    return call


# What it leaves.


def test_report_tables_figures_and_results(begun):
    out, done = begun
    assert (done.folder, done.failed) == (out / "table3", [])
    assert done.report.read_text(encoding="utf-8").count("<img") >= 7
    assert {path.name for path in (done.folder / "tables").iterdir()} == {
        f"{name}.{kind}" for name in ("table3", "table3-classes", "differences") for kind in ("md", "tex")
    }
    assert len(list((done.folder / "figures").iterdir())) == 8
    assert (done.folder / "differences.csv").is_file()
    assert not list(out.rglob("*.part"))


def test_results_have_a_row_a_run(begun):
    results = pd.read_csv(begun[0] / "table3" / "results.csv")
    assert list(results)[:7] == ["dataset", "table", "recipe", "seed", "repeat", "fold", "accuracy"]
    assert {"recall_monocyte", "train_seconds", "status"} <= set(results)
    assert results[["table", "recipe", "seed", "fold", "status"]].to_numpy().tolist() == [
        ["table3", name, 0, fold, "done"] for name in ("net1", "net4") for fold in (0, 1)
    ]
    assert results["accuracy"].between(0, 1).all()
    assert (results["train_seconds"] > 0).all()


def test_all_rows_have_the_same_folds_that_test_every_cell_once(begun, phantoms):
    found = predictions(begun[0])
    assert set(found) == {f"{name}/seed0-fold{fold}" for name in ("net1", "net4") for fold in (0, 1)}
    for fold in (0, 1):
        one, other = (found[f"{name}/seed0-fold{fold}"] for name in ("net1", "net4"))
        assert one["path"].tolist() == other["path"].tolist()
    tested = [Path(path).name for name in found if name.startswith("net4") for path in found[name]["path"]]
    known = [Path(path).name for path in read_cells(phantoms).table["path"]]
    assert sorted(tested) == sorted(known)
    donors = [set(found[f"net1/seed0-fold{fold}"]["donor"]) for fold in (0, 1)]
    assert not donors[0] & donors[1]


def test_the_folder_of_a_job_is_a_run_folder(begun, tmp_path):
    folder = next(begun[0].glob("runs/net4-*/seed0-fold1"))
    run = Run.open(folder)
    assert run.finished
    assert run.history()["stage"].tolist() == ["pretrain", "train"]
    assert not run.checkpoints.exists()
    metrics = evaluate(run, out=tmp_path / "evaluation").metrics
    results = pd.read_csv(begun[0] / "table3" / "results.csv").query("recipe == 'net4' and fold == 1").iloc[0]
    assert metrics["accuracy"]["value"] == pytest.approx(results["accuracy"])
    assert metrics["macro_recall"]["value"] == pytest.approx(results["macro_recall"])


def test_rows_of_a_benchmark_can_be_compared(begun, undrawn, tmp_path):
    rows = [next(begun[0].glob(f"runs/{name}-*")) for name in ("net1", "net4")]
    compare(rows, tmp_path / "out")
    ours, theirs = (pd.read_csv(path / "differences.csv") for path in (tmp_path / "out", begun[1].folder))
    figures = ["metric", "difference", "low", "high", "p", "cells", "folds"]
    pd.testing.assert_frame_equal(ours[figures], theirs[figures])


def test_the_pictured_cells_are_the_same_for_every_row(begun):
    examples = [np.load(path) for path in sorted(begun[0].glob("runs/*/*/benchmark/examples.npz"))]
    assert len(examples) == 2  # of the first fold alone
    assert (examples[0]["raw"] == examples[1]["raw"]).all()
    assert (examples[0]["raw"] == examples[0]["enhanced"]).all()  # Net1 has no enhancer
    assert not (examples[1]["raw"] == examples[1]["enhanced"]).all()


# Resuming.


def test_finished_jobs_are_not_repeated(begun, go_on, monkeypatch):
    out = begun[0]
    before = outcomes(out)
    monkeypatch.setattr(fit, "train", lambda *_, **__: pytest.fail("trained again"))
    assert go_on(out).failed == []
    assert outcomes(out) == before


def test_another_row_or_seed_adds_to_what_is_there(copied, go_on):
    before = outcomes(copied)
    go_on(copied, only=["net1"], seeds=2)
    after = outcomes(copied)
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2
    go_on(copied, only=["net1", "net3"])
    assert after.items() <= outcomes(copied).items()
    assert len(outcomes(copied)) == len(after) + 2
    assert len(pd.read_csv(copied / "table3" / "results.csv")) == 4


def test_a_changed_recipe_is_trained_anew_beside_the_old_one(copied, go_on):
    before = outcomes(copied)
    go_on(copied, ["train.lr=0.001"], only=["net1"])
    assert before.items() <= outcomes(copied).items()
    assert len(list(copied.glob("runs/net1-*"))) == 2
    assert pd.read_csv(copied / "table3" / "results.csv")["recipe"].tolist() == ["net1", "net1"]


class Interrupting(NoProgress):
    """Reporter that raises Ctrl-C when a given stage of training begins, counted over all jobs."""

    def __init__(self, stage: int):
        self.left = stage

    def epoch_bar(self, stage, epochs):
        from lightning.pytorch.callbacks import Callback

        class Stop(Callback):
            def on_train_epoch_start(self, trainer, module):
                signal.raise_signal(signal.SIGINT)

        self.left -= 1
        return Stop() if self.left == 0 else Callback()


INTERRUPTED = """
import signal, sys, torch
sys.path.insert(0, sys.argv[1])
from test_grid_run import TWO_ROWS, Interrupting
from urnet.benchmark.run import run_benchmark
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
try:
    run_benchmark("table3", sys.argv[2], sys.argv[3], overrides=sys.argv[4:], reporter=Interrupting(2), **TWO_ROWS)
except KeyboardInterrupt as stop:
    sys.exit(str(stop))
"""
"""Interrupts itself after the pre-training of Net4, in its joint training."""


def test_an_interrupted_benchmark_resumes_with_the_same_results(begun, partial, go_on, phantoms, small):
    out = partial
    command = [sys.executable, "-c", INTERRUPTED, Path(__file__).parent, phantoms, out, *small]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert "the same command resumes the benchmark" in ended.stderr
    assert ended.returncode == 1
    before = outcomes(out)
    stopped = Run(next(out.glob("runs/net4-*/seed0-fold0")))
    history = stopped.history()
    assert history["stage"].tolist() == ["pretrain"]
    assert not stopped.finished
    assert go_on(out).failed == []
    done = next(path for path in before if "net1" in path)
    assert outcomes(out)[done] == before[done]
    assert stopped.history().iloc[:1].equals(history)  # the pre-training was not repeated
    same_answers(predictions(out), predictions(begun[0]))


def test_a_killed_benchmark_resumes(phantoms, small, partial, go_on, begun):
    out = partial
    arguments = [
        "benchmark",
        "table3",
        phantoms,
        "--out",
        out,
        "--folds",
        2,
        "--scale",
        "laptop",
        "--only",
        "net1,net4",
    ]
    code = "import sys, torch; torch.set_num_threads(1); from urnet.cli import run; run(sys.argv[1:])"
    command = [sys.executable, "-c", code, *map(str, arguments), "--set", *small]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while not (begun_second := list(out.glob("runs/net4-*/seed0-fold0/recipe.yaml"))):
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    before = outcomes(out)
    done = next(path for path in before if "net1" in path)
    assert len(before) < 4
    assert go_on(out).failed == []
    assert outcomes(out)[done] == before[done]
    assert Run(begun_second[0].parent).finished
    same_answers(predictions(out), predictions(begun[0]))


def test_a_failed_job_is_marked_and_repeated_by_the_same_command(partial, go_on, monkeypatch):
    train = fit.train

    def broken(cells, recipe, *arguments, **others):
        if (recipe.name, recipe.split.fold) == ("net4", 0):
            raise ZeroDivisionError("no luck")
        return train(cells, recipe, *arguments, **others)

    monkeypatch.setattr(fit, "train", broken)
    done = go_on(partial)
    assert done.failed == ["net4, seed 0, fold 0: ZeroDivisionError: no luck"]
    results = pd.read_csv(done.folder / "results.csv")
    assert results["status"].tolist() == ["done", "done", "failed", "done"]
    assert results["error"].tolist()[2] == "ZeroDivisionError: no luck"
    assert "1 of 2" in (done.folder / "tables" / "table3.md").read_text(encoding="utf-8")
    assert "1 of 4 runs failed" in done.report.read_text(encoding="utf-8")
    # A half-finished row is in no difference.
    assert not (done.folder / "differences.csv").exists()
    before = outcomes(partial)
    monkeypatch.setattr(fit, "train", train)
    assert go_on(partial).failed == []
    after = outcomes(partial)
    assert len([path for path in before if after[path] == before[path]]) == 3
    assert (done.folder / "differences.csv").is_file()


def test_a_failed_row_is_repaired_by_adding_the_weights(tmp_path, go_on):
    import timm
    from safetensors.torch import save_file

    file = tmp_path / "weights.safetensors"
    settings = {"only": ["net1"], "overrides": [f"classifier.weights={file}"]}
    done = go_on(tmp_path / "out", **settings)
    assert len(done.failed) == 2
    assert f"{file}: no such file" in done.failed[0]
    assert "failed: " in (done.folder / "tables" / "table3.md").read_text(encoding="utf-8")
    save_file(timm.create_model("test_byobnet").state_dict(), file)
    assert go_on(tmp_path / "out", **settings).failed == []


def test_a_network_that_cannot_take_the_images_fails_only_its_row(phantoms, small, undrawn, tmp_path):
    overrides = [override for override in small if not override.startswith(("classifier.name", "input", "pretrain"))]
    done = run_benchmark(
        *("table2", phantoms, tmp_path / "out"),
        overrides=[*overrides, "input.size=16"],
        **TWO_ROWS | {"only": ["unet-vgg16", "unet-mobilenetv2_100"]},
    )
    results = pd.read_csv(done.folder / "results.csv").set_index(["recipe", "fold"])
    assert set(results.loc["unet-mobilenetv2_100", "status"]) == {"done"}
    assert set(results.loc["unet-vgg16", "status"]) == {"failed"}
    assert results.loc[("unet-vgg16", 0), "error"].startswith(
        "classifier.name=vgg16 cannot be trained on images of 16 x 16 px"
    )


def test_tables_are_recomputed_without_the_weights(copied, go_on, begun):
    for folder in copied.glob("runs/*/*/model"):
        shutil.rmtree(folder)
    shutil.rmtree(copied / "table3")
    done = go_on(copied, train=False)
    assert done.failed == []
    for name in ("tables/table3.md", "tables/table3-classes.tex", "tables/differences.md", "results.csv"):
        assert (done.folder / name).read_bytes() == (begun[1].folder / name).read_bytes()


def test_tables_show_the_results_that_exist(copied, go_on):
    done = go_on(copied, train=False, only=["net1", "net2"])
    assert done.failed == []
    assert "not run yet" in (done.folder / "tables" / "table3.md").read_text(encoding="utf-8")
    assert "2 of 4 runs are not trained yet" in done.report.read_text(encoding="utf-8")
    assert not list(copied.glob("runs/net2-*"))


def test_files_of_rows_that_are_not_shown_are_removed(copied, go_on):
    go_on(copied, only=["net1"])
    assert not list((copied / "table3").rglob("*differences*"))


def test_results_of_protocol_paper_are_shown_beside_honest_ones(copied, go_on):
    before = outcomes(copied)
    optimistic = go_on(copied, protocol="paper", only=["net1"])
    assert optimistic.folder == copied / "table3-paper-protocol"
    assert "optimistic" in (optimistic.folder / "tables" / "table3.md").read_text(encoding="utf-8")
    results = pd.read_csv(optimistic.folder / "results.csv")
    assert set(results["protocol"]) == {"paper"}
    honest = go_on(copied)
    text = (honest.folder / "tables" / "optimism.md").read_text(encoding="utf-8")
    assert "Net1" in text
    assert "Net4" not in text  # it was not trained in the paper's way
    assert "What the paper&#39;s protocol buys" in honest.report.read_text(encoding="utf-8")
    assert before.items() <= outcomes(copied).items()


# Which cells.


def test_two_classes_work(phantoms, tmp_path, go_on):
    merged = ["classes.granulocyte=granulocyte", "classes.agranulocyte=[lymphocyte, monocyte]"]
    done = go_on(tmp_path / "out", merged, table="ablation")
    assert done.failed == []
    assert {"recall_granulocyte", "recall_agranulocyte"} <= set(pd.read_csv(done.folder / "results.csv"))
    assert "agranulocyte" in (done.folder / "tables" / "ablation.md").read_text(encoding="utf-8")


def test_one_donor_after_the_other_is_left_out(phantoms, tmp_path, go_on):
    table = pd.read_csv(phantoms / "cells.csv", dtype=str).query("donor in ['d00', 'd01', 'd02']")
    table = table.assign(path=[(phantoms / path).as_posix() for path in table["path"]])
    table[["path", "label", "donor"]].to_csv(tmp_path / "three.csv", index=False)
    done = go_on(tmp_path / "out", cells=tmp_path / "three.csv", folds="donor", only=["net1"])
    assert len(pd.read_csv(done.folder / "results.csv")) == 3
    found = predictions(tmp_path / "out")
    assert [set(table["donor"]) for table in found.values()] == [
        {donor} for table in found.values() for donor in table["donor"].head(1)
    ]
    assert {donor for table in found.values() for donor in table["donor"]} == {"d00", "d01", "d02"}


def test_repeats_divide_the_cells_anew_and_keep_what_is_done(copied, go_on):
    before = outcomes(copied)
    done = go_on(copied, only=["net1"], repeats=2)
    kept = {name: stamp for name, stamp in outcomes(copied).items() if "repeat" not in name}
    assert kept == before
    found = predictions(copied)
    once, again = (
        [set(found[f"net1/seed0-{part}fold{fold}"]["path"].map(Path).map(lambda path: path.name)) for fold in (0, 1)]
        for part in ("", "repeat1-")
    )
    assert once[0] | once[1] == again[0] | again[1]
    assert not again[0] & again[1]
    assert set(map(frozenset, once)) != set(map(frozenset, again))
    results = pd.read_csv(done.folder / "results.csv")
    assert results[["repeat", "fold"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert "2 repeats and 2 folds" in (done.folder / "tables" / "table3.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("how", ["donor", "column"])
def test_repeats_that_would_be_the_same_folds_are_refused(phantoms, tmp_path, go_on, how, raises_code):
    table = pd.read_csv(phantoms / "cells.csv", dtype=str)
    table = table.assign(path=[(phantoms / path).as_posix() for path in table["path"]], fold=table.index % 2)
    columns = ["path", "label", *(["fold"] if how == "column" else ["donor"])]
    table[columns].to_csv(tmp_path / "cells.csv", index=False)
    with raises_code("benchmark.folds_repeat"):
        go_on(tmp_path / "out", cells=tmp_path / "cells.csv", folds="donor" if how == "donor" else 2, repeats=2)


def test_cells_whose_donors_are_not_known_cannot_leave_one_out(shapes, tmp_path, go_on, raises_code):
    with raises_code("benchmark.donors_unknown"):
        go_on(tmp_path / "out", cells=shapes, folds="donor")


@pytest.mark.parametrize("columns", [(), ("target_nuclei",), ("target_nuclei", "target_clean"), ("target",)])
def test_huang2018_is_trained_towards_the_paired_image_of_the_cells(phantoms, tmp_path, columns):
    table = pd.read_csv(phantoms / "cells.csv", dtype=str)
    paired = ["target", "target_nuclei", "target_clean"]
    table["path"] = [(phantoms / path).as_posix() for path in table["path"]]
    for column in paired:
        table[column] = [(phantoms / path).as_posix() for path in table[column]]
    table.drop(columns=[column for column in paired if column not in columns]).to_csv(tmp_path / "c.csv", index=False)
    rows = benchmark.plan_benchmark("table4", tmp_path / "c.csv", only=["huang2018"]).rows
    target = rows[0].recipe.pretrain.target
    assert target == (columns[0].removeprefix("target_") if columns else "clahe")


def test_another_dataset_in_the_folder_is_refused(begun, shapes, go_on, raises_code):
    before = outcomes(begun[0])
    with raises_code("benchmark.cells_changed"):
        go_on(begun[0], cells=shapes)
    assert outcomes(begun[0]) == before


# What it refuses before anything is written.


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"table": "table5"}, "benchmark.setting_unknown"),
        ({"scale": "huge"}, "benchmark.setting_unknown"),
        ({"protocol": "clever"}, "benchmark.setting_unknown"),
        ({"only": ["net9"]}, "benchmark.row_unknown"),
        ({"folds": 1}, "benchmark.setting_unknown"),
        ({"folds": "0.5"}, "benchmark.setting_unknown"),
        ({"folds": "half"}, "benchmark.setting_unknown"),
        ({"folds": 60}, "cells.too_few"),
        ({"repeats": 0}, "benchmark.setting_unknown"),
        ({"overrides": ["enhancer.name=unit"]}, "recipe.enhancer_unknown"),
        ({"overrides": ["enhancer.widht=2"]}, "benchmark.key_unused"),
        ({"overrides": ["classifier.name=resnot"]}, "recipe.classifier_unknown"),
        ({"overrides": ["train.epoch=2"]}, "recipe.key_unknown"),
        ({"overrides": ["classes.a=[granulocyte]"]}, "cells.label_unknown"),
    ],
)
def test_wrong_settings_are_errors_before_anything_is_written(tmp_path, go_on, changes, code, raises_code):
    with raises_code(code):
        go_on(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_missing_cells_and_an_output_folder_among_the_cells_are_refused(phantoms, shapes, go_on, tmp_path, raises_code):
    with raises_code("cells.not_found") as caught:
        go_on(tmp_path / "out", cells=tmp_path / "nowhere")
    assert "nowhere" in str(caught.value)
    with raises_code("run.within_cells"):
        go_on(shapes / "out", cells=shapes)
    assert not (tmp_path / "out").exists()
