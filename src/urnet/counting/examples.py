"""Examples of the cells of a sample: a few crops of each predicted class, and of rejected cells."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np

from urnet.images.scale import Scaling

PER_GROUP = 6
"""Number of examples of each class, and of rejected cells."""

REJECTED = "rejected"
"""Name of the group of rejected cells."""


@dataclass(frozen=True)
class Example:
    """One crop with its prediction.

    Attributes:
        image: the crop as a PNG in a data URI.
        caption: probability of the predicted class in per cent, or the reason of a rejection.
    """

    image: str
    caption: str


class ExampleCollector:
    """Collector of the first crops of each group and sample, filled while cells are classified.

    Args:
        donors: donor of each cell.
        scaling: of the model, by which raw counts become a picture.
    """

    def __init__(self, donors: Sequence[str], scaling: Scaling):
        self.donors, self.scaling = donors, scaling
        self.groups: dict[str, dict[str, list[Example]]] = {}

    def add(self, index: int, row: Mapping[str, str], crop: np.ndarray) -> None:
        """Take a cell as an example if its group has too few.

        Args:
            index: number of the cell.
            row: its prediction.
            crop: (C, S, S) raw counts.
        """
        groups = self.groups.setdefault(self.donors[index], {})
        group = groups.setdefault(REJECTED if row.get("rejected") else row["predicted"], [])
        if len(group) < PER_GROUP:
            caption = row.get("rejected") or f"{100 * float(row['p_' + row['predicted']]):.0f} %"
            group.append(Example(_to_data_uri(self.scaling.apply(crop)), caption))


def _to_data_uri(image: np.ndarray) -> str:
    """Encode an image (C, S, S) in [0, 1] as a PNG in a data URI."""
    from PIL import Image

    pixels = np.rint(255 * np.clip(np.moveaxis(image, 0, -1), 0, 1)).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
