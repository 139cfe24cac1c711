"""The frame around every enhancer: any image size in, the same size out; residual and bounded output."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from urnet.errors import ImageError

LOGIT_MARGIN = 0.01
"""Distance from 0 and from 1 that pixels keep before the logit; within it, the identity is exact."""


def round_up_to_16(size: int, *, least: int = 16) -> tuple[int, int]:
    """Give the side that a padded network of five scales reads, and the side that it returns, to cover `size` px.

    Args:
        size: Side of the image, px.
        least: Smallest side, px; reflected borders of the deepest map need 32.
    """
    side = max(least, -(-size // 16) * 16)
    return side, side


def choose_fit(padding_mode: str) -> Callable[[int], tuple[int, int]]:
    """Give the `fit` of a padded network of five scales; a deepest map of 1 px has nothing to reflect."""
    return partial(round_up_to_16, least=32) if padding_mode == "reflect" else round_up_to_16


def logit(x: Tensor) -> Tensor:
    """Invert the sigmoid of pixels in [0, 1], of any shape, after keeping them `LOGIT_MARGIN` away from 0 and 1."""
    x = x.clamp(LOGIT_MARGIN, 1 - LOGIT_MARGIN)
    return torch.log(x / (1 - x))


class Enhancer(nn.Module):
    """An image-to-image network that accepts any size from 2 × 2 px.

    The image is mirrored outwards to a size that the body can take, and the result is cropped back.

    Args:
        body: Network (B, C, H, W) → (B, C, H', W'). With `residual` it must have an attribute `head`, the layer or
            layers that its output comes from.
        residual: Return `x + body(x)` instead of `body(x)`. The head starts at zero, so that before the first
            optimiser step the enhancer is exactly the identity. Not in the paper: it is the alternative to
            pre-training the enhancer to the identity (paper, section 3.3).
        bounded: Keep the output in [0, 1] by a sigmoid: `σ(body(x))`, and with `residual` `σ(logit(x) + body(x))`, in
            which the identity is exact for pixels in [0.01, 0.99] and off by 0.01 at most beyond. Not in the paper,
            whose linear output drifts far from [0, 1] as soon as it is trained through a classifier.
        fit: Gives, for a side of the image in px, the side that the body should be fed and the side that it then
            returns (at least the image's). The pixels that the body loses must be lost alike on both sides; an odd
            one is lost at the end.
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
            The enhanced images, (B, C, H, W); in [0, 1] where `bounded`, else anywhere.

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


def _margins(size: int, fed: int, returned: int) -> tuple[tuple[int, int], int]:
    """Give the px to add before and after `size`, and the px to skip at the start of what the body returns."""
    skip = (returned - size) // 2
    before = (fed - returned) // 2 + skip
    return (before, fed - size - before), skip


def reflect_pad(x: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    """Mirror an image outwards, by any number of pixels.

    `torch.nn.functional.pad` refuses margins as wide as the image; here it is mirrored again until they are filled,
    as `numpy.pad(mode="reflect")` does.

    Args:
        x: Images, (B, C, H, W).
        left: Columns to add before the first.
        right: Columns to add after the last.
        top: Rows to add before the first.
        bottom: Rows to add after the last.

    Returns:
        The images with their margins, (B, C, top + H + bottom, left + W + right).

    Raises:
        ImageError: A margin is asked for and H or W is below 2 px, so that there is nothing to mirror.
    """
    margins = [left, right, top, bottom]
    height, width = x.shape[-2:]
    if any(margins) and min(height, width) < 2:
        raise ImageError(
            f"an image of {width} × {height} px cannot be mirrored outwards; an enhancer needs at least 2 × 2 px: "
            "leave such crops out"
        )
    period = (width - 1, width - 1, height - 1, height - 1)  # whole steps keep the edges where the mirrors stand
    while any(margins):
        step = [min(px, limit) for px, limit in zip(margins, period, strict=True)]
        x = F.pad(x, step, mode="reflect")
        margins = [px - done for px, done in zip(margins, step, strict=True)]
    return x
