"""UR-Net's enhancer (Zheng et al., Sensors 2023, 23, 7605, section 3.2, https://doi.org/10.3390/s23177605).

A ResUNet with five changes, each a switch, so that each can be ablated. Where the paper is silent: convolutions have
biases; batch norm follows each 3×3, the stride-2 one included, which keeps its channels and is not activated, as the
pooling it replaces; LeakyReLU has PyTorch's slope of 0.01; the output is linear.
"""

from functools import partial

from torch import nn

from urnet.nets.blocks import MaxPool, PointwiseConv, ResidualBlock, SqueezeExcitation, StridedConv
from urnet.nets.enhancer import Enhancer, multiple_of_16
from urnet.nets.registry import Width, register_enhancer
from urnet.nets.unet import UNet


@register_enhancer
def urnet(
    channels: int,
    *,
    width: Width = 64,
    residual: bool = False,
    padded: bool = True,
    strided: bool = True,
    leaky: bool = True,
    skip_conv: bool = True,
    attention: bool = True,
) -> Enhancer:
    """Build UR-Net's enhancer: 36.1 M parameters at width 64, 33.5 GMAC on 200 × 200 px (35.9 as padded to 208).

    Args:
        channels: C of (B, C, H, W) → (B, C, H, W).
        width: Channels of the first scale.
        residual: Return `x + f(x)`, the identity before the first step (see `Enhancer`).
        padded: 3×3 convolutions with padding 1. False: valid ones, as in U-Net; skips and shortcuts are cropped to
            their centre, and the image is mirrored outwards until the output covers it (the overlap-tile strategy).
        strided: 3×3 convolution with stride 2. False: max-pooling.
        leaky: LeakyReLU. False: ReLU.
        skip_conv: 1×1 convolution on every skip. False: a plain copy.
        attention: Squeeze-and-excitation before every transposed convolution (Eqs. 1 and 2). False: none.
    """
    padding = int(padded)
    body = UNet(
        channels,
        width,
        block=partial(ResidualBlock, activation=nn.LeakyReLU if leaky else nn.ReLU, padding=padding),
        down=partial(StridedConv, padding=padding) if strided else MaxPool,
        skip=PointwiseConv if skip_conv else nn.Identity,
        attention=SqueezeExcitation if attention else nn.Identity,
    )
    return Enhancer(body, residual=residual, fit=multiple_of_16 if padded else partial(overlap_tile, strided=strided))


def overlap_tile(size: int, *, strided: bool) -> tuple[int, int]:
    """Give the side that the network with valid convolutions reads, and the side that it returns, to cover `size` px.

    A block loses 4 px, at all nine places; a valid stride-2 convolution one px more than pooling.
    """
    deepest = -(-(size + 60) // 16)  # returned by the deepest block, then four times doubled, less 4
    fed = deepest + 4
    for _ in range(4):
        fed = 2 * fed + int(strided) + 4
    return fed, 16 * deepest - 60
