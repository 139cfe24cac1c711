"""The command line: its output, its exit codes, and one line for each error."""

import errno
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from urnet.cli import run
from urnet.cli.app import expand_set_options

COMMANDS = (
    *("demo", "train", "evaluate", "predict", "calibrate", "differential", "export", "serve", "label"),
    *("benchmark", "compare", "stress", "audit", "split", "crop", "destain", "phantom", "models"),
)
SHORT = ("train.epochs=1", "augment.per_class=8")


@pytest.fixture
def urnet(capfd):
    """Run a command line; return exit code, stdout and stderr."""

    def call(*arguments) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return call


def digest(folder) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def mistake(result, *words: str) -> None:
    """Check for exit code 2, and one line on stderr with the words."""
    code, _, err = result
    assert code == 2, err
    assert err.startswith("urnet: ")
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err


def test_every_help_answers_without_loading_torch():
    code = (
        "import sys; from urnet.cli import run\n"
        f"for name in {COMMANDS!r}: assert run([name, '--help']) == 0\n"
        "assert run(['--help']) == run([]) == run(['--version']) == 0\n"
        "print(sorted(sys.modules.keys() & {'torch', 'lightning', 'timm', 'numpy', 'pandas', 'matplotlib'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for name in COMMANDS:
        assert f"Usage: urnet {name}" in done.stdout
        assert f"\n  {name}" in done.stdout


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--set", "a=1", "b=2", "--seed", "3"], ["--set", "a=1", "--set", "b=2", "--seed", "3"]),
        (["--set", "a=1", "--set", "b=2", "c=3"], ["--set", "a=1", "--set", "b=2", "--set", "c=3"]),
        (["--set=a=1", "b=2"], ["--set=a=1", "--set", "b=2"]),
        (["--set", "a=1", "cells"], ["--set", "a=1", "cells"]),
        (["cells", "x=1", "--out", "b=2"], ["cells", "x=1", "--out", "b=2"]),
        (["--set", "a=-1", "--out", "run"], ["--set", "a=-1", "--out", "run"]),
        (["--set"], ["--set"]),
    ],
)
def test_several_keys_may_follow_one_set(given, meant):
    assert expand_set_options(given) == meant


@pytest.mark.slow
def test_from_cells_to_a_report_and_predictions_in_folders_of_any_name(urnet, draw, tiny, tmp_path):
    home = tmp_path / "Blutbilder µ [1] :ok:"
    cells = draw(home / "Zellen ü", 8)
    code, out, err = urnet("train", cells, "--recipe", tiny, "--out", home / "lauf é", "--set", *SHORT, "--seed", 4)
    assert (code, err) == (0, "")
    assert f"trained: {home / 'lauf é'}" in out
    assert "train epoch 1/1" in out
    code, out, err = urnet("evaluate", home / "lauf é")
    assert (code, err) == (0, "")
    report = home / "lauf é" / "evaluation" / "test" / "report.html"
    assert f"report: {report}" in out
    assert report.is_file()
    for word in ("bar", "recall", "accuracy", "95 % t interval over", "differential", "protocol honest"):
        assert word in out
    code, out, err = urnet("predict", home / "lauf é", cells / "bar", "--out", home / "p ñ.csv")
    assert (code, err) == (0, "")
    assert f"8 of 8 images classified: {home / 'p ñ.csv'}" in out
    metrics = json.loads(report.with_name("metrics.json").read_text(encoding="utf-8"))
    assert metrics["seed"] == 4


@pytest.mark.slow
def test_a_name_that_the_terminal_cannot_show_is_escaped(tmp_path):
    code = "from urnet.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "phantom", "--out", str(tmp_path / "Zellen µ"), "--cells", "36", "--size", "32"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"Zellen \\xb5" in done.stdout


@pytest.mark.slow
def test_unreadable_images_are_skipped_and_the_exit_code_says_so(urnet, trained, draw, tmp_path):
    cells = draw(tmp_path / "cells", 2)
    (cells / "bar" / "broken.png").write_bytes(b"")
    code, out, err = urnet("predict", trained.folder, cells, "--out", tmp_path / "p.csv")
    assert code == 1
    assert "6 of 7 images classified" in out
    why = "1 of 7 image(s) could not be used: the file is empty (0 bytes)"
    assert err == f"urnet: {why}; the column 'error' says which\n"
    assert len(pd.read_csv(tmp_path / "p.csv")) == 7


