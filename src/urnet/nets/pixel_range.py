"""The range of enhanced images: whether what an enhancer gives still is a picture."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MAX_SHARE_OUTSIDE = 0.02
"""Share of pixels outside [0, 1] up to which an image is a picture."""
MAX_OVERSHOOT = 0.1
"""Distance beyond 0 and 1 up to which an image is a picture, however many pixels are there, as RSGUNet's are."""


@dataclass
class PixelRange:
    """The smallest and the largest pixel of images, and how many lie outside [0, 1]."""

    minimum: float = math.inf
    maximum: float = -math.inf
    outside: int = 0
    total: int = 0

    def add(self, images: "Tensor | np.ndarray") -> None:
        """Count the pixels of some images, of any shape."""
        self.minimum, self.maximum = min(self.minimum, float(images.min())), max(self.maximum, float(images.max()))
        self.outside += int(((images < 0) | (images > 1)).sum())
        self.total += math.prod(images.shape)

    def __add__(self, other: "PixelRange") -> "PixelRange":
        return PixelRange(
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
            self.outside + other.outside,
            self.total + other.total,
        )

    @property
    def share_outside(self) -> float:
        """Share of the pixels outside [0, 1], 0 to 1."""
        return self.outside / max(1, self.total)

    @property
    def warning(self) -> str | None:
        """What a user should know; none where the images are pictures."""
        if self.share_outside <= MAX_SHARE_OUTSIDE or (
            self.minimum >= -MAX_OVERSHOOT and self.maximum <= 1 + MAX_OVERSHOOT
        ):
            return None
        return (
            f"the enhanced image leaves [0, 1]: {self.minimum:.3g} to {self.maximum:.3g}, "
            f"{self.share_outside:.0%} of its pixels outside. The classifier then sees no picture. "
            "enhancer.bounded=true keeps the enhancers that have this option inside"
        )
