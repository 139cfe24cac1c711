"""Activation checkpointing: maps are computed again in the backward pass instead of being kept for it.

T. Chen et al., "Training deep nets with sublinear memory cost", 2016, https://arxiv.org/abs/1604.06174.

Enhancers have parts of their own (`Checkpointed`), networks of timm their blocks. A batch norm in them would follow
each batch twice, forwards and when its part is computed again; so the running statistics are kept as they are during
the whole backward pass (`fixed_running_statistics`), in which nothing is seen for the first time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Checkpointed(nn.Module):
    """A network in parts, of which only what goes in and comes out is kept where `checkpointing` is set."""

    checkpointing = False

    def part(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Give `function(*inputs)`, a part of this network that draws no random numbers."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return function(*inputs)
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


@contextmanager
def activation_checkpointing(network: nn.Module) -> Iterator[int]:
    """Have the parts of enhancers and the blocks of timm's networks computed again while the context is open.

    It should not be open longer than the training: a network of timm then calls the blocks of a stage one by one, and
    hooks on the stage, which calibration and Grad-CAM set, are never called.

    Args:
        network: An enhancer, a classifier, or both joined. A backward pass through it needs `fixed_running_statistics`.

    Yields:
        How many networks in it do that; of timm's, VGG does not.
    """
    switched = [switch for switch in _switches(network) if _accepted(switch)]
    try:
        yield len(switched)
    finally:
        for switch in switched:
            switch(False)


def supports_checkpointing(network: nn.Module) -> bool:
    """Tell whether a network, or one in it, can compute its maps again."""
    with activation_checkpointing(network) as count:
        return count > 0


@contextmanager
def fixed_running_statistics(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of all batch norms in a module as they are, whatever they see meanwhile."""
    norms = [(norm, norm.momentum, norm.num_batches_tracked) for norm in module.modules() if _follows(norm)]
    for norm, *_ in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, batches in norms:
            norm.momentum, norm.num_batches_tracked = momentum, batches


def _follows(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats


def _switches(network: nn.Module) -> Iterator[Callable[[bool], None]]:
    """What turns it on and off: of the outermost networks that have it."""
    if hasattr(network, "checkpointing"):
        yield lambda on: setattr(network, "checkpointing", on)
    elif hasattr(network, "set_grad_checkpointing"):
        yield network.set_grad_checkpointing
    else:
        for child in network.children():
            yield from _switches(child)


def _accepted(switch: Callable[[bool], None]) -> bool:
    try:
        switch(True)
    except (AssertionError, NotImplementedError):  # how networks of timm say that they cannot
        return False
    return True
