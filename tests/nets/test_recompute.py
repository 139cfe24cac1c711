"""Activation checkpointing: the same numbers from less that is kept."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from urnet.nets import create_enhancer
from urnet.nets.recompute import recomputed


class Convolutions(TorchDispatchMode):
    """Counts the convolutions that are computed."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten.convolution.default
        return function(*args, **(kwargs or {}))


def trained(checkpointing: bool, name: str, **options) -> dict[str, torch.Tensor]:
    """Weights and statistics after three steps."""
    torch.manual_seed(0)
    enhancer = create_enhancer(name, 1, width=4, **options)
    enhancer.body.checkpointing = checkpointing
    optimizer = torch.optim.SGD(enhancer.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        images = torch.rand(3, 1, 20, 20)
        optimizer.zero_grad()
        F.mse_loss(enhancer(images), images).backward()
        optimizer.step()
    return enhancer.state_dict()


@pytest.mark.parametrize(
    ("name", "options"), [("unet", {}), ("resunet", {}), ("urnet", {}), ("urnet", {"padded": False})]
)
def test_weights_and_statistics_are_the_same_to_the_bit(name, options):
    kept, again = (trained(checkpointing, name, **options) for checkpointing in (False, True))
    assert all(torch.equal(tensor, again[key]) for key, tensor in kept.items())


def test_the_scales_are_computed_twice_with_gradients_and_once_without():
    enhancer = create_enhancer("urnet", 1, width=4)
    images = torch.rand(2, 1, 32, 32)
    counts = {}
    for checkpointing in (False, True):
        enhancer.body.checkpointing = checkpointing
        with Convolutions() as with_gradients:
            enhancer(images).sum().backward()
        with Convolutions() as without, torch.no_grad():
            enhancer(images)
        counts[checkpointing] = with_gradients.count, without.count
    layers = sum(isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in enhancer.modules())
    assert counts == {False: (layers, layers), True: (2 * layers - 1, layers)}  # the head is not computed again


def test_less_is_kept():
    enhancer = create_enhancer("urnet", 1, width=4)
    kept = {}
    for checkpointing in (False, True):
        enhancer.body.checkpointing = checkpointing
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            enhancer(torch.rand(2, 1, 64, 64))
        kept[checkpointing] = sum(sizes.values())
    assert kept[True] < 0.4 * kept[False]


def test_statistics_are_as_before_where_the_second_computation_fails():
    norm = nn.BatchNorm2d(2)
    calls = []

    def fails_later(x: torch.Tensor) -> torch.Tensor:
        calls.append(norm.momentum)
        if len(calls) == 2:
            raise ValueError("full")
        return norm(x)

    loss = recomputed(norm, fails_later, torch.rand(2, 2, 4, 4, requires_grad=True)).sum()
    with pytest.raises(ValueError, match="full"):
        loss.backward()
    assert calls == [0.1, 0.0]
    assert norm.momentum == 0.1
    assert norm.num_batches_tracked == 1
