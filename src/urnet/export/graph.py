"""The graph of all exports and engines: raw counts in; probabilities, enhanced images and features out."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from urnet.errors import RunError
from urnet.nets.features import extract_features

if TYPE_CHECKING:
    from urnet.bundle.model import Model

INPUT = "counts"
OUTPUTS = ("probabilities", "enhanced", "features")


class Graph(nn.Module):
    """Scaling, enhancer, normalisation, classifier and temperature as one network.

    It shares the networks of the model, on their device.

    Args:
        model: the trained model.
    """

    def __init__(self, model: "Model") -> None:
        super().__init__()
        scaling, calibration = model.config.scaling, model.calibration
        self.joint = model.joint
        self.low, self.scale = scaling.low, 1 / (scaling.high - scaling.low)
        self.temperature = 1.0 if calibration is None else calibration.temperature
        self.eval()

    def forward(self, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Classify and enhance crops.

        Args:
            counts: raw counts at the network's size, (B, C, S, S), float32.

        Returns:
            Probabilities (B, K) with the temperature of a calibrated model, enhanced images (B, C, S, S) in about
            [0, 1], and the features for rejection, (B, F).
        """
        images = ((counts - self.low) * self.scale).clamp(0, 1)  # (B, C, S, S)
        logits, enhanced, features = extract_features(self.joint, images)
        return torch.softmax(logits.float() / self.temperature, dim=1), enhanced, torch.cat(features, dim=1)


def capture(model: "Model") -> torch.export.ExportedProgram:
    """Capture the graph of a model with a free batch size; height and width are those of the training.

    Raises:
        RunError: a part of the model cannot be captured (code `export.not_exportable`).
    """
    enhancer = model.config.enhancer["name"]
    if not getattr(model.joint.enhancer, "exportable", True):
        raise RunError(
            f"enhancer {enhancer!r} is computed outside torch and cannot be exported; predict with the run, or train "
            f"with "
            "another enhancer",
            code="export.not_exportable",
        )
    config = model.config
    counts = torch.zeros(2, config.channels, config.size, config.size, device=model.device)
    batch = torch.export.Dim("batch", min=1, max=65536)
    try:
        with torch.no_grad():
            program = torch.export.export(Graph(model), (counts,), dynamic_shapes={INPUT: {0: batch}})
    except Exception as error:  # torch.export raises errors of many kinds, without a common base
        reason = " ".join(str(error).split())[:300]
        raise RunError(
            f"the networks (enhancer {enhancer!r}, classifier {config.classifier['name']!r}) cannot be captured "
            f"by torch.export ({type(error).__name__}: {reason}); predict with the run, or train with other networks",
            code="export.not_exportable",
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names files of this computer
    return program
