"""A stack of convolutions: the control that shows whether the gain of an enhancer comes only from its parameters.

It has no scales, no skips, no attention and no shortcut. `match_plain_width` returns the width at which it has as many
parameters as the enhancer that it is compared with.
"""

import math
from functools import partial
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from urnet.nets.enhancers.base import Enhancer, reflect_pad
from urnet.nets.enhancers.blocks import PaddingMode
from urnet.nets.enhancers.registry import Width, register_enhancer

Depth = Annotated[int, Field(ge=1, le=100)]
"""Number of 3×3 convolutions."""

Fold = Literal[1, 2, 4, 8]
"""Side of the blocks that become channels, px."""


class Plain(nn.Module):
    """3×3 convolutions that keep the size, each with batch norm and ReLU; a linear 1×1 convolution at the end.

    Args:
        channels: C of (B, C, H, W) → (B, C, H, W).
        width: Channels of every layer.
        depth: Number of 3×3 convolutions.
        fold: Blocks of fold × fold px become channels before the first layer, and pixels again after the last
            (sub-pixel convolution, https://arxiv.org/abs/1609.05158). It must divide H and W.
        padding_mode: Values beyond the border: zeros, or the map reflected.
        smooth: Average the output over fold × fold px. The pixels of a block come from different channels, which draws
            a pattern with the period of a block on a constant image; the average removes it.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        depth: int,
        fold: int,
        *,
        padding_mode: PaddingMode = "zeros",
        smooth: bool = False,
    ) -> None:
        super().__init__()
        self.fold = nn.PixelUnshuffle(fold)
        layers: list[nn.Module] = []
        for i in range(depth):
            before = width if i else channels * fold**2
            convolution = nn.Conv2d(before, width, 3, padding=1, padding_mode=padding_mode)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Conv2d(width, channels * fold**2, 1)
        self.unfold = nn.PixelShuffle(fold)
        self.smooth = smooth and fold > 1

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        x = self.fold(x)
        x = self.layers(x)  # (B, width, H/fold, W/fold)
        x = self.head(x)  # (B, C·fold², H/fold, W/fold)
        if not self.smooth:
            return self.unfold(x)  # (B, C, H, W)
        fold, height, width = self.unfold.upscale_factor, *x.shape[-2:]
        x = F.avg_pool2d(self.unfold(reflect_pad(x, 1, 1, 1, 1)), fold, stride=1)  # one more block at each border
        start = fold - (fold - 1) // 2
        return x[..., start : start + fold * height, start : start + fold * width]


@register_enhancer
def plain(
    channels: int,
    *,
    width: Width = 64,
    depth: Depth = 18,
    residual: bool = False,
    bounded: bool = False,
    upsample: Literal["shuffle", "resize"] = "shuffle",
    padding_mode: PaddingMode = "zeros",
    fold: Fold = 1,
) -> Enhancer:
    """Build the stack. The default depth of 18 is the number of 3×3 convolutions in the blocks of a U-shaped enhancer.

    At full resolution each parameter works on every pixel, which few parameters of a U-shaped network do. On
    200 × 200 px UR-Net has 928 multiply-accumulates per parameter, and this stack 40,000. With `fold=4` it has 2,500,
    with `fold=8` 625.

    Args:
        channels: C of (B, C, H, W) → (B, C, H, W).
        width: Channels of every layer; see `match_plain_width`.
        depth: Number of 3×3 convolutions.
        residual: Return `x + f(x)`, the identity before the first step (see `Enhancer`).
        bounded: Keep the output in [0, 1] by a sigmoid (see `Enhancer`).
        upsample: "shuffle": channels become pixels again. "resize": the pixels are then averaged over fold × fold px.
        padding_mode: Values beyond the border of a map: "zeros", or the map reflected ("reflect").
        fold: 1: full resolution. 2, 4 or 8: side of the blocks that become channels, px.
    """
    body = Plain(channels, width, depth, fold, padding_mode=padding_mode, smooth=upsample == "resize")
    reflects = padding_mode == "reflect" or upsample == "resize"
    least = 2 * fold if reflects else fold  # a map of 1 px cannot be reflected
    return Enhancer(body, residual=residual, bounded=bounded, fit=partial(_multiple, fold, least))


def match_plain_width(channels: int, parameters: int, depth: int = 18, fold: int = 1) -> int:
    """Return the width at which `plain` comes nearest to a number of parameters.

    Args:
        channels: C of the images.
        parameters: Number to match, such as `count_parameters(create_enhancer("urnet", channels))`.
        depth: Number of 3×3 convolutions.
        fold: As for `plain`.

    Returns:
        The width, at least 1.
    """
    folded = channels * fold**2

    def size(width: int) -> int:
        first, other = 9 * folded * width + 3 * width, 9 * width**2 + 3 * width
        return first + (depth - 1) * other + (width + 1) * folded

    square, linear = 9 * (depth - 1), 10 * folded + 3 * depth
    rest = max(0, parameters - folded)
    root = math.isqrt(linear**2 + 4 * square * rest)
    width = (root - linear) // (2 * square) if square else rest // linear
    return min((max(1, width), width + 1), key=lambda width: abs(size(width) - parameters))


def _multiple(step: int, least: int, size: int) -> tuple[int, int]:
    """Return the input side and the output side of a network that takes multiples of `step` px from `least` px."""
    side = max(least, -(-size // step) * step)
    return side, side
