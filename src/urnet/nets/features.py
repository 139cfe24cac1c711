"""What a classifier sees of an image on its way to the logits: its features, caught as they pass."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from urnet.nets.classifiers import find_head_layers
from urnet.nets.joint import JointModel


@contextmanager
def record_inputs(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what a layer is called with, float32, call by call, while the context is open."""
    caught: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda layer, inputs: caught.append(inputs[0].float()))
    try:
        yield caught
    finally:
        hook.remove()


@contextmanager
def _record_channel_means(layer: nn.Module, channels: int) -> Iterator[list[Tensor]]:
    """Collect a layer's output, averaged over all but batch and channels, (B, channels), while the context is open."""
    caught: list[Tensor] = []

    def catch(layer: nn.Module, inputs: object, output: Tensor) -> None:
        first = output.ndim == 4 and output.shape[1] == channels  # else (B, H, W, F) or tokens (B, T, F)
        flat = output.float().flatten(2).transpose(1, 2) if first else output.float().flatten(1, -2)
        caught.append(flat.mean(dim=1))

    hook = layer.register_forward_hook(catch)
    try:
        yield caught
    finally:
        hook.remove()


def find_last_layer(classifier: nn.Module) -> nn.Module:
    """Give the layer that makes logits of features (of several, the last); a network without one gives itself."""
    return [classifier, *find_head_layers(classifier)][-1]


def extract_features(model: JointModel, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Pass images through a model once, and catch the features at several depths.

    Args:
        model: the networks.
        images: (B, C, H, W) in [0, 1].

    Returns:
        Logits (B, K), enhanced images (B, C, H, W), and the features, from the first layer to the last: the mean over
        space of each feature map that timm names, (B, F_1), (B, F_2), …; where it names fewer than two, also what the
        last layer sees, (B, F). An enhancer's views are averaged with their weights.
    """
    with ExitStack() as stack:
        maps = [
            stack.enter_context(
                _record_channel_means(model.classifier.get_submodule(stage["module"]), stage["num_chs"])
            )
            for stage in getattr(model.classifier, "feature_info", None) or ()
        ]
        last = stack.enter_context(record_inputs(find_last_layer(model.classifier)))
        logits, enhanced = model.enhance_and_classify(images)
    features = [caught[-1] for caught in maps if caught]
    seen = last[-1]  # (B, F), or (B, T, F) tokens or (B, F, H, W) maps where the last layer keeps space
    if len(features) < 2:
        features.append(seen.mean(dim=1) if seen.ndim == 3 else seen.flatten(2).mean(dim=2) if seen.ndim == 4 else seen)
    if seen.shape[0] != images.shape[0]:  # every view is an image to the classifier
        weights = model.enhancer.view_weights()  # (V,)
        features = [torch.einsum("bvf,v->bf", x.unflatten(0, (images.shape[0], -1)), weights) for x in features]
    return logits, enhanced, features


def count_features(model: JointModel, channels: int, size: int) -> tuple[int, ...] | None:
    """Give the number of features at each depth, computed from shapes alone.

    Args:
        model: the networks; they are not changed.
        channels: C of the images.
        size: edge of the images, pixels.

    Returns:
        The sizes; None for networks that cannot be followed by shapes.
    """
    without_memory: dict[int, Tensor] = {id(x): x.detach().to("meta") for x in model.buffers()}
    without_memory |= {id(x): nn.Parameter(x.detach().to("meta"), False) for x in model.parameters()}
    try:
        skeleton = deepcopy(model, without_memory).eval()
        with torch.inference_mode():
            features = extract_features(skeleton, torch.zeros(1, channels, size, size, device="meta"))[2]
    except Exception:  # an enhancer that computes outside torch
        return None
    return tuple(part.shape[1] for part in features)
