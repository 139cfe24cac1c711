"""Format torch: the graph as a `.pt2` file of torch.export, which runs without urnet."""

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from urnet.export.onnx_format import graph_properties
from urnet.export.parity import GraphFunction

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from urnet.bundle.model import Model

ABOUT = "urnet.json"
"""Name of the file inside that describes the graph."""


def to_torch(model: "Model", program: "ExportedProgram | None" = None) -> bytes:
    """Encode the graph of a model as a `.pt2` file: JSON and plain tensors, nothing pickled.

    Args:
        model: the trained model.
        program: the captured graph of the model, if it exists.

    Raises:
        RunError: the networks cannot be captured.
    """
    import torch

    from urnet.export.graph import capture

    program = capture(model) if program is None else program
    program.example_inputs = None  # the only part that would be pickled
    buffer = io.BytesIO()
    about = json.dumps(graph_properties(model), ensure_ascii=False)
    torch.export.save(program, buffer, extra_files={ABOUT: about})
    return buffer.getvalue()


def open_torch(path: Path) -> GraphFunction:
    """Open a graph of `to_torch`."""
    import torch

    with path.open("rb") as file:
        network = torch.export.load(io.BytesIO(file.read())).module()

    def run(counts: np.ndarray) -> tuple[np.ndarray, ...]:
        with torch.inference_mode():
            return tuple(part.numpy() for part in network(torch.from_numpy(counts)))

    return run
