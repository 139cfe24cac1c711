"""Export of a run to each format and back, and errors before anything is written."""

import json
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import urnet
from urnet import optional_packages
from urnet.bundle.model import Model
from urnet.export import onnx_format
from urnet.export.formats import FORMATS, export_run
from urnet.export.model_card import model_card, read_test_metrics
from urnet.run_folder import Run


@pytest.fixture(scope="module")
def run(trained) -> Path:
    return trained.folder


@pytest.fixture
def evaluated(run, tmp_path) -> Path:
    """The run with the metrics of an evaluation, whose figures are made up."""
    copy = tmp_path / "evaluated"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    table = pd.read_csv(copy / "cells.csv", dtype=str, keep_default_na=False)
    table["path"] = [(run / path).resolve().as_posix() for path in table["path"]]
    table.to_csv(copy / "cells.csv", index=False)
    share = {"value": 0.8765, "interval": [0.8, 0.95]}
    figures = {"recall": share, "precision": share, "f1": {"value": None, "interval": None}, "support": 4}
    metrics = {
        "accuracy": share,
        **dict.fromkeys(("macro_recall", "macro_precision", "macro_f1"), share),
        "per_class": dict.fromkeys(("bar", "disc", "ring"), figures),
        "n": 12,
        "epoch": Model.load(copy).config.epoch,
        "intervals": {
            "method": "t interval over 12 source images",
            "unit": "source image",
            "groups": 12,
            "level": 0.95,
            "note": "differences between donors are left out",
        },
        "warnings": ["2 images are left out"],
    }
    place = copy / "evaluation" / "test"
    place.mkdir(parents=True, exist_ok=True)
    (place / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return copy


@pytest.fixture
def quick(trained_graph, monkeypatch):
    """Formats that hold ONNX use a graph that was exported once."""
    monkeypatch.setattr(onnx_format, "to_onnx", lambda model, opset=None: trained_graph)


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_one_file(format, run, tmp_path, quick):
    out = tmp_path / f"model.{format}"
    done = export_run(run, format, out)
    assert done.path == out
    assert done.parity.within_limits
    assert done.parity.cells == 12
    assert done.notes == ["checked on 12 cells of the run's test part"]
    assert left_behind(tmp_path) == [out.name]
    model = Run(run).load_model()
    counts = model.read(Run(run).cells().part("test")).astype(np.float32)
    probabilities, enhanced, _ = FORMATS[format].read(out)(counts)
    expected = next(model.outputs(model.config.scaling.apply(counts)))
    assert np.abs(probabilities - expected.probabilities).max() < 1e-4
    assert np.abs(enhanced - expected.enhanced).max() < 1e-4


@pytest.mark.slow
def test_openvino(run, tmp_path, quick, raises_code):
    pytest.importorskip("openvino")
    assert export_run(run, "openvino", tmp_path / "out").parity.within_limits
    assert left_behind(tmp_path / "out") == ["model.bin", "model.xml"]
    (tmp_path / "out" / "model.bin").unlink()
    with raises_code("model.graph_unusable"):
        FORMATS["openvino"].read(tmp_path / "out")


@pytest.mark.slow
def test_bioimageio_passes_its_own_test(evaluated, tmp_path, quick):
    core = pytest.importorskip("bioimageio.core")
    if version("bioimageio.spec") == "0.5.12.0" and version("pydantic") >= "2.14":
        pytest.skip("bioimageio.spec 0.5.12 fails with pydantic 2.14")
    out = tmp_path / "out"
    done = export_run(evaluated, "bioimageio", out)
    assert "2 real cells are in it as test tensors" in done.notes
    moved = out.rename(tmp_path / "moved")
    assert core.test_model(moved / "rdf.yaml").status == "passed"
    text = (moved / "rdf.yaml").read_text(encoding="utf-8")
    assert tmp_path.as_posix() not in text
    np.save(moved / "probabilities.npy", np.full((2, 3), 1 / 3, np.float32))  # no longer what the model says
    assert core.test_model(moved / "rdf.yaml").status != "passed"


@pytest.mark.slow
def test_hub_is_read_back_and_described(evaluated, shapes, tmp_path, quick):
    from huggingface_hub import ModelCard

    out = tmp_path / "out"
    done = export_run(evaluated, "hub", out)
    assert {"README.md", "config.json", "model.onnx", "model.safetensors"} <= set(left_behind(out))
    assert not [name for name in left_behind(out) if name.endswith((".ckpt", ".pt", ".pkl", ".bin"))]
    images = sorted((shapes / "ring").iterdir())[:3]
    assert urnet.load(out).predict(images).to_frame().equals(urnet.load(evaluated).predict(images).to_frame())
    assert any("licence" in note for note in done.notes)
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "urnet"
    assert {result.metric_name: result.metric_value for result in card.data.eval_results} == {
        "Accuracy": 0.8765,
        "Macro recall": 0.8765,
    }
    text = " ".join(card.text.split())
    for phrase in (
        "research use only",
        "| ring | 14 | 2 | 4 |",
        "| ring | 87.6 (80.0–95.0) | 87.6 (80.0–95.0) | – | 4 |",
        "95 % t interval over 12 source images",
        "differences between donors are left out",
        "2 images are left out",
        "Protocol `honest`",
        "temperature",
    ):
        assert phrase in text, phrase
    assert tmp_path.as_posix() not in (out / "README.md").read_text(encoding="utf-8")


def test_the_card_has_no_figures_of_other_weights(evaluated):
    model = Model.load(evaluated)
    assert read_test_metrics(model, Run(evaluated)) is not None
    model.config = replace(model.config, epoch=model.config.epoch + 1)
    assert read_test_metrics(model, Run(evaluated)) is None
    assert "was not evaluated, so there are no figures" in model_card(model, Run(evaluated), "")


def test_the_card_says_what_is_optimistic_simulated_or_unknown(evaluated):
    model = Model.load(evaluated)
    model.config = replace(model.config, protocol="paper", name="a|b")
    model.calibration = None
    table = pd.read_csv(evaluated / "cells.csv", dtype=str, keep_default_na=False)
    table["simulated"], table["donor"] = "destain", "d1"
    table.to_csv(evaluated / "cells.csv", index=False)
    card = model_card(model, Run(evaluated), "")
    for phrase in ("**optimistic**", "**simulated** (destain)", "a\\|b", "not calibrated", "gave cells to training"):
        assert phrase in card, phrase
    assert "are not known here" in model_card(model, None, "")


def test_a_bundle_needs_cells(run, shapes, tmp_path, quick, raises_code):
    bundle = shutil.copytree(run / "model", tmp_path / "bundle")
    with raises_code("run.is_bundle"):
        export_run(bundle, "onnx", tmp_path / "out.onnx")
    done = export_run(bundle, "onnx", tmp_path / "out.onnx", cells=shapes)
    assert done.parity.cells == 60
    assert done.notes == [f"checked on 60 cells of {shapes}"]


def test_without_a_test_part_the_validation_part_is_compared(evaluated, tmp_path, quick):
    table = pd.read_csv(evaluated / "cells.csv", dtype=str, keep_default_na=False)
    table[table["split"] != "test"].to_csv(evaluated / "cells.csv", index=False)
    done = export_run(evaluated, "onnx", tmp_path / "out.onnx")
    assert done.notes == ["checked on 6 cells of the run's validation part"]


def test_progress_is_reported(run, tmp_path, quick):
    steps = []
    export_run(run, "onnx", tmp_path / "out.onnx", progress=lambda what, share: steps.append((what, share)))
    assert list(dict(steps)) == ["read cells", "write", "check"]
    assert steps[-1] == ("check", 1.0)


@pytest.mark.parametrize("format", FORMATS)
def test_a_graph_with_other_outputs_is_not_written(format, run, tmp_path, monkeypatch, raises_code):
    wrong = lambda place: lambda counts: [part + 0.1 for part in graph(counts)]  # noqa: E731
    monkeypatch.setitem(FORMATS, format, replace(FORMATS[format], read=wrong, write=write, packages=()))
    model = Model.load(run)

    def graph(counts):
        outputs = next(model.outputs(model.config.scaling.apply(counts)))
        return outputs.probabilities, outputs.enhanced, outputs.features

    with raises_code("model.graph_differs"):
        export_run(run, format, tmp_path / "out")
    assert left_behind(tmp_path) == []


def write(source, folder=None):
    """Write a file without reading the model."""
    return b"content" if folder is None else (folder / "file").write_bytes(b"content") and []


def test_an_unknown_format_is_refused(raises_code):
    with raises_code("export.format_unknown"):
        export_run(Path("run"), "tflite", Path("out"))


def test_an_opset_must_be_one(run, tmp_path, raises_code):
    with raises_code("export.opset_invalid"):
        export_run(run, "onnx", tmp_path / "out.onnx", opset=5)
    with raises_code("export.opset_invalid"):
        export_run(run, "torch", tmp_path / "out.pt2", opset=20)


@pytest.mark.parametrize("format", FORMATS)
def test_an_existing_folder_is_not_changed(format, run, tmp_path, monkeypatch, raises_code):
    monkeypatch.setattr("urnet.export.formats.require_packages", lambda *names: None)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine", encoding="utf-8")
    with raises_code("run.exists"):
        export_run(run, format, out)
    assert left_behind(out) == ["mine"]


def test_a_run_without_a_trained_bundle(run, tmp_path, raises_code):
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("recipe.yaml", "cells.csv"):
        shutil.copyfile(run / name, begun / name)
    with raises_code("model.not_found"):
        export_run(begun, "onnx", tmp_path / "out.onnx")


@pytest.mark.parametrize(
    ("format", "package", "advice"),
    [
        ("openvino", "openvino", 'pip install "urnet[openvino]"'),
        ("bioimageio", "bioimageio.core", 'pip install "urnet[bioimageio]"'),
        ("onnx", "onnxscript", "pip install onnxscript"),
    ],
)
def test_an_error_names_a_missing_package_and_its_installation(
    format, package, advice, run, tmp_path, monkeypatch, raises_code
):
    monkeypatch.setattr(optional_packages, "is_installed", lambda name: name != package)
    with raises_code("package.missing") as caught:
        export_run(run, format, tmp_path / "out")
    assert package in str(caught.value)
    assert advice in str(caught.value)
    assert left_behind(tmp_path) == []


def test_a_package_within_a_missing_one_is_missing():
    assert not optional_packages.is_installed("no_such_package.core")
    assert optional_packages.is_installed("numpy")
