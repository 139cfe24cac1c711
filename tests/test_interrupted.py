"""Every command, killed at any moment and repeated, ends with the result of one that was not killed.

Commands run in processes forked from one that has torch loaded. Each is killed three times, at the renames that put
results in their places: before the first, before the last and after the last.
"""

import gzip
import hashlib
import multiprocessing
import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

FROZEN = Path(__file__).parent / "frozen" / "0.1.0"
SMALL = (
    *("enhancer.width=1", "classifier.name=resnet10t", "classifier.options.channels=[4,4,4,4]"),
    *("classifier.options.stem_width=4", "classifier.pretrained=false", "classifier.weights=null", "input.size=32"),
    *("augment.per_class=12", "train.batch_size=16", "train.epochs=2", "pretrain.epochs=1", "pretrain.batch_size=16"),
)
TRAIN = ("train", "cells", "--recipe", "recipe.yaml", "--set", *SMALL)
COMMANDS = {
    "phantom": ("phantom", "--cells", "24", "--donors", "2", "--size", "16", "--out", "out"),
    "destain": ("destain", "stained", "--size", "16", "--out", "out"),
    "audit": ("audit", "cells", "--out", "out.csv"),
    "split": ("split", "cells", "--augment-to", "20", "--out", "out"),
    "crop": ("crop", "fields.csv", "--size", "32", "--out", "out"),
    "train": (*TRAIN, "--out", "out"),
    "folds": (*TRAIN, "split.folds=2", "train.epochs=1", "pretrain.epochs=0", "--out", "out"),
    "distill": ("distill", "run", "--student", "recipe.yaml", "--out", "out", "--set", *SMALL[:3], "train.epochs=1"),
    "evaluate": ("evaluate", "run"),
    "evaluate elsewhere": ("evaluate", "run", "--out", "out"),
    "predict": ("predict", "run", "cells", "--cam", "out-cam", "--engine", "torch", "--out", "out.csv"),
    "calibrate": ("calibrate", "run"),
    "predict beside the images": ("predict", "run", "cells", "--engine", "torch", "--out", "cells/out.csv"),
    "differential": ("differential", "run", "fields.csv", "--engine", "torch", "--out", "out"),
    "onnx": ("export", "run", "--out", "out.onnx"),
    "torch": ("export", "run", "--format", "torch", "--out", "out.pt2"),
    "openvino": ("export", "run", "--format", "openvino", "--out", "out"),
    "hub": ("export", "run", "--format", "hub", "--out", "out"),
    "bioimageio": ("export", "run", "--format", "bioimageio", "--out", "out"),
    "compare": ("compare", "run", "copy", "--out", "out"),
    "stress": ("stress", "run", "run", "--out", "out"),
    "benchmark": (
        *("benchmark", "table3", "cells", "--folds", "2", "--scale", "laptop", "--only", "net1", "--out", "out"),
        *("--set", *SMALL, "train.epochs=1"),
    ),
    "demo": ("demo", "--out", "out"),
}
VOLATILE = (".html", ".ckpt", "outcome.json", "results.csv", "-cost.", "table3.")
"""Files with times, or with an order that is not fixed; of these only the names are compared."""


def work(arguments, folder, cut, graphs, connection):
    """Run a command, and die before or after the first rename, or that to a file of a name, where that is asked for.

    Otherwise send the exit code, the last file that was renamed, and what lies in the folder for temporary files.
    """
    os.chdir(folder)
    os.environ["URNET_CACHE"] = str(Path(folder) / "cache")
    tempfile.tempdir = str(Path(folder) / "tmp")
    Path(tempfile.tempdir).mkdir(exist_ok=True)
    import torch

    torch.set_num_threads(1)
    rename, last = os.replace, ""

    def watched(source, place):
        nonlocal last
        last = Path(place).name
        if cut in (("", "before"), (last, "before")):
            os._exit(137)
        rename(source, place)
        if cut == (last, "after"):
            os._exit(137)

    os.replace = watched
    hurry(graphs)
    if arguments[0] == "demo":
        shorten_the_demo()
    from urnet.cli import app, run

    with (Path(folder) / "said.txt").open("w", encoding="utf-8") as said:
        app.out.file = app.err.file = said
        code = run(list(arguments))
    left = os.listdir(tempfile.gettempdir())  # noqa: PTH208
    connection.send((code, last, left))
    os._exit(0)