@pytest.mark.slow
def test_protocol_paper_is_marked_on_the_terminal(urnet, shapes, tiny, tmp_path):
    arguments = ["train", shapes, "--recipe", tiny, "--out", tmp_path / "run", "--set", *SHORT, "protocol=paper"]
    assert "optimistic" in urnet(*arguments)[1]
    _, out, _ = urnet("evaluate", tmp_path / "run")
    assert "protocol paper" in out
    assert "note: Protocol paper is optimistic" in out


@pytest.mark.slow
def test_a_head_that_does_not_fit_is_noted_once(urnet, shapes, tiny, tmp_path):
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("test_byobnet").state_dict(), tmp_path / "weights.safetensors")
    overrides = [*SHORT, f"classifier.weights={tmp_path / 'weights.safetensors'}", "split.folds=2"]
    code, out, err = urnet("train", shapes, "--recipe", tiny, "--out", tmp_path / "run", "--set", *overrides)
    assert (code, err) == (0, "")
    assert out.count("is for 1000 classes, not 3; it is not loaded") == 1
    assert next(line for line in out.splitlines() if "not loaded" in line).startswith("note: ")


GRID = (
    *("--scale", "laptop", "--folds", "2", "--only", "net1", "--set", "input.size=24"),
    *("classifier.name=test_byobnet", "classifier.weights=null", *SHORT),
)


@pytest.mark.slow
def test_a_benchmark_prints_its_table_and_continues(urnet, shapes, tmp_path, monkeypatch):
    monkeypatch.setattr("urnet.benchmark.report._draw_figures", lambda *_: [])
    code, out, err = urnet("benchmark", "table3", shapes, "--out", tmp_path / "out", *GRID)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == ["2 trainings to do, 0 done", "[1/2] net1, seed 0, fold 0"]
    assert any(line.startswith("| Net1 ") for line in lines)
    assert lines[-1] == f"report: {tmp_path / 'out' / 'table3' / 'report.html'}"
    done = digest(tmp_path / "out" / "runs")
    code, out, err = urnet("benchmark", "table3", shapes, "--out", tmp_path / "out", *GRID)
    assert (code, err) == (0, "")
    assert out.startswith("### Table 3")
    assert digest(tmp_path / "out" / "runs") == done
    code, out, _ = urnet("benchmark", "ablation", shapes, "--out", tmp_path / "out", "--no-train", *GRID)
    assert code == 0
    assert any(line.startswith("| Net1 ") for line in out.splitlines())
    assert digest(tmp_path / "out" / "runs") == done


@pytest.mark.slow
def test_failed_runs_of_a_benchmark_are_named_and_the_exit_code_is_1(urnet, shapes, tmp_path, monkeypatch):
    monkeypatch.setattr("urnet.benchmark.report._draw_figures", lambda *_: [])
    for _ in range(2):
        code, out, err = urnet(
            "benchmark", "table3", shapes, "--out", tmp_path / "out", *GRID, "classifier.weights=none.pth"
        )
        assert code == 1
        assert "net1, seed 0, fold 0 failed: none.pth: no such file" in out
        assert "| failed: none.pth" in out
        assert err.splitlines()[0].startswith("net1, seed 0, fold 0: none.pth: no such file")
        assert err.splitlines()[-1] == "urnet: 2 run(s) failed; the same command repeats them"


