"""U-Net (Ronneberger et al., MICCAI 2015, https://arxiv.org/abs/1505.04597), and the shape that its variants share."""

from collections.abc import Callable
from functools import partial, wraps
from inspect import signature
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from urnet.nets.checkpointing import Checkpointed
from urnet.nets.enhancers.base import Enhancer, choose_fit
from urnet.nets.enhancers.blocks import (
    UPSAMPLING,
    DoubleConv,
    MaxPool,
    PaddingMode,
    TransposedConv,
    Upsample,
    concatenate,
)
from urnet.nets.enhancers.registry import add_shared_options, register_enhancer


class UNet(Checkpointed):
    """Encoder and decoder of five scales with width·(1, 2, 4, 8, 16) channels, and skips between them.

    Sides that 16 does not divide are rounded up in the encoder, and each upsampled map is cropped to its skip.

    Args:
        channels: C of (B, C, H, W) → (B, C, H, W).
        width: Channels of the first scale, w.
        block: Called with (in_channels, out_channels): the convolutions of one scale.
        down: Called with (channels): halves height and width.
        skip: Called with (channels): applied to a map on its skip connection.
        attention: Called with (channels): applied to a map before it is upsampled.
        up: Called with (in_channels, out_channels): doubles height and width.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        block: Callable[[int, int], nn.Module] = DoubleConv,
        down: Callable[[int], nn.Module] = MaxPool,
        skip: Callable[[int], nn.Module] = nn.Identity,
        attention: Callable[[int], nn.Module] = nn.Identity,
        up: Callable[[int, int], nn.Module] = TransposedConv,
    ) -> None:
        super().__init__()
        scales = [width * 2**i for i in range(5)]
        pairs = list(pairwise(scales))  # (upper, lower)
        self.encoder = nn.ModuleList([block(channels, width), *(block(upper, lower) for upper, lower in pairs)])
        self.down = nn.ModuleList(down(upper) for upper, _ in pairs)
        self.skip = nn.ModuleList(skip(upper) for upper, _ in pairs)
        self.attention = nn.ModuleList(attention(lower) for _, lower in pairs)
        self.up = nn.ModuleList(up(lower, upper) for upper, lower in pairs)
        self.decoder = nn.ModuleList(block(2 * upper, upper) for upper, _ in pairs)
        self.head = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W), or to a smaller map where the blocks are built without padding."""
        x = self.checkpoint(self.encoder[0], x)  # (B, w, H, W)
        skips = [x]
        for i in range(4):
            x = self.checkpoint(partial(self._encode, i), x)  # (B, 2ⁱ⁺¹w, H/2ⁱ⁺¹, W/2ⁱ⁺¹)
            skips.append(x)
        for i in reversed(range(4)):
            x = self.checkpoint(partial(self._decode, i), skips[i], x)  # (B, 2ⁱw, H/2ⁱ, W/2ⁱ)
        return self.head(x)

    def _encode(self, i: int, x: Tensor) -> Tensor:
        return self.encoder[i + 1](self.down[i](x))

    def _decode(self, i: int, skipped: Tensor, x: Tensor) -> Tensor:
        return self.decoder[i](concatenate(self.skip[i](skipped), self.up[i](self.attention[i](x))))


def register_u_shaped(build_body: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Register a U-shaped enhancer with the options that all of them share (`registry._shared_options`).

    Args:
        build_body: Called with (channels, width) and, by keyword, `up` (a class of `UPSAMPLING`) and `padding_mode`.
            Its keyword arguments with a default are further options. If the network has an attribute `fit`, that
            replaces the default `fit` of `Enhancer`.
    """

    @wraps(build_body)
    def constructor(
        channels: int,
        *,
        width: int,
        residual: bool,
        bounded: bool,
        upsample: Upsample,
        padding_mode: PaddingMode,
        **switches: Any,
    ) -> Enhancer:
        body = build_body(channels, width, up=UPSAMPLING[upsample], padding_mode=padding_mode, **switches)
        fit = getattr(body, "fit", choose_fit(padding_mode))
        return Enhancer(body, residual=residual, bounded=bounded, fit=fit)

    switches = [option for option in signature(build_body).parameters.values() if option.default is not option.empty]
    register_enhancer(add_shared_options(constructor, switches))
    return build_body


@register_u_shaped
def unet(channels: int, width: int, *, up: type[nn.Module], padding_mode: PaddingMode) -> UNet:
    """Build U-Net with padded convolutions and batch norm, as is usual today."""
    return UNet(channels, width, block=partial(DoubleConv, padding_mode=padding_mode), up=up)
