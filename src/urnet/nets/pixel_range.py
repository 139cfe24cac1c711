"""Range of the pixels of enhanced images, with a warning if too many leave [0, 1]."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MAX_SHARE_OUTSIDE = 0.02
"""Share of pixels outside [0, 1] up to which there is no warning."""
MAX_OVERSHOOT = 0.1
"""Distance beyond 0 and 1 up to which there is no warning for any share of pixels. RSGUNet's range is [-0.06, 1.1]."""


@dataclass
class PixelRange:
    """Minimum and maximum of the pixels of images, and the number outside [0, 1]."""

    minimum: float = math.inf
    maximum: float = -math.inf
    outside: int = 0
    total: int = 0

    def add(self, images: "Tensor | np.ndarray") -> None:
        """Add images of any shape."""
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
        """Warning to the user, or None."""
        if self.share_outside <= MAX_SHARE_OUTSIDE or (
            self.minimum >= -MAX_OVERSHOOT and self.maximum <= 1 + MAX_OVERSHOOT
        ):
            return None
        return (
            f"the enhanced image leaves [0, 1]: its pixels lie between {self.minimum:.3g} and {self.maximum:.3g}, "
            f"{self.share_outside:.0%} of them outside. Set enhancer.bounded=true to keep it inside, "
            "if the enhancer has that option"
        )
