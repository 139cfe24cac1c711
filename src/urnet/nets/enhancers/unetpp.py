"""UNet++ (Zhou et al., DLMIA 2018, https://arxiv.org/abs/1807.10165): a U-Net whose skips are dense blocks."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from urnet.nets.checkpointing import Checkpointed
from urnet.nets.enhancers.blocks import DoubleConv, MaxPool, PaddingMode, TransposedConv, concatenate
from urnet.nets.enhancers.unet import register_u_shaped


class UNetPlusPlus(Checkpointed):
    """Nodes X(i,j) at scale i: X(i,0) is the encoder, X(i,j) joins X(i,0..j-1) and the upsampled X(i+1,j-1).

    Args:
        channels: C of (B, C, H, W) → (B, C, H, W).
        width: Channels of the first scale.
        deep_supervision: Average one head on each of X(0,1..4), in training and in use (the article's accurate mode),
            instead of one head on X(0,4). In the article each head has its own loss. Here the loss is that of the
            average, which reaches the shallow nodes directly as well.
        block: Called with (in_channels, out_channels): the convolutions of a node.
        up: Called with (in_channels, out_channels): doubles height and width.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        deep_supervision: bool = False,
        block: Callable[[int, int], nn.Module] = DoubleConv,
        up: Callable[[int, int], nn.Module] = TransposedConv,
    ) -> None:
        super().__init__()
        scales = [width * 2**i for i in range(5)]
        self.down = nn.ModuleList(MaxPool(scale) for scale in scales[:-1])
        self.nodes = nn.ModuleDict()
        self.up = nn.ModuleDict()
        for i, scale in enumerate(scales):
            self.nodes[f"{i}_0"] = block(channels if i == 0 else scales[i - 1], scale)
            for j in range(1, 5 - i):
                self.up[f"{i}_{j}"] = up(scales[i + 1], scale)
                self.nodes[f"{i}_{j}"] = block((j + 1) * scale, scale)
        self.head = nn.ModuleList(nn.Conv2d(width, channels, 1) for _ in range(4 if deep_supervision else 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        rows: list[list[Tensor]] = []  # rows[i][j] is X(i,j), (B, 2ⁱw, H/2ⁱ, W/2ⁱ)
        for i in range(5):
            rows.append([self.checkpoint(partial(self._encode, i), x if i == 0 else rows[i - 1][0])])
        for j in range(1, 5):
            for i in range(5 - j):
                rows[i].append(self.checkpoint(partial(self._join, i, j), rows[i + 1][j - 1], *rows[i]))
        outputs = [head(node) for head, node in zip(self.head, rows[0][-len(self.head) :], strict=True)]
        return torch.stack(outputs).mean(dim=0)  # (B, C, H, W)

    def _encode(self, i: int, x: Tensor) -> Tensor:
        return self.nodes[f"{i}_0"](x if i == 0 else self.down[i - 1](x))

    def _join(self, i: int, j: int, below: Tensor, *skipped: Tensor) -> Tensor:
        return self.nodes[f"{i}_{j}"](concatenate(*skipped, self.up[f"{i}_{j}"](below)))


@register_u_shaped
def unetpp(
    channels: int,
    width: int,
    *,
    up: type[nn.Module],
    padding_mode: PaddingMode,
    deep_supervision: bool = False,
) -> UNetPlusPlus:
    """Build UNet++ of five scales."""
    block = partial(DoubleConv, padding_mode=padding_mode)
    return UNetPlusPlus(channels, width, deep_supervision=deep_supervision, block=block, up=up)
