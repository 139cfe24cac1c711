"""Format hub: a folder for the Hugging Face Hub with the bundle, its graph in ONNX and a model card."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from urnet.export.model_card import model_card, read_test_metrics
from urnet.export.parity import GraphFunction

if TYPE_CHECKING:
    from urnet.bundle.model import Model
    from urnet.run_folder import Run

GRAPH, CARD = "model.onnx", "README.md"

_USAGE = """\
```python
import urnet
from huggingface_hub import snapshot_download

model = urnet.load(snapshot_download("OWNER/NAME"))  # or this folder
model.predict(["cell.png"])
```

`model.onnx` is the same model without Python: input `counts`, raw counts as float32
(batch, {channels}, {size}, {size}); outputs `probabilities` (batch, {classes}), `enhanced`
(batch, {channels}, {size}, {size}) and `features`."""


def write(model: "Model", run: "Run | None", onnx: bytes, folder: Path) -> list[str]:
    """Fill a folder that `huggingface_hub.upload_folder` can push and `urnet.load` reads.

    Args:
        model: the trained model.
        run: its run folder, for the card.
        onnx: its graph, from `to_onnx`.
        folder: the folder to fill.

    Returns:
        Notes for the user.
    """
    from urnet.bundle.files import copy_bundle

    config = model.config
    if model.folder is None:
        model.save(folder)
    else:
        copy_bundle(model, folder)
    (folder / GRAPH).write_bytes(onnx)
    usage = _USAGE.format(channels=config.channels, size=config.size, classes=len(config.classes))
    metrics = read_test_metrics(model, run)
    card = f"---\n{_metadata(model, metrics)}\n---\n\n{model_card(model, run, usage)}"
    (folder / CARD).write_text(card, encoding="utf-8", newline="\n")
    notes = ["the card names no licence; add one to README.md before you publish it"]
    if metrics is None:
        notes.insert(0, "the card states no figures; run `urnet evaluate`, then export again")
    return notes


def open_bundle(folder: Path) -> GraphFunction:
    """Open the written bundle on the CPU, as a user will."""
    import torch

    from urnet.bundle.model import Model

    model = Model.load(folder)
    model.device = torch.device("cpu")
    model.joint.to(model.device)

    def run(counts: np.ndarray) -> tuple[np.ndarray, ...]:
        outputs = next(model.outputs(model.config.scaling.apply(counts), len(counts)))
        return outputs.probabilities, outputs.enhanced, outputs.features

    return run


def _metadata(model: "Model", metrics: dict[str, Any] | None) -> str:
    """Make the card's YAML: tags of the hub, and the figures of the test part."""
    from huggingface_hub import EvalResult, ModelCardData

    config = model.config
    data = ModelCardData(
        library_name="urnet",
        pipeline_tag="image-classification",
        tags=["urnet", "onnx", "microscopy", "white-blood-cells", "label-free", "image-enhancement"],
    )
    if metrics is not None:
        data.model_name = config.name
        figures = {"accuracy": ("accuracy", "Accuracy"), "macro_recall": ("recall", "Macro recall")}
        data.eval_results = [
            EvalResult(
                task_type="image-classification",
                dataset_type="own",
                dataset_name=f"the run's own test part, protocol {config.protocol}",
                dataset_split="test",
                metric_type=kind,
                metric_name=name,
                metric_value=metrics[key]["value"],
                metric_args={"interval": metrics[key]["interval"], "level": 0.95, "cells": metrics["n"]},
            )
            for key, (kind, name) in figures.items()
        ]
    return data.to_yaml().strip()