def test_an_interrupted_benchmark_names_the_command_that_continues(urnet, shapes, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt("interrupted; the same command continues from there")

    monkeypatch.setattr("urnet.training.fit.train", interrupt)
    code, _, err = urnet("benchmark", "table3", shapes, "--out", tmp_path / "out", *GRID)
    assert (code, err) == (130, "urnet: interrupted; the same command resumes the benchmark\n")


@pytest.mark.slow
def test_runs_are_compared_and_stressed(urnet, trained, shapes, tiny, tmp_path):
    assert urnet("train", shapes, "--recipe", tiny, "--out", tmp_path / "other run", "--set", *SHORT)[0] == 0
    runs = [trained.folder, tmp_path / "other run"]
    code, out, err = urnet("compare", *runs, "--out", tmp_path / "compared")
    assert (code, err) == (0, "")
    assert out.startswith("### Paired differences")
    assert "other run against run" in out
    assert out.splitlines()[-1] == f"report: {tmp_path / 'compared' / 'report.html'}"
    code, out, err = urnet("stress", *runs, shapes, "--out", tmp_path / "stressed")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == f"report: {tmp_path / 'stressed' / 'report.html'}"
    assert set(pd.read_csv(tmp_path / "stressed" / "stress.csv")["run"]) == {"run", "other run"}


def test_audit_names_the_files_and_its_exit_code_tells_whether_there_are_findings(urnet, draw, tmp_path):
    cells = draw(tmp_path / "cells", 6)
    shutil.copy(cells / "bar" / "000.png", cells / "bar" / "copy.png")
    code, out, _ = urnet("audit", cells, "--out", tmp_path / "audit.csv")
    assert code == 1
    assert "bar/copy.png" in out
    assert "copy.png" in (tmp_path / "audit.csv").read_text(encoding="utf-8")
    mistake(urnet("audit", cells, "--out", tmp_path / "audit.csv"), "audit.csv: exists already")
    (tmp_path / "folder").mkdir()
    mistake(urnet("audit", cells, "--out", tmp_path / "folder"), "folder: exists already")


@pytest.mark.slow
def test_split_writes_a_table_that_training_accepts(urnet, draw, tiny, tmp_path):
    cells = draw(tmp_path / "cells", 8)
    before = digest(cells)
    code, out, _ = urnet("split", cells, "--out", tmp_path / "split", "--set", "split.seed=3", "split.test=0.25")
    assert code == 0
    assert "train" in out
    table = pd.read_csv(tmp_path / "split" / "cells.csv")
    assert table["split"].value_counts()["test"] == 6
    assert digest(cells) == before
    code, *_ = urnet("train", tmp_path / "split", "--recipe", tiny, "--out", tmp_path / "run", "--set", *SHORT)
    assert code == 0
    used = pd.read_csv(tmp_path / "run" / "cells.csv")
    assert used["split"].tolist() == table["split"].tolist()


def test_simulated_cells_by_command(urnet, tmp_path):
    assert urnet("phantom", "--out", tmp_path / "phantom", "--cells", 36, "--size", 32, "--fields", 1)[0] == 0
    stained = tmp_path / "stained" / "a"
    stained.mkdir(parents=True)
    for number in range(2):
        pixels = np.random.default_rng(number).integers(80, 255, (40, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(stained / f"{number}.png")
    assert urnet("destain", tmp_path / "stained", "--out", tmp_path / "destained", "--size", 32)[0] == 0
    assert (tmp_path / "destained" / "cells.csv").is_file()
    for command in (["phantom"], ["destain", tmp_path / "stained"]):
        mistake(urnet(*command, "--out", tmp_path / "phantom"), "phantom: exists already")


@pytest.mark.slow
def test_models_lists_what_there_is(urnet):
    code, out, _ = urnet("models")
    assert code == 0
    for name in ("urnet", "unetpp", "resnet101", "net4", "quick"):
        assert any(line.startswith(f"{name} ") for line in out.splitlines())
    line = next(line for line in out.splitlines() if line.startswith("urnet "))
    assert "36.1" in line


@pytest.mark.slow
def test_the_demo_ends_with_table_differential_and_report(urnet, tmp_path, monkeypatch):
    """The demo of this test has fewer cells and a smaller classifier."""
    from urnet.cells import simulate
    from urnet.recipe import load_recipe
    from urnet.training import fit

    draw = simulate.write_phantom
    monkeypatch.setattr(
        simulate, "write_phantom", lambda folder, cells, **kw: draw(folder, 120, size=32, donors=6, **kw)
    )
    small = ["input.size=32", "enhancer.width=4", "classifier.name=test_resnet", "train.epochs=1"]
    monkeypatch.setattr(fit, "load_recipe", lambda name, overrides=(): load_recipe(name, [*overrides, *small]))
    code, out, err = urnet("demo", "--out", tmp_path / "demo")
    assert (code, err) == (0, "")
    report = tmp_path / "demo" / "run" / "evaluation" / "test" / "report.html"
    assert out.splitlines()[-2] == f"report: {report}"
    for word in ("granulocyte", "differential", "macro recall"):
        assert word in out
    weights = digest(tmp_path / "demo" / "run" / "model")
    code, out, err = urnet("demo", "--out", tmp_path / "demo")  # the same command accepts what is finished
    assert (code, err) == (0, "")
    assert f"report: {report}" in out
    assert digest(tmp_path / "demo" / "run" / "model") == weights
    mistake(urnet("demo", "--out", tmp_path / "demo", "--seed", 1), "demo: exists already")


# Errors of the user.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "Missing argument"),
        (["train", "cells"], "Missing option '--out'"),
        (["train", "cells", "--out", "run", "--seed", "-1"], "--seed"),
        (["train", "cells", "--out", "run", "--seed", "5000000000"], "--seed"),
        (["train", "cells", "--out", "run", "--devices", "0"], "--devices"),
        (["train", "cells", "--out", "run", "--speed", "3"], "--speed"),
        (["phantom", "--out", "x", "--cells", "many"], "--cells"),
        (["benchmark", "table3", "--out", "out"], "Missing argument"),
        (["benchmark", "table3", "cells"], "Missing option '--out'"),
        (["benchmark", "table3", "cells", "--out", "out", "--seeds", "0"], "--seeds"),
        (["benchmark", "table3", "cells", "--out", "out", "--jobs", "0"], "--jobs"),
        (["compare", "--out", "out"], "Missing argument"),
        (["compare", "a", "b"], "Missing option '--out'"),
        (["stress", "a", "b"], "Missing option '--out'"),
    ],
)
def test_wrong_usage_is_one_line_that_points_to_the_help(urnet, arguments, words):
    result = urnet(*arguments)
    mistake(result, words, "--help")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.epoch=3"], "unknown key train.epoch; did you mean train.epochs?"),
        (["train.epochs=0"], "train.epochs is 0: input should be greater than or equal to 1"),
        (["train.lr=fast"], "train.lr is 'fast'"),
        (["enhancer.name=unit"], "unit"),
        (["enhancer.widht=4"], "widht"),
        (["classifier.name=resnot"], "resnot"),
        (["epochs"], "--set epochs: give key=value"),
        (["split.folds=2", "split.fold=2"], "fold 2 needs folds"),
        (["classes.a=[bar, disc]"], "ring"),
        (["train.lr={"], "--set train.lr={: not YAML"),
        (["input.limits=[9, 3]"], "low < high"),
        (["classifier.weights=none.pth"], "none.pth: no such file"),
        (["tile=50"], "50"),
    ],
)
def test_a_wrong_key_or_value_is_named(urnet, shapes, tiny, tmp_path, overrides, words):
    out = tmp_path / "run"
    mistake(urnet("train", shapes, "--recipe", tiny, "--out", out, "--set", *overrides), words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table5"], "'table5' is not one of 'table2', 'table3', 'table4', 'ablation'"),
        (["table3", "--only", "net1,nets"], "nets"),
        (["table3", "--folds", "1"], "--folds is 1"),
        (["table3", "--folds", "0.5"], "--folds is 0.5"),
        (["table3", "--folds", "donor"], "not every cell names its donor"),
        (["table3", "--folds", "21"], "class 'bar' has 20 cell(s)"),
        (["table3", "--scale", "huge"], "'--scale': 'huge' is not one of 'paper', 'laptop'"),
        (["table3", "--protocol", "clever"], "'--protocol': 'clever' is not one of"),
        (["table3", "--set", "train.epoch=3"], "did you mean train.epochs?"),
        (["table3", "--set", "enhancer.name=unit"], "enhancer 'unit' is unknown; choose one of: "),
        (["table4", "--set", "enhancer.widht=2"], "--set enhancer.widht=2: no row of table4 uses this key"),
    ],
)
def test_impossible_benchmarks_are_named_before_any_file_is_written(urnet, shapes, tmp_path, arguments, words):
    table, *options = arguments
    mistake(urnet("benchmark", table, shapes, "--out", tmp_path / "out", *options), words)
    assert not (tmp_path / "out").exists()


