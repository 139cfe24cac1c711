"""U-Net (Ronneberger et al., MICCAI 2015, https://arxiv.org/abs/1505.04597), and the U shape that its kin share."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

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
from urnet.nets.enhancers.registry import Width, register_enhancer


class UNet(Checkpointed):
    """Five scales of width·(1, 2, 4, 8, 16) channels, a way down, a way up, and skips between them.

    Sizes that 16 does not divide are rounded up on the way down, and the upsampled map is cropped to its skip.

    Args:
        channels: C of (B, C, H, W) → (B, C, H, W).
        width: Channels of the first scale.
        block: Called with (in_channels, out_channels): the convolutions of one scale.
        down: Called with (channels): halves height and width.
        skip: Called with (channels): what a map passes on its way across.
        attention: Called with (channels): what a map passes before it is doubled in size.
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
        """Map (B, C, H, W) to (B, C, H, W); smaller where the blocks are built without padding."""
        x = self.part(self.encoder[0], x)  # (B, w, H, W)
        outputs = [x]
        for i in range(4):
            x = self.part(partial(self._descend, i), x)  # (B, 2ⁱ⁺¹w, H/2ⁱ⁺¹, W/2ⁱ⁺¹)
            outputs.append(x)
        for i in reversed(range(4)):
            x = self.part(partial(self._ascend, i), outputs[i], x)  # (B, 2ⁱw, H/2ⁱ, W/2ⁱ)
        return self.head(x)

    def _descend(self, i: int, x: Tensor) -> Tensor:
        return self.encoder[i + 1](self.down[i](x))

    def _ascend(self, i: int, across: Tensor, x: Tensor) -> Tensor:
        return self.decoder[i](concatenate(self.skip[i](across), self.up[i](self.attention[i](x))))


@register_enhancer
def unet(
    channels: int,
    *,
    width: Width = 64,
    residual: bool = False,
    bounded: bool = False,
    upsample: Upsample = "transposed",
    padding_mode: PaddingMode = "zeros",
) -> Enhancer:
    """Build U-Net, with padded convolutions and batch norm as is usual today."""
    body = UNet(channels, width, block=partial(DoubleConv, padding_mode=padding_mode), up=UPSAMPLING[upsample])
    return Enhancer(body, residual=residual, bounded=bounded, fit=choose_fit(padding_mode))
