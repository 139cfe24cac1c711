"""A run that was stopped at any moment resumes with the same results, or gives the reason why it cannot."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from urnet.evaluation.evaluate import evaluate
from urnet.images.scale import Scaling
from urnet.run_folder import Run
from urnet.training.checkpoints import read_checkpoint
from urnet.training.fit import train

# Tests that run in the background of a shell inherit an ignored SIGINT, as no user's terminal has it.
LISTEN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
COMMAND = (sys.executable, "-c", f"{LISTEN}; from urnet.cli import main; main()")
# Dropout, augmentation, a schedule and an optimiser with moments: all that a resumed run could get wrong.
LONG = (
    *("enhancer.residual=false", "classifier.options.drop_rate=0.2", "augment.per_class=40"),
    *("pretrain.epochs=4", "pretrain.optimizer=adamw", "pretrain.schedule=onecycle", "pretrain.batch_size=12"),
    *("train.epochs=6", "train.balance=sampling"),
)
SHORT = ("train.epochs=3", "augment.per_class=8")


def rows(folder) -> int:
    history = folder / "history.csv"
    return history.read_bytes().count(b"\n") - 1 if history.is_file() else 0


def start_and_stop(arguments: list[str], folder, epochs: int, number: signal.Signals) -> subprocess.CompletedProcess:
    """Run the command until the history has a number of epochs, then send a signal."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        end = time.monotonic() + 120
        while rows(folder) < epochs and process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.fixture(scope="module")
def whole(shapes, tiny, tmp_path_factory) -> Run:
    return train(shapes, tiny, tmp_path_factory.mktemp("whole") / "run", overrides=LONG)[0]


@pytest.fixture(scope="module")
def stopped(shapes, tiny, tmp_path_factory):
    """A run killed in pre-training and in joint training, and interrupted there; and the output of the processes."""
    folder = tmp_path_factory.mktemp("stöpped") / "run"
    arguments = ["train", str(shapes), "--recipe", tiny, "--out", str(folder), "--set", *LONG]
    stops = []
    for epochs, number in ((2, signal.SIGKILL), (6, signal.SIGKILL), (8, signal.SIGINT)):
        stops.append(start_and_stop(arguments + ["--resume"] * bool(stops), folder, epochs, number))
        stops[-1].rows = rows(folder)
    return folder, stops


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_run_killed_twice_and_interrupted_equals_an_uninterrupted_one(whole, stopped, shapes, tiny):
    folder, stops = stopped
    assert [stop.returncode for stop in stops] == [-signal.SIGKILL, -signal.SIGKILL, 130]
    assert 2 <= stops[0].rows < 4 < stops[1].rows < 10
    run = train(shapes, tiny, folder, overrides=LONG, resume=True)[0]
    assert run.history_path.read_text(encoding="utf-8") == whole.history_path.read_text(encoding="utf-8")
    resumed, other = run.load_model(), whole.load_model()
    assert resumed.config == other.config
    assert all(torch.equal(t, other.joint.state_dict()[name]) for name, t in resumed.joint.state_dict().items())
    metrics, expected = evaluate(run).metrics, evaluate(whole).metrics
    assert metrics == expected


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_prints_one_line(stopped):
    folder, stops = stopped
    assert stops[-1].stderr.strip() == (
        f"urnet: interrupted; {folder} keeps every complete epoch; the same command continues from there"
    )


@pytest.fixture
def short(shapes, tiny, tmp_path) -> Run:
    return train(shapes, tiny, tmp_path / "run", overrides=SHORT)[0]


@pytest.mark.slow
def test_killed_before_the_bundle_was_written(short, shapes, tiny):
    history, state = short.history_path.read_bytes(), short.load_model().joint.state_dict()
    calibration = (short.model / "calibration.json").read_bytes()
    for name in ("config.json", "calibration.json", "calibration.safetensors"):
        (short.model / name).unlink()
    assert not short.finished
    again = train(shapes, tiny, short.folder, overrides=SHORT, resume=True)[0]
    assert again.history_path.read_bytes() == history
    assert (short.model / "calibration.json").read_bytes() == calibration
    assert all(torch.equal(t, state[name]) for name, t in again.load_model().joint.state_dict().items())


