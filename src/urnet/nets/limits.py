"""Limits on building networks, so that a damaged or hostile configuration cannot exhaust memory or time."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from urnet.errors import RunError

if TYPE_CHECKING:
    from urnet.nets.joint import JointModel

MAX_PARAMETER_RATIO = 2
"""Limit on the parameters that a network registers while it is built, as a multiple of those in its weights file."""


class _TooLargeError(Exception):
    """The network registers more parameters than the limit."""


def build_and_load(build: "Callable[[], JointModel]", weights: Mapping[str, Tensor]) -> "JointModel":
    """Build the joint model that belongs to given weights, and load them.

    The first build allocates no memory. Building stops as soon as the parameters exceed the limit.

    Args:
        build: builds the model with random weights.
        weights: tensors of a file, by name.

    Raises:
        RunError: the weights do not fit the model; the message names the difference.
        Exception: any error of `build`.
    """
    try:
        with torch.device("meta"):
            skeleton = _build_within(build, weights)
    except RunError:
        raise
    except Exception:  # some timm networks need memory to be built; a wrong option fails again below
        pass
    else:
        _compare(skeleton, weights)
    joint = _build_within(build, weights)
    _compare(joint, weights)
    joint.load_state_dict(weights)
    return joint


def _build_within(build: "Callable[[], JointModel]", weights: Mapping[str, Tensor]) -> "JointModel":
    numbers = sum(tensor.numel() for tensor in weights.values())
    with _at_most(MAX_PARAMETER_RATIO * numbers + 10**6, MAX_PARAMETER_RATIO * len(weights) + 100) as exceeded:
        try:
            return build()
        except Exception:
            if exceeded:
                raise RunError("the networks are larger than these weights", code="model.too_large") from None
            raise


@contextmanager
def _at_most(numbers: int, tensors: int) -> Iterator[list[str]]:
    """Limit the parameters that this thread registers while the context is open.

    Yields:
        A list, to which the name of the first parameter beyond the limit is added.
    """
    thread, exceeded, count, total = threading.get_ident(), [], 0, 0

    def register(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal count, total
        if threading.get_ident() != thread or parameter is None:
            return
        count, total = count + 1, total + parameter.numel()
        if count > tensors or total > numbers:
            exceeded.append(name)
            raise _TooLargeError

    hook = register_module_parameter_registration_hook(register)
    try:
        yield exceeded
    finally:
        hook.remove()


def _compare(joint: "JointModel", weights: Mapping[str, Tensor]) -> None:
    """Compare the names, shapes and types of a network's tensors with those of weights.

    Raises:
        RunError: a tensor differs.
    """
    own = joint.state_dict()
    for name in sorted(own.keys() ^ weights.keys()):
        raise RunError(
            f"tensor {name[:80]} is {'missing' if name in own else 'unknown'}", code="model.weights_mismatch"
        )
    for name, tensor in own.items():
        given = weights[name]
        if given.shape != tensor.shape or given.dtype != tensor.dtype:
            raise RunError(
                f"tensor {name[:80]} is {_describe(given)}, and the network needs {_describe(tensor)}",
                code="model.weights_mismatch",
            )


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
