"""Layers of the U-shaped networks."""

from typing import Literal

import torch
from torch import Tensor, nn

Upsample = Literal["transposed", "resize"]
"""Key of `UPSAMPLING`: how a map is doubled in size."""
PaddingMode = Literal["zeros", "reflect"]
"""Values beyond the border of a map for a 3×3 convolution."""


class DoubleConv(nn.Sequential):
    """Two 3×3 convolutions that keep the size, each with batch norm and ReLU (U-Net, arXiv 1505.04597).

    Args:
        in_channels: Channels of the input, (B, in_channels, H, W).
        out_channels: Channels of the output, (B, out_channels, H, W).
        padding_mode: Values beyond the border: zeros, or the map reflected.
    """

    def __init__(self, in_channels: int, out_channels: int, *, padding_mode: PaddingMode = "zeros") -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, padding_mode=padding_mode),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, padding_mode=padding_mode),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with a 1×1 shortcut beside them; the sum is activated.

    Args:
        in_channels: Channels of the input, (B, in_channels, H, W).
        out_channels: Channels of the output: (B, out_channels, H, W), or (B, out_channels, H - 4, W - 4) without
            padding, where the shortcut is cropped to its centre.
        activation: Class of the activation, constructed with `inplace=True`.
        padding: 1 keeps the size, 0 is the valid convolution.
        padding_mode: Values beyond the border: zeros, or the map reflected.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        activation: type[nn.Module] = nn.ReLU,
        padding: int = 1,
        padding_mode: PaddingMode = "zeros",
    ) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=padding, padding_mode=padding_mode),
            nn.BatchNorm2d(out_channels),
            activation(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=padding, padding_mode=padding_mode),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self.activation = activation(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        y = self.convs(x)
        y += centre_crop(
            self.shortcut(x), y.shape[-2:]
        )  # in place: the backward pass of batch norm does not need its output
        return self.activation(y)


class MaxPool(nn.MaxPool2d):
    """2×2 max-pooling; an odd side is rounded up, as a stride-2 convolution with padding 1 does.

    Args:
        channels: Not used; all downsampling layers have the same constructor.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(2, ceil_mode=True)


class StridedConv(nn.Sequential):
    """3×3 convolution with stride 2 and batch norm, in place of pooling: (B, C, H, W) → (B, C, ⌈H/2⌉, ⌈W/2⌉).

    Args:
        channels: C of input and output.
        padding: 1 halves the size, 0 is the valid convolution: ⌊(H - 1)/2⌋.
        padding_mode: Values beyond the border: zeros, or the map reflected.
    """

    def __init__(self, channels: int, *, padding: int = 1, padding_mode: PaddingMode = "zeros") -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 3, stride=2, padding=padding, padding_mode=padding_mode),
            nn.BatchNorm2d(channels),
        )


class TransposedConv(nn.ConvTranspose2d):
    """2×2 transposed convolution with stride 2: (B, in_channels, H, W) → (B, out_channels, 2H, 2W).

    Each of its four weights sets every other pixel, so that it can draw a checkerboard on a constant image.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 2, stride=2)


class ResizeConv(nn.Sequential):
    """Resize-convolution: (B, in_channels, H, W) → (B, out_channels, 2H, 2W), without a checkerboard.

    A. Odena et al., "Deconvolution and checkerboard artifacts", Distill 2016, https://doi.org/10.23915/distill.00003.
    The 1×1 convolution stands before the bilinear resizing, where it gives the same result and is cheaper. The 3×3
    convolutions are those of the next block.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 1), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        )


UPSAMPLING: dict[Upsample, type[nn.Module]] = {"transposed": TransposedConv, "resize": ResizeConv}
"""Layers that double height and width, called with (in_channels, out_channels)."""


class PointwiseConv(nn.Conv2d):
    """1×1 convolution that keeps the channels.

    Args:
        channels: C of (B, C, H, W) → (B, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 1)


def centre_crop(x: Tensor, size: torch.Size) -> Tensor:
    """Crop (B, C, H, W) to the height and width `size` around its centre; an odd pixel is cut at the end."""
    top, left = ((have - want) // 2 for have, want in zip(x.shape[-2:], size, strict=True))
    return x[..., top : top + size[0], left : left + size[1]]


def concatenate(*maps: Tensor) -> Tensor:
    """Join maps (B, *, H, W) along their channels, each cropped around its centre to the smallest of them."""
    size = torch.Size(min(sides) for sides in zip(*(x.shape[-2:] for x in maps), strict=True))
    return torch.cat([centre_crop(x, size) for x in maps], dim=1)
