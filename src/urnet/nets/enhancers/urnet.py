"""UR-Net's enhancer (Zheng et al., Sensors 2023, 23, 7605, section 3.2, https://doi.org/10.3390/s23177605).

A ResUNet with five changes, each a switch, so that each can be ablated. Where the paper is silent: convolutions have
biases; batch norm follows each 3×3, the stride-2 one included, which keeps its channels and is not activated, as the
pooling it replaces; LeakyReLU has PyTorch's slope of 0.01; the output is linear.

Three further switches are ours, and off in the paper's recipes: an output that stays in [0, 1] (`bounded`), upsampling
without a checkerboard (`upsample`), and borders without an edge of their own (`padding_mode`).
"""

from functools import partial

from torch import nn

from urnet.nets.enhancers.base import Enhancer, choose_fit
from urnet.nets.enhancers.blocks import (
    UPSAMPLING,
    MaxPool,
    PaddingMode,
    PointwiseConv,
    ResidualBlock,
    SqueezeExcitation,
    StridedConv,
    Upsample,
)
from urnet.nets.enhancers.registry import Width, register_enhancer
from urnet.nets.enhancers.unet import UNet


@register_enhancer
def urnet(
    channels: int,
    *,
    width: Width = 64,
    residual: bool = False,
    bounded: bool = False,
    upsample: Upsample = "transposed",
    padding_mode: PaddingMode = "zeros",
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
        bounded: Keep the output in [0, 1] by a sigmoid (see `Enhancer`).
        upsample: "transposed": 2×2 transposed convolutions. "resize": 1×1 convolutions and bilinear resizing.
        padding_mode: What lies beyond the border of a map: "zeros", or the map reflected ("reflect").
        padded: 3×3 convolutions with padding 1. False: valid ones, as in U-Net; skips and shortcuts are cropped to
            their centre, and the image is mirrored outwards until the output covers it (the overlap-tile strategy).
        strided: 3×3 convolution with stride 2. False: max-pooling.
        leaky: LeakyReLU. False: ReLU.
        skip_conv: 1×1 convolution on every skip. False: a plain copy.
        attention: Squeeze-and-excitation before every transposed convolution (Eqs. 1 and 2). False: none.
    """
    border = {"padding": int(padded), "padding_mode": padding_mode}
    body = UNet(
        channels,
        width,
        block=partial(ResidualBlock, activation=nn.LeakyReLU if leaky else nn.ReLU, **border),
        down=partial(StridedConv, **border) if strided else MaxPool,
        skip=PointwiseConv if skip_conv else nn.Identity,
        attention=SqueezeExcitation if attention else nn.Identity,
        up=UPSAMPLING[upsample],
    )
    fit = choose_fit(padding_mode) if padded else partial(overlap_tile, strided=strided)
    return Enhancer(body, residual=residual, bounded=bounded, fit=fit)


def overlap_tile(size: int, *, strided: bool) -> tuple[int, int]:
    """Give the side that the network with valid convolutions reads, and the side that it returns, to cover `size` px.

    A block loses 4 px, at all nine places; a valid stride-2 convolution one px more than pooling.
    """
    deepest = -(-(size + 60) // 16)  # returned by the deepest block, then four times doubled, less 4
    fed = deepest + 4
    for _ in range(4):
        fed = 2 * fed + int(strided) + 4
    return fed, 16 * deepest - 60
