"""No enhancement: the classifier receives the raw image (the paper's Net1)."""

from typing import Any

from torch import nn

from urnet.nets.enhancers.base import Enhancer, keep_side
from urnet.nets.enhancers.registry import add_shared_options, register_enhancer


def none(channels: int, **options: Any) -> Enhancer:
    """Build the identity, which has no parameters. It accepts the shared options; they have no effect."""
    return Enhancer(nn.Identity(), fit=keep_side)


register_enhancer(add_shared_options(none))
