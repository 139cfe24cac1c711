"""Build networks within limits, so that a damaged or hostile configuration takes neither all memory nor all time."""

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
"""Parameters that a network may register in building it, as a multiple of those that it keeps."""


class _TooLargeError(Exception):
    """More parameters than the weights hold."""


def build_and_load(build: "Callable[[], JointModel]", weights: Mapping[str, Tensor]) -> "JointModel":
    """Build networks for weights that are there, and fill them in.

    The networks are built without memory first. Building stops as soon as they have more parameters than the weights.

    Args:
        build: makes the networks with fresh weights.
        weights: tensors of a file, by name.

    Raises:
        RunError: networks and weights do not fit; the message names what differs.
        Exception: whatever `build` raises.
    """
    try:
        with torch.device("meta"):
            skeleton = _build_within(build, weights)
    except RunError:
        raise
    except Exception:  # some networks of timm cannot be built without memory; a wrong option fails again below
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
                raise RunError("the networks are larger than these weights") from None
            raise


@contextmanager
def _at_most(numbers: int, tensors: int) -> Iterator[list[str]]:
    """Stop this thread from building networks with more parameters than some.

    Yields:
        Empty; the name of the parameter at which building was stopped is added.
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
    """Compare names, shapes and types of a network's tensors with those of weights.

    Raises:
        RunError: they differ.
    """
    own = joint.state_dict()
    for name in sorted(own.keys() ^ weights.keys()):
        raise RunError(f"tensor {name[:80]} is {'missing' if name in own else 'unknown'}")
    for name, tensor in own.items():
        found = weights[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise RunError(f"tensor {name[:80]} is {_described(found)}, and the network's is {_described(tensor)}")


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
