"""Activation checkpointing: the same results with less memory."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from urnet.nets import create_classifier, create_enhancer, list_enhancers
from urnet.nets.checkpointing import (
    Checkpointed,
    activation_checkpointing,
    fixed_running_statistics,
    supports_checkpointing,
)
from urnet.nets.enhancers.registry import list_enhancer_options
from urnet.nets.joint import build_joint

FUSED = {"backbones": ["resnet10t", "test_byobnet"], "width": 4}


class Convolutions(TorchDispatchMode):
    """Counter of the computed convolutions."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten.convolution.default
        return function(*args, **(kwargs or {}))


def trained(
    network: nn.Module, images: torch.Tensor, checkpointing: bool, compiled: bool = False
) -> dict[str, torch.Tensor]:
    """Weights, statistics and last gradients after three steps."""
    network = copy.deepcopy(network).train()
    torch._dynamo.reset()
    forward = torch.compile(network, dynamic=False, backend="aot_eager_decomp_partition") if compiled else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(1)
    with activation_checkpointing(network) if checkpointing else nullcontext():
        for _ in range(3):
            optimizer.zero_grad()
            loss = forward(images).square().mean()
            with fixed_running_statistics(network) if checkpointing else nullcontext():
                loss.backward()
            optimizer.step()
    gradients = {f"gradient of {name}": tensor.grad for name, tensor in network.named_parameters()}
    return network.state_dict() | {name: tensor for name, tensor in gradients.items() if tensor is not None}


def differing(network: nn.Module, images: torch.Tensor) -> list[str]:
    """List the results that checkpointing changes."""
    kept, again = (trained(network, images, checkpointing) for checkpointing in (False, True))
    assert kept.keys() == again.keys()
    return [name for name, tensor in kept.items() if not torch.equal(tensor, again[name])]


def narrow(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return create_enhancer(name, 1, **options | ({"width": 4} if "width" in list_enhancer_options(name) else {}))


ENHANCERS = [name for name in list_enhancers() if supports_checkpointing(narrow(name))]


def test_the_u_shaped_enhancers_have_checkpointing():
    assert {"unet", "unetpp", "resunet", "urnet"} <= set(ENHANCERS)


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in ENHANCERS), ("urnet", {"padded": False}), ("unetpp", {"deep_supervision": True})],
)
def test_weights_and_statistics_are_the_same_to_the_bit(name, options):
    assert differing(narrow(name, **options), torch.rand(3, 1, 20, 20)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {"drop_rate": 0.3, "drop_path_rate": 0.3}),
        ("mobilenetv2_100", {"drop_rate": 0.3}),
        ("densenet121", {}),
        ("test_byobnet", {}),
    ],
)
def test_classifiers_with_batch_norm_and_dropout_are_the_same_to_the_bit(name, options):
    torch.manual_seed(0)
    classifier = create_classifier(name, 3, options=options)
    images = torch.rand(2, 3, 48, 48)  # without gradients of their own, as behind no enhancer
    assert supports_checkpointing(classifier)
    assert differing(classifier, images) == []


def test_both_networks_together_are_the_same_to_the_bit():
    torch.manual_seed(0)
    joint = build_joint("unetpp", "shahzad2022", 3, 1, enhancer_options={"width": 4}, classifier_options=FUSED)
    with activation_checkpointing(joint) as count:
        assert count == 3  # the enhancer and two backbones
    assert differing(joint, torch.rand(2, 1, 32, 32)) == []


@pytest.mark.slow
def test_checkpointing_works_in_a_compiled_network():
    network, images = narrow("urnet").double(), torch.rand(4, 1, 16, 16, dtype=torch.float64)
    plain, again = trained(network, images, False), trained(network, images, True, compiled=True)
    assert plain.keys() == again.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(again[name], tensor, msg=name)


def test_without_fixed_statistics_batch_norm_counts_a_batch_twice():
    classifier = create_classifier("resnet10t", 3).train()
    norm = classifier.get_submodule("layer2.0.bn1")
    for kept, batches in ((True, 1), (False, 3)):
        with activation_checkpointing(classifier):
            loss = classifier(torch.rand(2, 3, 32, 32)).sum()
            with fixed_running_statistics(classifier) if kept else nullcontext():
                loss.backward()
        assert norm.num_batches_tracked == batches
        assert norm.momentum == 0.1


def test_networks_are_as_before_when_the_context_closes():
    joint = build_joint("unetpp", "resnet10t", 3, 1, enhancer_options={"width": 4})
    called = []
    joint.classifier.layer1.register_forward_hook(lambda *_: called.append(True))
    with activation_checkpointing(joint):
        joint(torch.rand(2, 1, 32, 32))
    assert called == []
    joint(torch.rand(2, 1, 32, 32))
    assert called == [True]
    assert not joint.enhancer.body.checkpointing


@pytest.mark.slow
def test_networks_without_checkpointing():
    assert not supports_checkpointing(create_classifier("vgg11", 3))
    assert not supports_checkpointing(create_enhancer("none", 1))
    assert not supports_checkpointing(create_enhancer("clahe", 1))


@pytest.mark.parametrize(("name", "heads"), [("urnet", 1), ("unetpp", 1), ("unetpp", 4)])
def test_the_parts_are_computed_twice_with_gradients_and_once_without(name, heads):
    enhancer = narrow(name, **({"deep_supervision": True} if heads > 1 else {}))
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
    assert counts == {False: (layers, layers), True: (2 * layers - heads, layers)}  # heads are not computed again


def kept_bytes(network: nn.Module, images: torch.Tensor) -> int:
    """Measure the bytes that a forward pass stores for the gradients."""
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(images)
    return sum(sizes.values())


@pytest.mark.parametrize("name", ["urnet", "unetpp"])
def test_an_enhancer_stores_less(name):
    enhancer, images = narrow(name), torch.rand(2, 1, 64, 64)
    before = kept_bytes(enhancer, images)
    with activation_checkpointing(enhancer):
        assert kept_bytes(enhancer, images) < 0.4 * before


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv2_100"])
def test_a_classifier_stores_less(name):
    classifier, images = create_classifier(name, 3).train(), torch.rand(2, 3, 96, 96)
    before = kept_bytes(classifier, images)
    with activation_checkpointing(classifier):
        assert kept_bytes(classifier, images) < 0.4 * before


def test_statistics_are_as_before_where_the_second_computation_fails():
    norm = nn.BatchNorm2d(2)
    calls = []

    def fails_later(x: torch.Tensor) -> torch.Tensor:
        calls.append(norm.momentum)
        if len(calls) == 2:
            raise ValueError("full")
        return norm(x)

    network = Checkpointed()
    network.norm = norm
    with activation_checkpointing(network):
        loss = network.checkpoint(fails_later, torch.rand(2, 2, 4, 4, requires_grad=True)).sum()
    with pytest.raises(ValueError, match="full"), fixed_running_statistics(network):
        loss.backward()
    assert calls == [0.1, 0.0]
    assert norm.momentum == 0.1
    assert norm.num_batches_tracked == 1
