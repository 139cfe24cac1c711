"""Features of a classifier: the values that its layers compute on the way to the logits."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from urnet.nets.classifiers import find_head_layers
from urnet.nets.joint import JointModel


@contextmanager
def record_inputs(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Record the input of a layer at each call, as float32, while the context is open."""
    inputs_of_calls: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda layer, inputs: inputs_of_calls.append(inputs[0].float()))
    try:
        yield inputs_of_calls
    finally:
        hook.remove()


@contextmanager
def _record_channel_means(layer: nn.Module, channels: int) -> Iterator[list[Tensor]]:
    """Record the output of a layer averaged over space, (B, channels), while the context is open."""
    means: list[Tensor] = []

    def record(layer: nn.Module, inputs: object, output: Tensor) -> None:
        first = output.ndim == 4 and output.shape[1] == channels  # else (B, H, W, F) or tokens (B, T, F)
        flat = output.float().flatten(2).transpose(1, 2) if first else output.float().flatten(1, -2)
        means.append(flat.mean(dim=1))

    hook = layer.register_forward_hook(record)
    try:
        yield means
    finally:
        hook.remove()


def find_last_layer(classifier: nn.Module) -> nn.Module:
    """Return the layer that maps features to logits (the last of several), or the network itself if it has none."""
    return [classifier, *find_head_layers(classifier)][-1]


def extract_features(model: JointModel, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Compute the features of images at several depths, in one forward pass.

    Args:
        model: the joint model.
        images: (B, C, H, W) in [0, 1].

    Returns:
        Logits (B, K), enhanced images (B, C, H, W), and the features from the first layer to the last. These are the
        means over space of the feature maps that timm names, (B, F_1), (B, F_2), …. If it names fewer than two, the
        input of the last layer follows, (B, F). The views of an enhancer are averaged with their weights.
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
    features = [means[-1] for means in maps if means]
    final = last[-1]  # (B, F), or (B, T, F) tokens or (B, F, H, W) maps where the last layer keeps space
    if len(features) < 2:
        features.append(
            final.mean(dim=1) if final.ndim == 3 else final.flatten(2).mean(dim=2) if final.ndim == 4 else final
        )
    if final.shape[0] != images.shape[0]:  # the classifier receives each view as an image
        weights = model.enhancer.view_weights()  # (V,)
        features = [torch.einsum("bvf,v->bf", x.unflatten(0, (images.shape[0], -1)), weights) for x in features]
    return logits, enhanced, features


def count_features(model: JointModel, channels: int, size: int) -> tuple[int, ...] | None:
    """Count the features at each depth from shapes alone, without computing values.

    Args:
        model: the joint model; it does not change.
        channels: C of the images.
        size: edge of the images, pixels.

    Returns:
        The numbers of features, or None if the model cannot be traced by shapes.
    """
    without_memory: dict[int, Tensor] = {id(x): x.detach().to("meta") for x in model.buffers()}
    without_memory |= {id(x): nn.Parameter(x.detach().to("meta"), False) for x in model.parameters()}
    try:
        skeleton = deepcopy(model, without_memory).eval()
        with torch.inference_mode():
            features = extract_features(skeleton, torch.zeros(1, channels, size, size, device="meta"))[2]
    except Exception:  # the enhancer computes outside torch
        return None
    return tuple(part.shape[1] for part in features)
