"""RSGUNet, a winner of the PIRM 2018 challenge on perceptual image enhancement.

The network follows the article by Huang et al., "Range scaling global U-Net for perceptual image enhancement on mobile
devices" (ECCV Workshops 2018). It also follows the network that the authors published,
https://github.com/MTLab/rsgunet_image_enhance.

It differs from U-Net in two points. It tiles a feature vector of the whole image beside the deepest map. It multiplies
the last map by that of the stem instead of adding the two (range scaling). It has no norm layers.

Not from the article: any size (mirrored outwards to a multiple of 16 px), grey images, and He's initial weights.
Without norm layers, other initial weights lose the range of the image in the twenty layers.
"""

import torch
from torch import Tensor, nn

from urnet.nets.enhancers.base import Enhancer
from urnet.nets.enhancers.registry import Width, register_enhancer

SLOPE = 0.2
"""Slope of every LeakyReLU."""


class RSGUNet(nn.Module):
    """Network of six scales: a stem to 1/2 of the size, an encoder to 1/32, whose mean is used, a decoder from 1/16.

    Args:
        channels: C of (B, C, H, W) → (B, C, H, W); 16 divides H and W.
        width: Channels of the stem, w; deeper scales have w·(1, 2, 4, 8, 16).
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        w = width
        scales = [w, 2 * w, 4 * w, 8 * w]
        self.stem = _Conv(channels, w, stride=2)
        self.encoder = nn.ModuleList(_Double(below, at) for below, at in zip([w, *scales], scales, strict=False))
        self.down = nn.ModuleList(_Conv(at, at, stride=2) for at in scales)
        self.deepest = _Conv(8 * w, 16 * w)
        self.dense = nn.Sequential(nn.Linear(16 * w, 8 * w), nn.ReLU(inplace=True))
        self.bridge = _Double(16 * w, 8 * w)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * at, at, 2, stride=2) for at in scales[:3])
        self.decoder = nn.ModuleList(_Double(2 * at, at) for at in scales[:3])
        self.last_up = nn.ConvTranspose2d(w, channels, 2, stride=2)
        self.head = nn.Conv2d(channels, channels, 3, padding=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, SLOPE)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W), between -0.06 and 1.1."""
        stem = x = self.stem(x)  # (B, w, H/2, W/2)
        skips = []
        for i in range(4):
            x = self.encoder[i](self.down[i - 1](x) if i else x)  # (B, 2ⁱw, H/2ⁱ⁺¹, W/2ⁱ⁺¹)
            skips.append(x)
        x = self._append_global_features(x)  # (B, 8w, H/16, W/16)
        for i in reversed(range(3)):
            x = self.decoder[i](torch.cat([self.up[i](x), skips[i]], dim=1))  # (B, 2ⁱw, H/2ⁱ⁺¹, W/2ⁱ⁺¹)
        x = self.head(self.last_up(stem * x))  # (B, C, H, W)
        return torch.tanh(x) * 0.58 + 0.52

    def _append_global_features(self, x: Tensor) -> Tensor:
        image = self.dense(self.deepest(self.down[3](x)).mean(dim=(2, 3)))  # (B, 8w)
        tiled = image[:, :, None, None].expand_as(x)  # (B, 8w, H/16, W/16)
        return self.bridge(torch.cat([x, tiled], dim=1))


class _Conv(nn.Sequential):
    """3×3 convolution and LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1), nn.LeakyReLU(SLOPE, inplace=True)
        )


class _Double(nn.Sequential):
    """Two 3×3 convolutions, each with LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(_Conv(in_channels, out_channels), _Conv(out_channels, out_channels))


@register_enhancer
def rsgunet(channels: int, *, width: Width = 16) -> Enhancer:
    """Build RSGUNet; width 16 is the size of the article.

    Its output lies between -0.06 and 1.1. It cannot start as the identity. It is trained towards a target image, apart
    from the classifier (`pretrain` in a recipe, with the loss `huang2018`).

    Args:
        channels: C of (B, C, H, W) → (B, C, H, W).
        width: Channels of the first scale. The other scales have multiples of it.
    """
    return Enhancer(RSGUNet(channels, width))