def hurry(graphs):
    """Leave out what takes long and writes nothing: figures, resampling, capturing a graph that was captured before."""
    from urnet.benchmark import report
    from urnet.evaluation import evaluate, stress
    from urnet.export import formats, onnx_format

    report._draw_figures = lambda *_: []
    evaluate.draw_report_figures = lambda *_: []
    stress.REPLICATES = 2
    for name in list(stress.PERTURBATIONS)[1:]:
        del stress.PERTURBATIONS[name]
    with suppress(ImportError):
        import bioimageio.core

        bioimageio.core.test_model = lambda *_, **__: SimpleNamespace(status="passed")
    for place, name in ((onnx_format, "to_onnx"), (formats, "to_torch")):
        setattr(place, name, remembered(getattr(place, name), graphs / name))


def remembered(make, file):
    def graph(*arguments):
        if not file.is_file():
            file.write_bytes(make(*arguments))
        return file.read_bytes()

    return graph


def shorten_the_demo():
    from urnet.cells import simulate
    from urnet.recipe import load_recipe
    from urnet.training import fit

    draw = simulate.write_phantom
    simulate.write_phantom = lambda folder, cells, **kw: draw(folder, 48, size=32, donors=4, **kw)
    small = ["input.size=32", "enhancer.width=2", "classifier.name=test_resnet", "train.epochs=1"]
    fit.load_recipe = lambda name, overrides=(): load_recipe(name, [*overrides, *small])


@pytest.fixture(scope="module")
def perform(tmp_path_factory):
    """Run a command in a process of its own: `perform(arguments, folder, cut)`, what `work` sends, none when killed."""
    context, graphs = multiprocessing.get_context("forkserver"), tmp_path_factory.mktemp("graphs")
    modules = ("cli.runs", "benchmark.run", "benchmark.report", "training.fit", "evaluation.evaluate", "fields.crop")
    exporting = ("onnx", "onnxruntime", "onnxscript", "bioimageio.core", "openvino", "torch.export", "torch.onnx")
    context.set_forkserver_preload(
        [*(f"urnet.{name}" for name in modules), "urnet.fields.cropping.report", "urnet.export.formats", *exporting]
    )

    def perform(arguments, folder, cut=None):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(arguments, str(folder), cut, graphs, there))
        process.start()
        there.close()
        told = None
        with suppress(EOFError):
            told = here.recv()
        process.join(120)
        assert told is not None or process.exitcode == 137, (folder / "said.txt").read_text(encoding="utf-8")
        return told

    return perform


@pytest.fixture(scope="module")
def inputs(draw, tmp_path_factory, perform) -> Path:
    """Cells, a field, stained cells and two finished runs."""
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("cells", "run", "field.tif", "fields.csv", "recipe.yaml"):
        copy = shutil.copytree if (FROZEN / name).is_dir() else shutil.copyfile
        copy(FROZEN / name, folder / name)
    shutil.copytree(folder / "run", folder / "copy")
    for image in draw(folder / "stained", 3).rglob("*.png"):
        from PIL import Image

        Image.open(image).convert("RGB").save(image)
    return folder


def state(folder: Path) -> dict[str, str]:
    """Files and what is in them."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.startswith(("cache", "tmp", "said.txt")) or "tensorboard" in name:
            continue
        content = b"" if path.is_dir() or any(word in name for word in VOLATILE) else path.read_bytes()
        content = gzip.decompress(content) if name.endswith(".gz") else content
        content = re.sub(rb"\d{4}-\d\d-\d\d \d\d:\d\d[^\"<]*", b"", content)
        found[name] = hashlib.sha256(content).hexdigest()
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_that_is_repeated_ends_as_if_it_had_not_been(name, inputs, perform, tmp_path):
    if name == "bioimageio":
        pytest.importorskip("bioimageio.core")
    if name == "openvino":
        pytest.importorskip("openvino")
    whole = Path(shutil.copytree(inputs, tmp_path / "whole" / "w"))
    arguments = COMMANDS[name]
    code, last, _ = perform(arguments, whole)
    assert code in (0, 1), (whole / "said.txt").read_text(encoding="utf-8")
    expected = state(whole)
    folder = Path(shutil.copytree(inputs, tmp_path / "killed" / "w"))
    for cut in (("", "before"), (last, "before"), (last, "after")):
        assert perform(arguments, folder, cut) is None, cut
    again, _, temporary = perform(arguments, folder)
    assert again in (0, code), (folder / "said.txt").read_text(encoding="utf-8")
    assert temporary == []
    assert state(folder) == expected
