"""Activation checkpointing: recompute maps in the backward pass instead of storing them (`train.checkpointing`).

T. Chen et al., "Training deep nets with sublinear memory cost", 2016, https://arxiv.org/abs/1604.06174.

U-shaped enhancers and timm's networks have the same switch, `set_grad_checkpointing`. A recomputed batch norm would
count each batch twice. `fixed_running_statistics` prevents that during the backward pass.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Checkpointed(nn.Module):
    """Base class of a network that stores only the inputs and outputs of its parts if checkpointing is on."""

    checkpointing = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switch checkpointing on or off, as timm's networks do."""
        self.checkpointing = enable

    def checkpoint(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Return `function(*inputs)`, where the function is a part of this network that draws no random numbers."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return function(*inputs)
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


@contextmanager
def activation_checkpointing(network: nn.Module) -> Iterator[int]:
    """Switch on checkpointing in a network, or in the networks that it contains, while the context is open.

    Close the context after training. A timm network with checkpointing does not call the hooks on its stages, which
    calibration and Grad-CAM need.

    Args:
        network: An enhancer, a classifier, or both joined. Its backward pass needs `fixed_running_statistics`.

    Yields:
        Number of networks with checkpointing. timm's VGG has none.
    """
    networks = [part for part in _find_switchable(network) if _switch_on(part)]
    try:
        yield len(networks)
    finally:
        for part in networks:
            part.set_grad_checkpointing(False)


def supports_checkpointing(network: nn.Module) -> bool:
    """Return whether a network, or one that it contains, has checkpointing."""
    with activation_checkpointing(network) as count:
        return count > 0


@contextmanager
def fixed_running_statistics(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of all batch norms of a module unchanged while the context is open."""
    norms = [(norm, norm.momentum, norm.num_batches_tracked) for norm in module.modules() if _has_statistics(norm)]
    for norm, *_ in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, batches in norms:
            norm.momentum, norm.num_batches_tracked = momentum, batches


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats


def _find_switchable(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost modules that have the switch."""
    if hasattr(network, "set_grad_checkpointing"):
        yield network
        return
    for child in network.children():
        yield from _find_switchable(child)


def _switch_on(network: nn.Module) -> bool:
    try:
        network.set_grad_checkpointing(True)
    except (AssertionError, NotImplementedError):  # raised by timm's networks that have no checkpointing
        return False
    return True
