"""ResUNet (Zhang et al., GRSL 2018, https://arxiv.org/abs/1711.10684) as the paper's Net2 uses it.

Paper, section 3.2: a U-Net with residual structures in the encoder and the decoder. The paper gives no layer table.
Each double convolution here has a 1×1 shortcut beside it, and is padded, so that no map needs cropping.
"""

from functools import partial

from torch import nn

from urnet.nets.enhancers.blocks import PaddingMode, ResidualBlock
from urnet.nets.enhancers.unet import UNet, register_u_shaped


@register_u_shaped
def resunet(channels: int, width: int, *, up: type[nn.Module], padding_mode: PaddingMode) -> UNet:
    """Build ResUNet: max-pooling, ReLU, plain skips and no attention."""
    return UNet(channels, width, block=partial(ResidualBlock, padding_mode=padding_mode), up=up)
