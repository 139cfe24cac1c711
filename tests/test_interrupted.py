"""Every command that is killed and repeated ends with the result of one that was not killed.

Commands run in processes forked from one that has loaded torch. Each is killed three times, at the renames that put
results in their places: before the first, before the last and after the last.
"""

import importlib.util
import multiprocessing
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

import urnet

_spec = importlib.util.spec_from_file_location("commands", Path(__file__).parents[1] / "benchmarks" / "commands.py")
commands = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(commands)

COMMANDS = commands.build_commands(short=True)
PRELOADED = (
    *("benchmark.compare", "benchmark.run", "benchmark.report", "cells.simulate", "cli.cells", "cli.comparisons"),
    *("cli.runs", "counting.differential", "evaluation.evaluate", "evaluation.stress", "export.formats"),
    *("fields.cropping.crop", "fields.cropping.report", "images.simulation.destain", "nets", "nets.gradcam", "predict"),
    *("training.calibrate", "training.fit", "training.lightning_modules"),
)
"""Modules of urnet that the forked processes share."""
PRELOADED_PACKAGES = (
    *("onnx", "onnxruntime", "onnxscript", "bioimageio.core", "openvino", "torch.export", "torch.onnx"),
    *("captum.attr", "lightning", "matplotlib.figure", "pandas", "scipy.stats", "skimage", "sklearn", "timm"),
)


def run_command(arguments, folder, cut, graphs, connection):
    """Run a command in this process, and exit with 137 at the rename `cut`.

    Without a cut send the exit code, the name of the last renamed file, and the files in the temporary folder.
    """
    os.chdir(folder)
    os.environ["URNET_CACHE"] = str(Path(folder) / "cache")
    tempfile.tempdir = str(Path(folder) / "tmp")
    Path(tempfile.tempdir).mkdir(exist_ok=True)
    import torch

    torch.set_num_threads(1)
    rename, last = os.replace, ""

    def cut_rename(source, target):
        nonlocal last
        last = Path(target).name
        if cut in (("", "before"), (last, "before")):
            os._exit(137)
        rename(source, target)
        if cut == (last, "after"):
            os._exit(137)

    os.replace = cut_rename
    skip_slow_steps(graphs)
    if arguments[0] == "demo":
        shorten_demo()
    from urnet.cli import app, run

    with (Path(folder) / "output.txt").open("w", encoding="utf-8") as output:
        app.out.file = app.err.file = output
        code = run(list(arguments))
    temporary = os.listdir(tempfile.gettempdir())  # noqa: PTH208
    connection.send((code, last, temporary))
    os._exit(0)


def skip_slow_steps(graphs):
    """Skip slow steps that write nothing: figures, resampling, and capturing the same graph again."""
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
    for module, name in ((onnx_format, "to_onnx"), (formats, "to_torch")):
        setattr(module, name, cache_graph(getattr(module, name), graphs / name))


def cache_graph(make, file):
    def graph(*arguments):
        if not file.is_file():
            file.write_bytes(make(*arguments))
        return file.read_bytes()

    return graph


def shorten_demo():
    from urnet.cells import simulate
    from urnet.recipe import load_recipe
    from urnet.training import fit

    draw = simulate.write_phantom
    simulate.write_phantom = lambda folder, cells, **kw: draw(folder, 48, size=32, donors=4, **kw)
    small = ["input.size=32", "enhancer.width=2", "classifier.name=test_resnet", "train.epochs=1"]
    fit.load_recipe = lambda name, overrides=(): load_recipe(name, [*overrides, *small])


@pytest.fixture(scope="module")
def perform(tmp_path_factory):
    """Run a command in a process of its own: `perform(arguments, folder, cut)`.

    It returns what `run_command` sends; None if the process was killed.
    """
    context, graphs = multiprocessing.get_context("forkserver"), tmp_path_factory.mktemp("graphs")
    context.set_forkserver_preload([*(f"urnet.{name}" for name in PRELOADED), *PRELOADED_PACKAGES])

    def perform(arguments, folder, cut=None):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=run_command, args=(arguments, str(folder), cut, graphs, sender))
        process.start()
        sender.close()
        result = None
        with suppress(EOFError):
            result = receiver.recv()
        process.join(120)
        assert result is not None or process.exitcode == 137, (folder / "output.txt").read_text(encoding="utf-8")
        return result

    return perform


def test_every_preloaded_module_exists():
    source = Path(urnet.__file__).parent
    paths = [source / name.replace(".", "/") for name in PRELOADED]
    assert [path for path in paths if not (path.is_dir() or path.with_suffix(".py").is_file())] == []  # else ignored


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return commands.write_inputs(tmp_path_factory.mktemp("inputs"), stained=6, size=24)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_that_is_repeated_ends_like_one_that_was_not_killed(name, inputs, perform, tmp_path):
    if name == "export bioimageio":
        pytest.importorskip("bioimageio.core")
    if name == "export openvino":
        pytest.importorskip("openvino")
    whole = Path(shutil.copytree(inputs, tmp_path / "whole" / "w"))
    arguments = COMMANDS[name]
    code, last, _ = perform(arguments, whole)
    assert code in (0, 1), (whole / "output.txt").read_text(encoding="utf-8")
    expected = commands.hash_outputs(whole)
    folder = Path(shutil.copytree(inputs, tmp_path / "killed" / "w"))
    for cut in (("", "before"), (last, "before"), (last, "after")):
        assert perform(arguments, folder, cut) is None, cut
    repeated, _, temporary = perform(arguments, folder)
    assert repeated in (0, code), (folder / "output.txt").read_text(encoding="utf-8")
    assert temporary == []
    assert commands.hash_outputs(folder) == expected
