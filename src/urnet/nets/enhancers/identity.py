"""No enhancement: the classifier sees the raw image (Net1 of the paper)."""

from torch import nn

from urnet.nets.enhancers.base import Enhancer
from urnet.nets.enhancers.blocks import PaddingMode, Upsample
from urnet.nets.enhancers.registry import Width, register_enhancer


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