@pytest.mark.slow
def test_an_interrupted_run_of_version_0_1_0_has_the_same_scaling(short, shapes, tiny):
    fitted = short.load_model().config.scaling
    assert short.scaling() == fitted
    (short.model / "config.json").unlink()
    short.scaling_path.unlink()
    again = train(shapes, tiny, short.folder, overrides=SHORT, resume=True)[0]
    assert again.load_model().config.scaling == Scaling(0.0, 255.0, "uint8") != fitted


@pytest.mark.slow
def test_a_run_is_resumed_with_the_scaling_that_it_was_begun_with(short, shapes, tiny):
    (short.model / "config.json").unlink()
    short.scaling_path.write_text('{"low": 1.0, "high": 200.0, "dtype": "uint8"}', encoding="utf-8")
    again = train(shapes, tiny, short.folder, overrides=SHORT, resume=True)[0]
    assert again.load_model().config.scaling == Scaling(1.0, 200.0, "uint8")


@pytest.mark.slow
def test_an_incomplete_row_after_a_full_disk_is_replaced(shapes, tiny, tmp_path, monkeypatch, raises_code):
    whole = train(shapes, tiny, tmp_path / "whole", overrides=SHORT)[0]
    from urnet.training import checkpoints

    append_history = checkpoints.append_history

    def half_a_row(path, figures):
        if figures["epoch"] < 3:
            return append_history(path, figures)
        with path.open("a", encoding="utf-8") as file:
            file.write("train,1")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "append_history", half_a_row)
    with raises_code("training.disk_full"):
        train(shapes, tiny, tmp_path / "run", overrides=SHORT)
    monkeypatch.undo()
    run = train(shapes, tiny, tmp_path / "run", overrides=SHORT, resume=True)[0]
    assert run.history_path.read_bytes() == whole.history_path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recipe.yaml.part", ".recipe.yaml.unfinished.part"])
def test_killed_while_the_folder_was_begun(short, shapes, tiny, tmp_path, name):
    folder = tmp_path / "begun"
    folder.mkdir()
    (folder / name).write_text("name: ti", encoding="utf-8")
    (folder / "cells.csv").write_text("path,lab", encoding="utf-8")
    run = train(shapes, tiny, folder, overrides=SHORT, resume=True)[0]
    assert run.history_path.read_bytes() == short.history_path.read_bytes()
    assert not (folder / name).exists()


@pytest.mark.slow
def test_resume_of_nothing_starts_a_run(short, shapes, tiny, tmp_path):
    run = train(shapes, tiny, tmp_path / "new", overrides=SHORT, resume=True)[0]
    assert run.history_path.read_bytes() == short.history_path.read_bytes()


def test_resume_refuses_a_folder_that_is_no_run(shapes, tiny, tmp_path, raises_code):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "cells.csv").write_text("path,label\n", encoding="utf-8")
    with raises_code("run.exists"):
        train(shapes, tiny, tmp_path / "mine", resume=True)
    assert (tmp_path / "mine" / "cells.csv").read_text(encoding="utf-8") == "path,label\n"


@pytest.mark.slow
def test_resume_refuses_another_recipe_and_names_the_key(short, shapes, tiny, raises_code):
    with raises_code("run.recipe_changed"):
        train(shapes, tiny, short.folder, overrides=[*SHORT, "train.lr=0.1"], resume=True)
    with raises_code("run.recipe_changed"):
        train(shapes, tiny, short.folder, overrides=SHORT, seed=5, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["fewer", "elsewhere", "relabelled"])
