"""The calibration of a model, on disk beside its weights: `calibration.json` and `calibration.safetensors`."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from urnet.calibration import conformal
from urnet.calibration.distance import Distance
from urnet.calibration.reference import Reference
from urnet.calibration.rejection import CHECKS, Rejection, Row
from urnet.errors import RunError
from urnet.files import whole_file

FORMAT = 1
JSON_NAME, TENSORS_NAME = "calibration.json", "calibration.safetensors"

COVERAGE = 0.9
"""Share of each class's cells whose prediction set holds it, unless another is asked for."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """What held-out cells say of a model.

    Attributes:
        classes: the K class names, in the order of the outputs.
        temperature: what the logits are divided by.
        scores: for each class the conformal scores of its held-out cells, ascending.
        rejection: which crops are no countable cells.
        reference: cells on which the decisions were counted.
        reference_part: the part that they are from: `test`, or `validation` where a run has no test part.
        parts: cells of each part that went into it (`train`: distances and limits; `validation`: temperature, scores
            and limits; `test`: the confusion).
        false_rejection: the share of good cells that was to be rejected.
    """

    classes: tuple[str, ...]
    temperature: float
    scores: tuple[np.ndarray, ...]
    rejection: Rejection
    reference: Reference
    reference_part: str
    parts: dict[str, int]
    false_rejection: float

    @property
    def confusion(self) -> np.ndarray:
        """(K, K + 1) cells by true class (rows) and decision (columns); the last column are those rejected."""
        return self.reference.confusion

    def prediction_sets(self, probabilities: np.ndarray, coverage: float = COVERAGE) -> np.ndarray:
        """The classes that cannot be ruled out for each cell, (N, K) booleans.

        Args:
            probabilities: (N, K), with the temperature.
            coverage: share of each class's cells whose set holds it, in (0, 1).
        """
        return conformal.prediction_sets(probabilities, self.scores, coverage)

    def set_names(self, probabilities: np.ndarray, coverage: float = COVERAGE) -> list[str]:
        """The prediction sets as tables show them: class names joined by `|`."""
        sets = self.prediction_sets(probabilities, coverage)
        return ["|".join(name for name, there in zip(self.classes, row, strict=True) if there) for row in sets]

    def reject(self, rows: Sequence[Row], features: np.ndarray) -> list[str]:
        """Why each crop is not counted; "" for those that are.

        Args:
            rows: the measures of each crop at the network's size, from `quality`, and where known its `edge` (share of
                the crop beyond the field's border) and `touching` (share of the outline next to another cell).
            features: (N, F), from the model's outputs.
        """
        return self.rejection.reject(rows, features)

    def save(self, folder: Path) -> None:
        """Write both files; the one that names the other comes last."""
        from safetensors.numpy import save

        rejection, distance = self.rejection, self.rejection.distance
        tensors = {
            "rejection.quantiles": rejection.quantiles,
            "rejection.tails": rejection.tails,
            "distance.centre": distance.centre,
            "distance.spread": distance.spread,
            "reference.probabilities": self.reference.probabilities,
            "reference.truth": self.reference.truth,
            "reference.rejected": self.reference.rejected,
            **{f"scores.{k}": scores for k, scores in enumerate(self.scores)},
            **{f"distance.whiten.{depth}": axes for depth, axes in enumerate(distance.whiten)},
        }
        content = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
        about = {
            "format": FORMAT,
            "classes": self.classes,
            "temperature": self.temperature,
            "false_rejection": self.false_rejection,
            "level": rejection.level,
            "checks": [[CHECKS[i].measure, CHECKS[i].side] for i in rejection.checks],
            "limits": rejection.limits(),
            "confusion": self.confusion.tolist(),
            "reference_part": self.reference_part,
            "parts": self.parts,
            "depths": len(distance.whiten),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        with whole_file(folder / TENSORS_NAME) as file:
            file.write(content)
        with whole_file(folder / JSON_NAME) as file:
            file.write((json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> "Calibration":
        """Read both files.

        Raises:
            RunError: one is missing, damaged, newer than this program, or they do not belong together.
        """
        from safetensors.numpy import load

        path = folder / JSON_NAME
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            if about["format"] > FORMAT:
                raise RunError(
                    f"{path}: written by a newer urnet (format {about['format']}, this one reads {FORMAT}); "
                    "update urnet"
                )
            content = (folder / TENSORS_NAME).read_bytes()
            if hashlib.sha256(content).hexdigest() != about["sha256"]:
                raise ValueError(f"{TENSORS_NAME} is not the file that it was written with")
            return cls._from(about, load(content))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RunError(
                f"{path}: the calibration is damaged ({reason}); make it again with `urnet calibrate`"
            ) from None

    @classmethod
    def _from(cls, about: dict[str, Any], tensors: dict[str, np.ndarray]) -> "Calibration":
        order = [(check.measure, check.side) for check in CHECKS]
        distance = Distance(
            tensors["distance.centre"],
            tuple(tensors[f"distance.whiten.{depth}"] for depth in range(about["depths"])),
            tensors["distance.spread"],
        )
        found = cls(
            classes=tuple(about["classes"]),
            temperature=float(about["temperature"]),
            scores=tuple(tensors[f"scores.{k}"] for k in range(len(about["classes"]))),
            rejection=Rejection(
                checks=tuple(order.index((measure, side)) for measure, side in about["checks"]),
                quantiles=tensors["rejection.quantiles"],
                tails=tensors["rejection.tails"],
                level=float(about["level"]),
                distance=distance,
            ),
            reference=Reference(*(tensors[f"reference.{name}"] for name in ("probabilities", "truth", "rejected"))),
            reference_part=str(about["reference_part"]),
            parts={str(part): int(count) for part, count in about["parts"].items()},
            false_rejection=float(about["false_rejection"]),
        )
        if not (np.isfinite(found.temperature) and found.temperature > 0):
            raise ValueError(f"temperature is {found.temperature}")
        if found.confusion.tolist() != about["confusion"]:
            raise ValueError("the confusion is not that of the reference's cells")
        return found
