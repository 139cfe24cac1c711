"""No enhancement: the classifier sees the raw image (Net1 of the paper)."""

from torch import nn

from urnet.nets.blocks import PaddingMode, Upsample
from urnet.nets.enhancer import Enhancer
from urnet.nets.registry import Width, register_enhancer


@register_enhancer
def none(
    channels: int,
    *,
    width: Width = 64,
    residual: bool = False,
    bounded: bool = False,
    upsample: Upsample = "transposed",
    padding_mode: PaddingMode = "zeros",
) -> Enhancer:
    """Build the identity, without parameters; the options common to all enhancers are taken and change nothing."""
    return Enhancer(nn.Identity(), fit=lambda size: (size, size))
