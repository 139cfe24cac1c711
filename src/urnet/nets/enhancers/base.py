"""Base class of every enhancer: it accepts images of any size, and offers residual and bounded output."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from urnet.errors import ImageError

LOGIT_MARGIN = 0.01
"""Smallest distance of pixels from 0 and from 1 before the logit. Between these limits the identity is exact."""


def round_up_to_16(size: int, *, least: int = 16) -> tuple[int, int]:
    """Return the input side and the output side, px, with which a padded network of five scales covers an image.

    Args:
        size: Side of the image, px.
        least: Smallest side, px. Reflected borders of the deepest map need 32.
    """
    side = max(least, -(-size // 16) * 16)
    return side, side


def choose_fit(padding_mode: str) -> Callable[[int], tuple[int, int]]:
    """Return the `fit` of a padded network of five scales. A deepest map of 1 px cannot be reflected."""
    return partial(round_up_to_16, least=32) if padding_mode == "reflect" else round_up_to_16


def keep_side(size: int) -> tuple[int, int]:
    """Return the input side and the output side, px, of a network that takes images of any size."""
    return size, size


def logit(x: Tensor) -> Tensor:
    """Invert the sigmoid of pixels in [0, 1], of any shape, after clipping them to `LOGIT_MARGIN` from 0 and 1."""
    x = x.clamp(LOGIT_MARGIN, 1 - LOGIT_MARGIN)
    return torch.log(x / (1 - x))


class Enhancer(nn.Module):
    """An image-to-image network that accepts any size from 2 × 2 px.

    It mirrors the image outwards to a size that its body accepts, and crops the result back.

    Args:
        body: Network (B, C, H, W) → (B, C, H', W'). With `residual` it must have an attribute `head`: its last layer or
            layers.
        residual: Return `x + body(x)` instead of `body(x)`. The head starts at zero, so that the enhancer is exactly
            the identity before the first optimiser step. Not in the paper: it is the alternative to pre-training the
            enhancer to the identity (section 3.3).
        bounded: Keep the output in [0, 1] by a sigmoid: `σ(body(x))`, and with `residual` `σ(logit(x) + body(x))`.
            The identity is then exact for pixels in [0.01, 0.99], and off by at most 0.01 beyond. Not in the paper:
            its linear output drifts far from [0, 1] as soon as it is trained through a classifier.
        fit: Maps a side of the image, px, to the input side and the output side of the body, px. The output side is
            at least the side of the image. The body must lose as many pixels at the start as at the end, or one more at
            the end.
    """

    def __init__(
        self,
        body: nn.Module,
        *,
        residual: bool = False,
        bounded: bool = False,
        fit: Callable[[int], tuple[int, int]] = round_up_to_16,
    ) -> None:
        super().__init__()
        self.body = body
        self.residual = residual
        self.bounded = bounded
        self.fit = fit
        if residual:
            for parameter in body.head.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Enhance a batch of images.

        Args:
            x: Pixels in [0, 1], (B, C, H, W).

        Returns:
            The enhanced images, (B, C, H, W). They lie in [0, 1] only if `bounded`.

        Raises:
            ImageError: H or W is below 2 px.
        """
        height, width = x.shape[-2:]
        (top, bottom), skip_rows = _margins(height, *self.fit(height))
        (left, right), skip_columns = _margins(width, *self.fit(width))
        y = self.body(reflect_pad(x, left, right, top, bottom))
        y = y[..., skip_rows : skip_rows + height, skip_columns : skip_columns + width]  # (B, C, H, W)
        if not self.bounded:
            return x + y if self.residual else y
        y = y.to(x.dtype)  # a sigmoid in bfloat16 would have steps of 0.004
        return torch.sigmoid(logit(x) + y if self.residual else y)


def _margins(size: int, input_side: int, output_side: int) -> tuple[tuple[int, int], int]:
    """Return the px to add before and after `size`, and the px to skip at the start of the output of the body."""
    skip = (output_side - size) // 2
    before = (input_side - output_side) // 2 + skip
    return (before, input_side - size - before), skip


def reflect_pad(x: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    """Mirror an image outwards by any number of pixels.

    `torch.nn.functional.pad` refuses margins as wide as the image. This function repeats the mirroring until the
    margins are filled, as `numpy.pad(mode="reflect")` does.

    Args:
        x: Images, (B, C, H, W).
        left: Columns to add before the first.
        right: Columns to add after the last.
        top: Rows to add before the first.
        bottom: Rows to add after the last.

    Returns:
        The images with their margins, (B, C, top + H + bottom, left + W + right).

    Raises:
        ImageError: A margin is above 0, and H or W is below 2 px.
    """
    margins = [left, right, top, bottom]
    height, width = x.shape[-2:]
    if any(margins) and min(height, width) < 2:
        raise ImageError(
            f"an enhancer cannot mirror an image of {width} × {height} px outwards; it needs at least 2 × 2 px. "
            "Leave such crops out",
            code="images.too_small",
        )
    period = (width - 1, width - 1, height - 1, height - 1)  # whole periods keep the mirror axes at the edges
    while any(margins):
        step = [min(px, limit) for px, limit in zip(margins, period, strict=True)]
        x = F.pad(x, step, mode="reflect")
        margins = [px - done for px, done in zip(margins, step, strict=True)]
    return x
