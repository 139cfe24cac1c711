"""ResUNet (Zhang et al., GRSL 2018, https://arxiv.org/abs/1711.10684) as the paper's Net2 uses it.

The paper (section 3.2): a U-Net with residual structures on the way down and on the way up. It gives no layer table;
taken here is the U-Net with each double convolution beside a 1×1 shortcut, and padded, so that nothing needs cropping.
"""

from urnet.nets.blocks import ResidualBlock
from urnet.nets.enhancer import Enhancer
from urnet.nets.registry import Width, register_enhancer
from urnet.nets.unet import UNet


@register_enhancer
def resunet(channels: int, *, width: Width = 64, residual: bool = False) -> Enhancer:
    """Build ResUNet: max-pooling, ReLU, plain skips and no attention."""
    return Enhancer(UNet(channels, width, block=ResidualBlock), residual=residual)