def test_a_benchmark_goes_into_no_other_folder(urnet, shapes, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine", encoding="utf-8")
    command = ["benchmark", "table3", shapes, *GRID, "--out"]
    mistake(urnet(*command, tmp_path / "mine"), "mine", "no benchmark")
    mistake(urnet(*command, tmp_path / "mine" / "notes.txt"), "notes.txt")
    mistake(urnet(*command, shapes / "out"), "lies in the cells folder")
    mistake(urnet("benchmark", "table3", tmp_path / "nowhere", "--out", tmp_path / "out"), "nowhere: no such file")
    assert digest(tmp_path) == {"mine/notes.txt": hashlib.sha256(b"mine").hexdigest()}


@pytest.mark.slow
def test_runs_that_cannot_be_compared_or_stressed_are_named(urnet, trained, shapes, tmp_path):
    unfinished = shutil.copytree(trained.folder, trained.folder.with_name("unfinished"))
    shutil.rmtree(unfinished / "model")
    shutil.rmtree(unfinished / "benchmark", ignore_errors=True)  # what an earlier comparison kept
    unfinished_words = "unfinished", "model"
    out = ["--out", tmp_path / "out"]
    mistake(urnet("compare", trained.folder, *out), "1 run given")
    mistake(urnet("compare", trained.folder, trained.folder, *out), "twice")
    mistake(urnet("compare", trained.folder, unfinished, *out), *unfinished_words)
    mistake(urnet("compare", trained.folder, trained.model, *out), "not a run folder")
    mistake(urnet("stress", unfinished, shapes, *out), *unfinished_words)
    mistake(urnet("stress", trained.model, shapes, *out), "not a run folder")
    mistake(urnet("stress", trained.folder, tmp_path / "nowhere", *out), "nowhere: no such file")
    mistake(urnet("stress", trained.folder, shapes, "--out", shapes / "out"), "lies in the cells folder")
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_is_not_there_or_no_recipe(urnet, shapes, tmp_path):
    mistake(urnet("train", shapes, "--recipe", "net9", "--out", tmp_path / "run"), "net9: no such recipe", "net4")
    (tmp_path / "list.yaml").write_text("- 1\n", encoding="utf-8")
    mistake(urnet("train", shapes, "--recipe", tmp_path / "list.yaml", "--out", tmp_path / "run"), "list.yaml")


def huge_png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def damaged(kind: str, image: Image.Image, path):
    """Write an unusable image of some kind, and return its path."""
    pixels = np.asarray(image)
    if kind == "truncated JPEG":
        path = path.with_suffix(".jpg")
        image.resize((200, 200)).save(path, quality=95)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "truncated TIFF":
        path = path.with_suffix(".tif")
        tifffile.imwrite(path, pixels)
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "zero bytes":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("no image at all", encoding="utf-8")
    elif kind == "one pixel":
        Image.fromarray(np.zeros((1, 1), np.uint8)).save(path)
    elif kind == "huge header":
        path.write_bytes(huge_png())
    elif kind == "NaN":
        path = path.with_suffix(".tif")
        values = pixels.astype(np.float32)
        values[3, 3] = np.nan
        tifffile.imwrite(path, values)
    return path


@pytest.mark.parametrize(
    "kind", ["truncated JPEG", "truncated TIFF", "zero bytes", "text", "one pixel", "huge header", "NaN"]
)
def test_an_unusable_image_stops_training_by_name_and_is_skipped_in_prediction(
    urnet, draw, tiny, trained, tmp_path, kind
):
    cells = draw(tmp_path / "cells", 6)
    bad = damaged(kind, Image.open(cells / "bar" / "000.png"), cells / "bar" / "bad.png")
    before = digest(cells)
    code, _, err = urnet("train", cells, "--recipe", tiny, "--out", tmp_path / "run")
    assert code == 2
    assert err.startswith("urnet: ")
    assert bad.name in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()
    code, _, err = urnet("predict", trained.folder, cells, "--out", tmp_path / "p.csv")
    assert code == 1
    assert err.count("\n") == 1
    table = pd.read_csv(tmp_path / "p.csv", keep_default_na=False)
    assert table.loc[table["error"] != "", "path"].str.endswith(bad.name).tolist() == [True]
    assert digest(cells) == before


def test_cells_that_cannot_be_trained_on(urnet, draw, tiny, tmp_path):
    def train(cells):
        return urnet("train", cells, "--recipe", tiny, "--out", tmp_path / "run")

    mistake(train(tmp_path / "nowhere"), "nowhere: no such file or folder")
    one = draw(tmp_path / "one class", 6, classes=("bar",))
    mistake(train(one), "only one class (bar)")
    empty = draw(tmp_path / "empty class", 6)
    (empty / "monocyte").mkdir()
    mistake(train(empty), "monocyte", "no image")
    single = draw(tmp_path / "single", 6)
    for path in sorted((single / "ring").iterdir())[1:]:
        path.unlink()
    mistake(train(single), "class 'ring' has 1 cell", "at least 3")
    table = tmp_path / "no path.csv"
    table.write_text("file,label\na.png,x\n", encoding="utf-8")
    mistake(train(table), "no path.csv: the table has no column 'path'")
    table = tmp_path / "missing.csv"
    table.write_text("path,label\ngone.png,x\n", encoding="utf-8")
    mistake(train(table), "gone.png", "do not exist")
    assert not (tmp_path / "run").exists()


def test_mixed_grey_and_colour_are_converted_and_counted(urnet, draw, tiny, tmp_path):
    cells = draw(tmp_path / "cells", 8)
    for path in sorted((cells / "ring").iterdir())[:3]:
        Image.open(path).convert("RGB").save(path)
    code, out, _ = urnet("train", cells, "--recipe", tiny, "--out", tmp_path / "run", "--set", *SHORT)
    assert code == 0
    assert "image(s) converted between grey and colour" in out


@pytest.mark.slow
def test_two_donors_are_too_few_and_the_fix_can_be_copied(urnet, draw, tiny, tmp_path):
    cells = draw(tmp_path / "cells", 8)
    paths = [path.relative_to(cells).as_posix() for path in sorted(cells.rglob("*.png"))]
    table = pd.DataFrame({"path": paths, "label": [path.split("/")[0] for path in paths]})
    table["donor"] = [f"d{int(path[-7:-4]) % 2}" for path in paths]
    table.to_csv(cells / "cells.csv", index=False)
    arguments = ["train", cells, "--recipe", tiny, "--out", tmp_path / "run", "--set", *SHORT]
    code, _, err = urnet(*arguments)
    assert code == 2
    assert "2 donor(s)" in err
    assert "--set protocol=paper" in err
    assert urnet(*arguments, "protocol=paper")[0] == 0


def test_leaks_of_a_given_split_stop_training_unless_allowed(urnet, draw, tiny, tmp_path):
    cells = draw(tmp_path / "cells", 8)
    rows = [
        (path.relative_to(cells).as_posix(), path.parent.name, "test" if int(path.stem) > 5 else "train", donor)
        for path in sorted(cells.rglob("*.png"))
        for donor in [f"d{int(path.stem) // 2 % 3}"]
    ]
    pd.DataFrame(rows, columns=["path", "label", "split", "donor"]).to_csv(cells / "cells.csv", index=False)
    arguments = ["train", cells, "--recipe", tiny, "--out", tmp_path / "run", "--set", *SHORT]
    code, _, err = urnet(*arguments)
    assert code == 2
    assert "donor d0" in err
    assert "--allow-leaks" in err
    assert not (tmp_path / "run").exists()
    assert urnet(*arguments, "--allow-leaks")[0] == 0


@pytest.mark.slow
def test_existing_outputs_are_refused_by_every_command(urnet, trained, shapes, tiny, tmp_path):
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "notes.txt").write_text("mine", encoding="utf-8")
    image = shapes / "bar" / "000.png"
    for arguments in (
        ["train", shapes, "--recipe", tiny, "--out", occupied],
        ["train", shapes, "--recipe", tiny, "--out", occupied, "--set", "split.folds=2"],
        ["train", shapes, "--recipe", tiny, "--out", occupied, "--resume"],
        ["evaluate", trained.folder, "--out", occupied],
        ["predict", trained.folder, image, "--out", occupied],
        ["predict", trained.folder, image, "--out", tmp_path / "p.csv", "--enhanced", occupied],
        ["predict", trained.folder, image, "--out", tmp_path / "p.csv", "--cam", occupied],
        ["audit", shapes, "--out", occupied],
        ["split", shapes, "--out", occupied],
        ["destain", shapes, "--out", occupied],
        ["phantom", "--out", occupied],
        ["demo", "--out", occupied],
        ["compare", trained.folder, trained.folder / ".." / "other", "--out", occupied],
        ["stress", trained.folder, shapes, "--out", occupied],
    ):
        mistake(urnet(*arguments), "occupied: exists already")
    assert digest(tmp_path) == {"occupied/notes.txt": hashlib.sha256(b"mine").hexdigest()}