def test_resume_refuses_other_cells(short, draw, shapes, tiny, tmp_path, change, raises_code):
    from urnet.cells.read import read_cells
    from urnet.cells.table import Cells

    cells = read_cells(shapes)
    if change == "fewer":
        cells = cells.where(cells.table.index != 0)
    elif change == "elsewhere":
        cells = read_cells(draw(tmp_path / "cells", 20, seed=1))  # the same names, other images
    else:
        table = cells.table.copy()
        table.loc[0, "label"] = "ring"
        cells = Cells(cells.root, table, cells.classes)
    with raises_code("run.cells_changed"):
        train(cells, tiny, short.folder, overrides=SHORT, resume=True)


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(short, shapes, tiny):
    from test_fit import Listener

    before = {path: path.stat().st_mtime_ns for path in short.folder.rglob("*") if path.is_file()}
    reporter = Listener()
    train(shapes, tiny, short.folder, overrides=SHORT, resume=True, reporter=reporter)
    assert reporter.messages == [f"{short.folder} is finished already"]
    assert before == {path: path.stat().st_mtime_ns for path in short.folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_without_resume_an_existing_run_is_refused(short, shapes, tiny, raises_code):
    with raises_code("run.exists"):
        train(shapes, tiny, short.folder, overrides=SHORT)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named(short, shapes, tiny, raises_code):
    (short.model / "config.json").unlink()
    last = short.checkpoints / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with raises_code("run.checkpoint_damaged"):
        train(shapes, tiny, short.folder, overrides=SHORT, resume=True)
    assert read_checkpoint(short.checkpoints / "best.ckpt")["state_dict"]


@pytest.fixture
def begun(draw, tiny, tmp_path):
    """A run without its bundle, and its cells with paired images."""
    import pandas as pd

    folder = draw(tmp_path / "cells", 20)
    draw(tmp_path / "cells" / "paired", 20, seed=1)
    paths = [f"{label}/{number:03d}.png" for label in ("bar", "disc", "ring") for number in range(20)]
    rows = [{"path": path, "label": path.split("/")[0], "target": f"paired/{path}"} for path in paths]
    pd.DataFrame(rows).to_csv(folder / "cells.csv", index=False)
    run = train(folder, tiny, tmp_path / "run", overrides=PAINTING)[0]
    (run.model / "config.json").unlink()
    return run, folder


PAINTING = (*SHORT, "pretrain.epochs=1", "pretrain.target=target")


def upside_down(path) -> None:
    import numpy as np
    from PIL import Image

    Image.fromarray(np.asarray(Image.open(path))[::-1]).save(path)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["", "paired/"])
def test_resuming_with_changed_pixels_is_an_error(begun, tiny, place, raises_code):
    run, folder = begun
    history = run.history_path.read_bytes()
    used = [row.split(",")[0] for row in run.cells_path.read_text(encoding="utf-8").splitlines()[1:]]
    names = [path.removeprefix("../cells/") for path in used][:5]
    for name in names:
        upside_down(folder / place / name)
    with raises_code("run.pixels_changed") as caught:
        train(folder, tiny, run.folder, overrides=PAINTING, resume=True)
    message = str(caught.value)
    assert "5 image(s)" in message
    assert f"{place}{names[0]}" in message
    assert " and 2 more" in message
    for name in names:
        upside_down(folder / place / name)
    train(folder, tiny, run.folder, overrides=PAINTING, resume=True)
    assert run.finished
    assert run.history_path.read_bytes() == history


@pytest.mark.slow
def test_a_run_of_before_there_were_hashes_resumes(begun, tiny):
    import pandas as pd

    run, folder = begun
    table = pd.read_csv(run.cells_path, dtype=str, keep_default_na=False)
    assert {"content", "target_content"} <= set(table)
    table.drop(columns=["content", "target_content"]).to_csv(run.cells_path, index=False)
    upside_down(folder / "bar" / "000.png")
    train(folder, tiny, run.folder, overrides=PAINTING, resume=True)
    assert run.finished
