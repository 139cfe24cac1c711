"""Choose one z plane of a stack, or project all planes onto one."""

from collections.abc import Callable, Sequence

import numpy as np

from urnet.errors import ImageError
from urnet.fields.io.source import ReadRegion, Scene, Source

PROJECTIONS = ("max", "mean", "min", "sharpest")
"""Values of `z` besides the number of a plane."""

_WINDOW_PX = 512  # edge of the windows in which the sharpness of planes is compared

Region = tuple[int, int, int, int]
"""Top, left, height and width, px."""


def read_plane_or_projection(source: Source, scene: Scene, channel: int, z: str | None) -> ReadRegion:
    """Return a function that reads regions of one plane, or of a projection of all planes.

    Args:
        source: the open file.
        scene: one of its scenes.
        channel: number of the channel.
        z: number of a plane from 0, or one of `PROJECTIONS`; may be none where there is one plane.

    Raises:
        ImageError: no such plane (`fields.no_such_plane`), or several planes and no choice (`fields.z_needed`).
    """
    choice = None if z is None or not str(z).strip() else str(z).strip().lower()
    number = int(choice) if choice is not None and choice.isascii() and choice.isdigit() else None
    numbers = f"a number from 0 to {scene.planes - 1}" if scene.planes > 1 else "0, the only plane"
    rule = f"{numbers}, or {', '.join(PROJECTIONS)}"
    if choice is not None and number is None and choice not in PROJECTIONS:
        raise ImageError(f"{source.path}: z is {z!r}; it can be {rule}", code="fields.no_such_plane")
    if number is not None and number >= scene.planes:
        raise ImageError(f"{source.path}: no z plane {number}; give {rule}", code="fields.no_such_plane")
    if scene.planes == 1:
        return source.plane(scene, channel, 0)
    if choice is None:
        raise ImageError(
            f"{source.path}: {scene.planes} z planes. Choose with --z, or with the column z of a field table: {rule}",
            code="fields.z_needed",
        )
    if number is not None:
        return source.plane(scene, channel, number)
    planes = [source.plane(scene, channel, index) for index in range(scene.planes)]
    if choice == "sharpest":
        return max(planes, key=lambda plane: _sharpness(plane, scene))
    project = {"max": _maximum, "min": _minimum, "mean": _mean}[choice]
    return lambda *region: project(planes, region)


def _maximum(planes: Sequence[ReadRegion], region: Region) -> np.ndarray:
    return _reduce(np.maximum, planes, region)


def _minimum(planes: Sequence[ReadRegion], region: Region) -> np.ndarray:
    return _reduce(np.minimum, planes, region)


def _reduce(function: Callable, planes: Sequence[ReadRegion], region: Region) -> np.ndarray:
    result = planes[0](*region)
    for plane in planes[1:]:
        function(result, plane(*region), out=result)
    return result


def _mean(planes: Sequence[ReadRegion], region: Region) -> np.ndarray:
    first = planes[0](*region)
    total = first.astype(np.float64)
    for plane in planes[1:]:
        total += plane(*region)
    total /= len(planes)
    return total.astype(first.dtype) if first.dtype.kind == "f" else np.rint(total).astype(first.dtype)


def _sharpness(plane: ReadRegion, scene: Scene) -> float:
    """Measure the variance of the Laplacian over the squared mean, in nine windows spread over the field."""
    from scipy.ndimage import gaussian_laplace

    height, width = min(_WINDOW_PX, scene.height), min(_WINDOW_PX, scene.width)
    spread = brightness = 0.0
    for top in sorted({round(share * (scene.height - height)) for share in (0, 0.5, 1)}):
        for left in sorted({round(share * (scene.width - width)) for share in (0, 0.5, 1)}):
            pixels = plane(top, left, height, width).astype(np.float32)
            grey = pixels if pixels.ndim == 2 else pixels.mean(axis=2)
            spread += float(gaussian_laplace(grey, 1.0).var())
            brightness += float(grey.mean()) ** 2
    return spread / brightness if brightness else 0.0
