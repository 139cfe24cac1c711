"""UR-Net's enhancer (Zheng et al., Sensors 2023, 23, 7605, section 3.2 and Fig. 2b, https://doi.org/10.3390/s23177605).

It is a ResUNet with five changes. Each change is a switch, so that each can be ablated:

1. `padded`: 3×3 convolutions with padding 1 and stride 1, so that residual and skip connections keep their size;
2. `strided`: a convolution with stride 2 in place of the pooling layer;
3. `leaky`: LeakyReLU in place of ReLU;
4. `skip_conv`: a 1×1 convolution on every skip ("cross-layer") connection;
5. `attention`: channel attention, Eqs. 1 and 2 (class `SqueezeExcitation`), before every transposed convolution.

Where the paper is silent: convolutions have biases. Batch norm follows each 3×3 convolution. The stride-2 convolution
keeps its channels and has no activation, as the pooling that it replaces. LeakyReLU has PyTorch's slope of 0.01. The
output is linear.

Not in the paper, and off in its recipes: an output that stays in [0, 1] (`bounded`), upsampling without a checkerboard
(`upsample`), and borders without an edge artefact (`padding_mode`).
"""

from functools import partial

from torch import Tensor, nn

from urnet.nets.enhancers.blocks import (
    MaxPool,
    PaddingMode,
    PointwiseConv,
    ResidualBlock,
    StridedConv,
)
from urnet.nets.enhancers.unet import UNet, register_u_shaped


@register_u_shaped
def urnet(
    channels: int,
    width: int,
    *,
    up: type[nn.Module],
    padding_mode: PaddingMode,
    padded: bool = True,
    strided: bool = True,
    leaky: bool = True,
    skip_conv: bool = True,
    attention: bool = True,
) -> UNet:
    """Build UR-Net's enhancer: 36.1 M parameters at width 64, 33.5 GMAC on 200 × 200 px (35.9 as padded to 208).

    Args:
        channels: C of (B, C, H, W) → (B, C, H, W).
        width: Channels of the first scale.
        up: Layer that doubles height and width.
        padding_mode: Values beyond the border of a map.
        padded: 3×3 convolutions with padding 1. False: valid convolutions, as in U-Net. Skips and shortcuts are then
            cropped to their centre, and the image is mirrored outwards until the output covers it (overlap-tile).
        strided: 3×3 convolution with stride 2. False: max-pooling.
        leaky: LeakyReLU. False: ReLU.
        skip_conv: 1×1 convolution on every skip. False: a plain copy.
        attention: Squeeze-and-excitation before every transposed convolution. False: none.
    """
    border = {"padding": int(padded), "padding_mode": padding_mode}
    body = UNet(
        channels,
        width,
        block=partial(ResidualBlock, activation=nn.LeakyReLU if leaky else nn.ReLU, **border),
        down=partial(StridedConv, **border) if strided else MaxPool,
        skip=PointwiseConv if skip_conv else nn.Identity,
        attention=SqueezeExcitation if attention else nn.Identity,
        up=up,
    )
    if not padded:
        body.fit = partial(overlap_tile, strided=strided)
    return body


def overlap_tile(size: int, *, strided: bool) -> tuple[int, int]:
    """Return the input side and the output side, px, with which valid convolutions cover an image of `size` px.

    Each of the nine blocks loses 4 px. A valid stride-2 convolution loses one px more than pooling.
    """
    deepest = -(-(size + 60) // 16)  # output of the deepest block, which is then doubled four times, less 4 each
    side = deepest + 4
    for _ in range(4):
        side = 2 * side + int(strided) + 4
    return side, 16 * deepest - 60


class SqueezeExcitation(nn.Module):
    """Channel attention, the paper's Eqs. 1 and 2 (arXiv 1709.01507).

    Squeeze, Eq. 1: s_c is the mean of channel c over the map. Excitation, Eq. 2: E = σ(L2 δ(L1 s)), where δ is the ReLU
    and σ the sigmoid. The output is E·X. The paper gives no reduction; 16 is that of the article it cites. The hidden
    layer has at least 4 units, because a single unit starts dead half of the time.

    Args:
        channels: C of (B, C, H, W) → (B, C, H, W).
        reduction: Channels for each hidden unit.
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(4, channels // reduction)
        self.excite = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Weight each channel of (B, C, H, W)."""
        s = x.mean(dim=(2, 3))  # Eq. 1, (B, C)
        e = self.excite(s)  # Eq. 2, (B, C)
        return x * e[:, :, None, None]  # (B, C, H, W)
