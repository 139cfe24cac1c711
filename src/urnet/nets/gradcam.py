"""Grad-CAM: where in the cell the classifier found its answer.

R. R. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017,
https://arxiv.org/abs/1610.02391. The map is that of its Eqs. 1 and 2: the activations of the last convolutional layer,
weighted by the mean gradient of the class's logit, summed and rectified. The gradient is captum's.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from torch import Tensor, nn

from urnet.errors import RecipeError
from urnet.nets.classifiers import find_cam_layer

OPACITY = 0.45
COLOUR_MAP = "jet"
"""Blue to red, as in the paper's Fig. 3b."""
MIN_PICTURE_PX, MARGIN_PX, CAPTION_PX = 192, 8, 22
"""Edge of a small image that is drawn beside its map; space around it, and for a line of text."""


def grad_cam(model: nn.Module, images: Tensor, targets: Tensor | None = None, batch_size: int = 32) -> np.ndarray:
    """Compute Grad-CAM of each image, through the enhancer and the classifier.

    Args:
        model: A joint model: `model(images)` gives logits, and `find_cam_layer` searches `model.classifier`. Its mode
            (train or eval), its gradients and its `requires_grad` flags do not change.
        images: (B, C, H, W), in [0, 1], on any device.
        targets: (B,) the class to explain, or None for the predicted one.
        batch_size: Images at a time.

    Returns:
        (B, H, W) float32 in [0, 1]. The largest value of each map is 1, unless no pixel has a positive weight for the
        class.

    Raises:
        ValueError: Images or targets do not have the shapes above.
        RecipeError: The classifier has no feature maps (B, C, h, w); some transformers have none.
    """
    if images.ndim != 4 or (targets is not None and targets.shape != images.shape[:1]):
        shapes = f"images {tuple(images.shape)}" + ("" if targets is None else f" and targets {tuple(targets.shape)}")
        raise ValueError(f"{shapes}: expected (B, C, H, W) and (B,)")
    device = next(model.classifier.parameters()).device
    # The largest logit of an image has the gradient of the predicted class's logit, without a second forward pass.
    forward = model if targets is not None else lambda batch: model(batch).max(dim=1).values
    layer = find_cam_layer(model.classifier)
    explain = LayerGradCam(forward, layer)
    maps = [np.zeros((0, *images.shape[-2:]), np.float32)]
    with _without_parameter_gradients(model), torch.inference_mode(False), torch.enable_grad():
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size].to(device, copy=True)  # (B, C, H, W)
            target = None if targets is None else targets[start : start + batch_size].to(device, copy=True).long()
            if start == 0:
                _check_layout(model, layer, batch[:1])
            cam = explain.attribute(batch, target, relu_attributions=True).detach().float()  # (B, 1, h, w)
            cam = F.interpolate(cam, size=batch.shape[-2:], mode="bilinear", align_corners=False)[:, 0]  # (B, H, W)
            peak = cam.amax(dim=(1, 2), keepdim=True)
            maps.append(torch.where(peak > 0, cam / peak.clamp_min(torch.finfo(cam.dtype).tiny), 0.0).cpu().numpy())
    return np.concatenate(maps)


def _check_layout(model: nn.Module, layer: nn.Module, image: Tensor) -> None:
    """Refuse a layer that does not give (B, C, h, w).

    From channels last, or a row of tokens, captum would compute a wrong map without an error.
    """
    shapes: list[torch.Size] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    try:
        with torch.no_grad():
            model(image)
    finally:
        handle.remove()
    channels = model.classifier.feature_info[-1]["num_chs"]
    if len(shapes[0]) != 4 or shapes[0][1] != channels:
        raise RecipeError(
            f"{type(model.classifier).__name__}: its last feature map is {tuple(shapes[0])}, and Grad-CAM needs "
            f"(1, {channels}, height, width); choose a convolutional classifier",
            code="recipe.no_feature_maps",
        )


def overlay(image: np.ndarray, cam: np.ndarray, colours: str | None = None) -> np.ndarray:
    """Lay a map over its image, blue (0) to red (1) as in the paper's Fig. 3b, or in other colours.

    Args:
        image: (H, W) or (H, W, 3), in [0, 1]; values outside are clipped.
        cam: (H, W), in [0, 1].
        colours: one of matplotlib's colour maps; the paper's where not given.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: Image and map differ in size.
    """
    import matplotlib

    if image.shape[:2] != cam.shape:
        raise ValueError(f"image {image.shape} and map {cam.shape}: expected the same height and width")
    grey = image.ndim == 2 or image.shape[2] == 1
    pixels = np.clip(np.repeat(image.reshape(*cam.shape, 1), 3, axis=2) if grey else image, 0, 1)  # (H, W, 3)
    painted = matplotlib.colormaps[colours or COLOUR_MAP](np.clip(cam, 0, 1))[..., :3]
    return np.rint(255 * ((1 - OPACITY) * pixels + OPACITY * painted)).astype(np.uint8)


def draw_side_by_side(image: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """Draw an image and its map side by side, with captions and a legend of the colours.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3), in [0, 1].
        cam: (H, W), in [0, 1].

    Returns:
        (H', W', 3) uint8; small images are enlarged to at least `MIN_PICTURE_PX`.
    """
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    pixels = np.clip(image.reshape(*cam.shape, -1), 0, 1)
    raw = np.rint(255 * np.broadcast_to(pixels, (*cam.shape, 3))).astype(np.uint8)
    zoom = max(1, -(-MIN_PICTURE_PX // cam.shape[0]))
    height, width = zoom * cam.shape[0], zoom * cam.shape[1]
    picture = Image.new("RGB", (2 * width + 3 * MARGIN_PX, height + 2 * CAPTION_PX + MARGIN_PX), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for place, (panel, caption) in enumerate(((raw, "raw image"), (overlay(pixels, cam), "Grad-CAM"))):
        left = MARGIN_PX + place * (width + MARGIN_PX)
        draw.text((left, 4), caption, "black", font)
        picture.paste(Image.fromarray(panel).resize((width, height), Image.Resampling.NEAREST), (left, CAPTION_PX))
    bar = matplotlib.colormaps[COLOUR_MAP](np.linspace(0, 1, width // 3))[None, :, :3].repeat(10, axis=0)
    top, left = height + CAPTION_PX + MARGIN_PX, width + 2 * MARGIN_PX
    picture.paste(Image.fromarray(np.rint(255 * bar).astype(np.uint8)), (left + width // 3, top + 3))
    draw.text((left + width // 3 - 6, top), "no weight", "black", font, anchor="ra")
    draw.text((left + width // 3 + bar.shape[1] + 6, top), "most", "black", font)
    return np.asarray(picture)


@contextmanager
def _without_parameter_gradients(model: nn.Module) -> Iterator[nn.Module]:
    """Set evaluation mode and freeze the parameters; restore both afterwards.

    Without gradients of parameters, PyTorch builds a graph only from the layer on, where captum starts one.
    """
    modes = [(module, module.training) for module in model.modules()]
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield model.eval().requires_grad_(False)
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in required:
            parameter.requires_grad_(requires_grad)
