"""ResUNet (Zhang et al., GRSL 2018, https://arxiv.org/abs/1711.10684) as the paper's Net2 uses it.

The paper (section 3.2): a U-Net with residual structures on the way down and on the way up. It gives no layer table;
taken here is the U-Net with each double convolution beside a 1×1 shortcut, and padded, so that nothing needs cropping.
"""

from functools import partial

from urnet.nets.enhancers.base import Enhancer, choose_fit
from urnet.nets.enhancers.blocks import UPSAMPLING, PaddingMode, ResidualBlock, Upsample
from urnet.nets.enhancers.registry import Width, register_enhancer
from urnet.nets.enhancers.unet import UNet


@register_enhancer
def resunet(
    channels: int,
    *,
    width: Width = 64,
    residual: bool = False,
    bounded: bool = False,
    upsample: Upsample = "transposed",
    padding_mode: PaddingMode = "zeros",
) -> Enhancer:
    """Build ResUNet: max-pooling, ReLU, plain skips and no attention."""
    body = UNet(channels, width, block=partial(ResidualBlock, padding_mode=padding_mode), up=UPSAMPLING[upsample])
    return Enhancer(body, residual=residual, bounded=bounded, fit=choose_fit(padding_mode))