def test_a_run_of_another_task_is_refused(urnet, trained, draw, tmp_path):
    other = draw(tmp_path / "other", 3, seed=5)
    (other / "bar").rename(other / "lymphocyte")
    mistake(urnet("evaluate", trained.folder, "--cells", other), "lymphocyte are no classes", "bar, disc, ring")
    mistake(urnet("evaluate", other), "not a run folder")
    mistake(urnet("predict", other, other, "--out", tmp_path / "p.csv"), "no trained model here")
    mistake(urnet("evaluate", trained.folder, "--split", "all"), "'--split': 'all' is not one of")


def test_an_interruption_is_one_line_and_130(urnet, shapes, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("urnet.cells.audit.audit_cells", interrupt)
    assert urnet("audit", shapes) == (130, "", "urnet: interrupted\n")


def test_a_full_disk_is_one_line(urnet, trained, shapes, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "p.csv.part")

    monkeypatch.setattr("urnet.predict.predict_files", full)
    mistake(
        urnet("predict", trained.folder, shapes, "--out", tmp_path / "p.csv"), "p.csv.part: No space left on device"
    )


def test_a_folder_without_permission_is_one_line_with_a_fix(urnet, trained, shapes, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", "p.csv.part")

    monkeypatch.setattr("urnet.predict.predict_files", refused)
    mistake(
        urnet("predict", trained.folder, shapes, "--out", tmp_path / "p.csv"),
        "p.csv.part: Permission denied. Change the permissions, or choose another folder",
    )


def test_no_output_is_written_among_the_class_folders(urnet, draw, tiny, tmp_path):
    cells = draw(tmp_path / "cells", 6)
    mistake(urnet("train", cells, "--recipe", tiny, "--out", cells / "run"), "lies in the cells folder")
    mistake(urnet("split", cells, "--out", cells / "divided"), "lies in the cells folder")
    assert sorted(place.name for place in cells.iterdir()) == ["bar", "disc", "ring"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("classifier.name=vgg16", "classifier.name=vgg16 cannot be trained on images of 24 x 24 px"),
        ("train.batch_size=1", "with train.batch_size=1"),
    ],
)
def test_networks_that_do_not_fit_the_images_or_batches_are_named_before_the_run_begins(
    urnet, shapes, tiny, tmp_path, override, words
):
    mistake(urnet("train", shapes, "--recipe", tiny, "--out", tmp_path / "run", "--set", override), words)
    assert not (tmp_path / "run").exists()


def test_full_memory_is_one_line(urnet, shapes, tmp_path, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr("urnet.cells.audit.audit_cells", full)
    mistake(urnet("audit", shapes), "memory is full")


@pytest.mark.slow
def test_export_writes_a_checked_graph_once(trained, tmp_path, capfd):
    command = ["export", str(trained.folder), "--out", str(tmp_path / "model.onnx")]
    assert run(command) == 0
    assert "no decision changes" in capfd.readouterr().out
    assert run(command) == 2
    assert "exists already" in capfd.readouterr().err
    assert run([*command[:-1], str(tmp_path / "x"), "--format", "tflite"]) == 2
    assert "onnx" in capfd.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["crop", "nowhere", "--out", "x"], "nowhere: no such file or folder"),
        (["crop", "nowhere", "--out", "x", "--light", "on"], "'on' is not one of 'estimated', 'none'"),
        (["crop", "nowhere", "--out", "x", "--size", "3"], "size is 3"),
        (["differential", "nowhere", "cells", "--out", "x"], "nowhere: no trained model here"),
        (["calibrate", "nowhere"], "nowhere: not a run folder"),
    ],
)
def test_missing_inputs_are_named_in_one_line(arguments, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named_with_a_fix(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("urnet.cells.simulate.write_phantom", full)
    assert run(["phantom", "--out", str(tmp_path / "p")]) == 2
    assert "The disk is full; free space on it, or choose another folder" in capsys.readouterr().err
