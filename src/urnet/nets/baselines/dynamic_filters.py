"""Dynamic filters (Sharma et al., CVPR 2018, "Classification-driven dynamic image enhancement", arXiv 1710.07558).

A small network predicts one k×k filter from the luminance of an image, and the luminance is convolved with it. Colour
does not change. The network is trained with the classifier, by the cross-entropy and the mean squared error to the
output of a traditional method: `train.auxiliary` and `pretrain.target`.

Not from the article: the layers of the predicting network; a linear filter, neither made positive nor normalised, so
that it can sharpen; a start near the identity filter, from which small learning rates train stably.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from urnet.nets.enhancers.base import Enhancer, keep_side, reflect_pad
from urnet.nets.enhancers.registry import register_enhancer

FilterSize = Annotated[int, Field(ge=2, le=31)]
"""Side of the filter, px."""

Streams = Annotated[int, Field(ge=1, le=8)]
"""Number of filters, without the original image."""


def luminance(x: Tensor) -> Tensor:
    """Compute the luma Y of ITU-R BT.601: (B, C, H, W) → (B, 1, H, W). A grey image is its own luma."""
    if x.shape[1] == 1:
        return x
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


class FilterNet(nn.Module):
    """Network that predicts a filter from the luminance of an image: (B, 1, H, W) → (B, k, k).

    Args:
        size: k. The output is the identity filter plus a linear layer with small initial weights.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 16), (16, 32), (32, 64)):
            convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(64, size**2)
        nn.init.normal_(self.head.weight, std=1e-3)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("identity", identity_filter(size), persistent=False)

    def forward(self, y: Tensor) -> Tensor:
        """Predict one filter for each image, (B, k, k)."""
        features = self.features(y).mean(dim=(2, 3))  # (B, 64)
        return self.identity + self.head(features).unflatten(1, self.identity.shape)  # (B, k, k)


class DynamicFilter(nn.Module):
    """Filter of the luminance: one for each image, or one for all images.

    Args:
        size: Side k of the filter.
        static: Filter by the mean of the predictions (article, section 3.2): in training that of the batch, in
            evaluation the running mean over the training part with a weight of 0.05 for each batch.
    """

    def __init__(self, size: int, *, static: bool = False) -> None:
        super().__init__()
        self.predict = FilterNet(size)
        self.static = static
        if static:
            self.register_buffer("mean", identity_filter(size))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        y = luminance(x)
        return x + convolve(y, self.filters(y)) - y  # Cb and Cr stay

    def filters(self, y: Tensor) -> Tensor:
        """Return the filters of luminances (B, 1, H, W): (B, k, k)."""
        if not self.static:
            return self.predict(y)
        if not self.training:
            return self.mean.expand(y.shape[0], -1, -1)
        mean = self.predict(y).mean(dim=0)  # (k, k)
        self.mean.lerp_(mean.detach().to(self.mean.dtype), 0.05)
        return mean.expand(y.shape[0], -1, -1)


class DynamicStreams(Enhancer):
    """Several dynamic filters and the original side by side, each classified (the article's third approach).

    Args:
        size: Side k of the filters.
        streams: Number of filters. The number of views is one higher.
    """

    def __init__(self, size: int, streams: int) -> None:
        super().__init__(nn.ModuleList(DynamicFilter(size) for _ in range(streams)), fit=keep_side)
        self.scores = nn.Parameter(torch.zeros(streams + 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighted mean of the views, (B, C, H, W)."""
        return (self.views(x) * self.view_weights().view(1, -1, 1, 1, 1)).sum(dim=1)

    def views(self, x: Tensor) -> Tensor:
        """Return the output of each filter, and last the original: (B, C, H, W) → (B, V, C, H, W)."""
        return torch.stack([*(stream(x) for stream in self.body), x], dim=1)

    def view_weights(self) -> Tensor:
        """Return the weights of the views, (V,): learned, positive, with sum 1, equal at the start."""
        return self.scores.softmax(dim=0)


@register_enhancer
def dynamic(
    channels: int,
    *,
    size: FilterSize = 6,
    variant: Literal["dynamic", "static", "streams"] = "dynamic",
    streams: Streams = 3,
) -> Enhancer:
    """Build the enhancer with dynamic filters.

    Args:
        channels: C of (B, C, H, W) → (B, C, H, W).
        size: Side k of the filter. An even one reaches one pixel further right and down than left and up.
        variant: "dynamic": a filter for each image. "static": the mean filter, the same for all images. "streams":
            several dynamic filters beside the original, with learned weights.
        streams: Number of filters of the variant "streams".
    """
    if variant == "streams":
        return DynamicStreams(size, streams)
    return Enhancer(DynamicFilter(size, static=variant == "static"), fit=keep_side)


def identity_filter(size: int) -> Tensor:
    """Return the k×k filter with which `convolve` changes nothing, (k, k)."""
    x = torch.zeros(size, size)
    x[(size - 1) // 2, (size - 1) // 2] = 1
    return x


def convolve(y: Tensor, filters: Tensor) -> Tensor:
    """Filter each image with its own filter (by correlation, as convolutional layers do).

    Args:
        y: Luminances, (B, 1, H, W), mirrored outwards at their edges.
        filters: (B, k, k).

    Returns:
        The filtered luminances, (B, 1, H, W).
    """
    k = filters.shape[-1]
    before, after = (k - 1) // 2, k // 2
    patches = F.unfold(reflect_pad(y, before, after, before, after), k)  # (B, k², H·W)
    return (filters.flatten(1)[:, None] @ patches).unflatten(2, y.shape[-2:])
