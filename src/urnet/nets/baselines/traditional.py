"""Traditional enhancement methods without parameters, for comparison with learned enhancement (paper, section 2.1).

Each can precede a classifier, as any other enhancer. Its output can be the training target of another enhancer, as in
Sharma et al., CVPR 2018, https://arxiv.org/abs/1710.07558. That article uses sharpening, the bilateral and the guided
filter, histogram equalisation and weighted least squares.

Colour images are enhanced in their luminance Y (ITU-R BT.601), as in that article; Cb and Cr do not change. Sizes such
as `sigma` are in px of the network's input.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from urnet.nets.baselines.dynamic_filters import luminance
from urnet.nets.enhancers.base import Enhancer, keep_side, reflect_pad
from urnet.nets.enhancers.registry import register_enhancer

Sigma = Annotated[float, Field(gt=0, le=1000)]
"""Standard deviation of a Gaussian, px."""
Radius = Annotated[int, Field(ge=1, le=64)]
"""Distance from the centre of a window to each side, px."""

_LOG_FLOOR = 1 / 255

_names: list[str] = []


def list_traditional() -> list[str]:
    """Return the names of the traditional methods."""
    return list(_names)


def register_traditional(constructor: Callable[..., Enhancer]) -> Callable[..., Enhancer]:
    """Register an enhancer without parameters, so that `list_traditional` returns it as well."""
    register_enhancer(constructor)
    _names.append(constructor.__name__)
    return constructor


class LuminanceFilter(nn.Module):
    """Filter of the luminance of images, always in float32.

    Args:
        function: Maps luminances in [0, 1], (B, 1, H, W), to new ones, (B, 1, H, W).
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Map pixels in [0, 1], (B, C, H, W), to filtered ones in [0, 1], float32, without a gradient."""
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self.forward(x)
        x = x.detach().float().clamp(0, 1)
        y = luminance(x)  # (B, 1, H, W)
        # Cb and Cr are multiples of B − Y and R − Y, so they stay if all three channels change by as much as Y.
        return (x + self.function(y) - y).clamp(0, 1)


class TraditionalEnhancer(Enhancer):
    """Enhancer without parameters.

    Args:
        function: Maps luminances in [0, 1], (B, 1, H, W), to new ones, (B, 1, H, W); its other arguments are `options`.
        exportable: Whether `torch.export`, and so ONNX, can trace the function.
        options: Further arguments of the function.
    """

    def __init__(self, function: Callable[..., Tensor], *, exportable: bool = True, **options: Any) -> None:
        super().__init__(LuminanceFilter(partial(function, **options)), fit=keep_side)
        self.exportable = exportable


@register_traditional
def clahe(
    channels: int,
    *,
    clip: Annotated[float, Field(ge=1, le=256)] = 2.0,
    tiles: Annotated[int, Field(ge=1, le=64)] = 8,
) -> Enhancer:
    """Build contrast-limited adaptive histogram equalisation (Zuiderveld, Graphics Gems IV, 1994).

    `clip` limits a bin to that many times the mean of all bins. An image has `tiles` × `tiles` histograms, or fewer
    where the side of a tile would be below 8 px.
    """
    return TraditionalEnhancer(_clahe, clip=clip, tiles=tiles)


def _clahe(y: Tensor, clip: float, tiles: int) -> Tensor:
    from kornia.enhance import equalize_clahe

    height, width = (max(1, min(tiles, side // 8)) for side in y.shape[-2:])
    # Undecorated: kornia's wrapper for other ranks of tensors would fix the batch size of an exported program.
    return equalize_clahe.__wrapped__(y, float(clip), (height, width))


@register_traditional
def equalise(channels: int) -> Enhancer:
    """Build histogram equalisation over the whole image, in 256 levels. Images of less than 256 px do not change."""
    return TraditionalEnhancer(_equalise)


def _equalise(y: Tensor) -> Tensor:
    from kornia.enhance import equalize

    return equalize(y)


@register_traditional
def unsharp(channels: int, *, sigma: Sigma = 2.0, amount: Annotated[float, Field(gt=0, le=100)] = 1.0) -> Enhancer:
    """Build unsharp masking: it adds `amount` times the difference between the image and its blur by `sigma`."""
    return TraditionalEnhancer(_unsharp, sigma=sigma, amount=amount)


def _unsharp(y: Tensor, sigma: float, amount: float) -> Tensor:
    return y + amount * (y - gaussian_blur(y, sigma))


@register_traditional
def retinex(
    channels: int,
    *,
    small: Sigma = 15.0,
    medium: Sigma = 80.0,
    large: Sigma = 250.0,
    gain: Annotated[float, Field(gt=0, le=10)] = 0.5,
) -> Enhancer:
    """Build a multi-scale retinex (Jobson, Rahman & Woodell, IEEE Trans. Image Process. 6, 965, 1997).

    The three scales are those of the article. The result is the mean over the scales of the log ratio of a pixel to its
    blurred surroundings, times `gain`, around mid-grey. The article gives no such display range.
    """
    return TraditionalEnhancer(_retinex, scales=(small, medium, large), gain=gain)


def _retinex(y: Tensor, scales: tuple[float, ...], gain: float) -> Tensor:
    y = y.clamp_min(_LOG_FLOOR)
    ratios = [y.log() - gaussian_blur(y, sigma).log() for sigma in scales]
    return 0.5 + gain * torch.stack(ratios).mean(dim=0)


@register_traditional
def homomorphic(
    channels: int,
    *,
    sigma: Sigma = 20.0,
    low: Annotated[float, Field(ge=0, le=1)] = 0.5,
    high: Annotated[float, Field(ge=1, le=10)] = 1.5,
) -> Enhancer:
    """Build homomorphic filtering (Oppenheim et al., Proc. IEEE 56, 1264, 1968).

    It reduces illumination and raises reflectance. In the logarithm, low frequencies (a Gaussian of `sigma`) are
    multiplied by `low` and high ones by `high`. The mean does not change.
    """
    return TraditionalEnhancer(_homomorphic, sigma=sigma, low=low, high=high)


def _homomorphic(y: Tensor, sigma: float, low: float, high: float) -> Tensor:
    log = y.clamp_min(_LOG_FLOOR).log()
    slow = gaussian_blur(log, sigma)
    mean = log.mean(dim=(-2, -1), keepdim=True)
    return (mean + low * (slow - mean) + high * (log - slow)).exp()


@register_traditional
def guided(channels: int, *, radius: Radius = 4, epsilon: Annotated[float, Field(gt=0, le=1)] = 0.001) -> Enhancer:
    """Build a guided filter for smoothing (He et al., IEEE Trans. PAMI 35, 1397, 2013).

    The image is its own guide. Windows with a variance below `epsilon` are smoothed; those above it hardly change.
    """
    return TraditionalEnhancer(_guided, radius=radius, epsilon=epsilon)


def _guided(y: Tensor, radius: int, epsilon: float) -> Tensor:
    from kornia.filters import guided_blur

    def smooth(y: Tensor) -> Tensor:
        return guided_blur(y, y, 2 * radius + 1, epsilon, separable=True)

    return _with_margin(smooth, y, 2 * radius)


@register_traditional
def bilateral(
    channels: int,
    *,
    radius: Radius = 3,
    sigma: Sigma = 2.0,
    contrast: Annotated[float, Field(gt=0, le=1)] = 0.05,
) -> Enhancer:
    """Build a bilateral filter (Tomasi & Manduchi, ICCV 1998): a mean over near pixels of similar brightness.

    Weights are Gaussian in the distance (`sigma`) and in the difference of luminance (`contrast`).
    """
    return TraditionalEnhancer(_bilateral, radius=radius, sigma=sigma, contrast=contrast)


def _bilateral(y: Tensor, radius: int, sigma: float, contrast: float) -> Tensor:
    from kornia.filters import bilateral_blur

    def smooth(y: Tensor) -> Tensor:
        return bilateral_blur(y, 2 * radius + 1, contrast, (sigma, sigma))

    return _with_margin(smooth, y, radius)


@register_traditional
def wavelet(
    channels: int,
    *,
    levels: Annotated[int, Field(ge=1, le=10)] = 3,
    strength: Annotated[float, Field(gt=0, le=10)] = 0.5,
) -> Enhancer:
    """Build wavelet denoising by soft thresholds (Donoho & Johnstone, Biometrika 81, 425, 1994).

    The wavelet is Daubechies' db2. The noise is the median of the finest diagonal coefficients / 0.6745. The threshold
    is `strength` times the universal one, noise · √(2 ln HW), which alone blurs too much. Images too small for one
    level do not change.
    """
    return TraditionalEnhancer(_wavelet, levels=levels, strength=strength)


def _wavelet(y: Tensor, levels: int, strength: float) -> Tensor:
    import ptwt
    import pywt

    height, width = y.shape[-2:]
    levels = min(levels, pywt.dwtn_max_level((height, width), "db2"))
    if levels == 0:
        return y
    approximation, *details = ptwt.wavedec2(y.squeeze(1), "db2", mode="reflect", level=levels)
    finest = details[-1].diagonal.abs().flatten(1)  # (B, n)
    median = finest.sort(dim=1).values[:, finest.shape[1] // 2]  # ONNX has no median
    noise = median.view(-1, 1, 1) / 0.6745
    threshold = strength * noise * float(np.sqrt(2 * np.log(height * width)))
    soft = [type(level)(*(x.sign() * (x.abs() - threshold).clamp_min(0) for x in level)) for level in details]
    return ptwt.waverec2((approximation, *soft), "db2")[..., :height, :width].unsqueeze(1)


@register_traditional
def wls(
    channels: int,
    *,
    smoothness: Annotated[float, Field(gt=0, le=100)] = 0.05,
    alpha: Annotated[float, Field(ge=0.5, le=2)] = 1.2,
) -> Enhancer:
    """Build edge-preserving smoothing by weighted least squares (Farbman et al., ACM Trans. Graph. 27(3), 67, 2008).

    `smoothness` is λ of the article. A higher `alpha` preserves edges of the log luminance more. A sparse system is
    solved for each image on the CPU (about 20 ms for 96 × 96 px), which `torch.export` cannot trace.
    """
    return TraditionalEnhancer(_wls, exportable=False, smoothness=smoothness, alpha=alpha)


def _wls(y: Tensor, smoothness: float, alpha: float) -> Tensor:
    if y.is_meta:  # only the shape counts
        return torch.empty_like(y)
    images = y.squeeze(1).double().cpu().numpy()
    return torch.from_numpy(np.stack([_wls_image(image, smoothness, alpha) for image in images])).unsqueeze(1).to(y)


def _wls_image(image: np.ndarray, smoothness: float, alpha: float) -> np.ndarray:
    """Solve (I + L) u = g, Farbman's Eq. 5, for one image (H, W), float64; L is the graph Laplacian of the pixels."""
    from scipy.sparse import diags_array
    from scipy.sparse.linalg import spsolve

    log = np.log(np.maximum(image, _LOG_FLOOR))
    right, below = np.zeros_like(image), np.zeros_like(image)  # weight of the edge to the neighbour, (H, W)
    right[:, :-1] = smoothness / (np.abs(np.diff(log, axis=1)) ** alpha + 1e-4)
    below[:-1] = smoothness / (np.abs(np.diff(log, axis=0)) ** alpha + 1e-4)
    width, pixels = image.shape[1], image.size
    upper = diags_array([-right.ravel()[:-1], -below.ravel()[:-width]], offsets=[1, width], shape=(pixels, pixels))
    edges = upper + upper.T
    system = edges + diags_array(1 - edges.sum(axis=1))
    return spsolve(system.tocsc(), image.ravel()).reshape(image.shape)


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian cut off at 3 σ, and images mirrored beyond their border.

    Args:
        x: Images, (B, C, H, W).
        sigma: Standard deviation, px. It may exceed the size of the image.

    Returns:
        Blurred images, (B, C, H, W).
    """
    rows, columns = (_blur_matrix(side, sigma, x) for side in x.shape[-2:])
    return rows @ x @ columns.T


def _blur_matrix(size: int, sigma: float, like: Tensor) -> Tensor:
    """Return the (size, size) matrix of a blur along one axis: rows are Gaussians, folded at the mirrored borders."""
    reach = max(1, round(3 * sigma))
    offsets = torch.arange(-reach, reach + 1, device=like.device)
    gaussian = torch.exp(-0.5 * (offsets / sigma) ** 2)
    gaussian = gaussian / gaussian.sum()
    period = max(2 * (size - 1), 1)
    positions = (torch.arange(size, device=like.device).unsqueeze(1) + offsets) % period  # (size, 2 · reach + 1)
    positions = torch.minimum(positions, period - positions)
    matrix = torch.zeros(size, size, device=like.device)
    return matrix.scatter_add(1, positions, gaussian.expand(size, -1))


def _with_margin(function: Callable[[Tensor], Tensor], y: Tensor, margin: int) -> Tensor:
    """Apply a filter to an image with a mirrored margin, and crop the margin off. Its window may exceed the image."""
    height, width = y.shape[-2:]
    y = function(reflect_pad(y, margin, margin, margin, margin))
    return y[..., margin : margin + height, margin : margin + width]
