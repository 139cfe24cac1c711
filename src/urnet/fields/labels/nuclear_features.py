"""Segment the nucleus of one cell in a crop of its nuclear fluorescence, and measure its size, shape and brightness.

The background is a plane that is fitted outside the cell. Otsu's threshold (IEEE Trans. Syst. Man Cybern. 9, 62, 1979)
separates the nucleus. Brighter pixels are first clipped to the brightness of the nucleus, so a bright neighbour does
not move the threshold.

With a mask of the cell, all bright pixels in the cell form the nucleus. Lobes with an invisible bridge stay together,
and the nucleus of a neighbour stays out. Without a mask, the nucleus is the part nearest to the centre of the crop,
with all parts across a small gap; the touching nuclei of two cells can then count as one.

The shape is measured after the nucleus is scaled to one size, so it does not depend on the magnification.
"""

import math

import numpy as np
from scipy import ndimage

from urnet.errors import ImageError

FEATURES = {
    "area": "area of the nucleus, px²",
    "area_um2": "area of the nucleus, µm²",
    "diameter_um": "diameter of the circle of the same area, µm",
    "cell_diameter_um": "diameter of the circle of the cell's area, µm",
    "ratio": "share of the cell's area that the nucleus covers, 0 to 1; N:C = 2:1 is 0.67",
    "pieces": "parts that no visible bridge joins, number",
    "lobes": "parts set off by a constriction to less than 0.8 of their width, number",
    "neck": "width of the narrowest constriction, as a share of the narrower part's; 1: none, 0: no bridge seen",
    "thickness": "diameter of the largest circle within, in diameters of the nucleus; 1: a disc, 1/√n: n equal lobes",
    "roundness": "4π·area / perimeter², 0 to 1; 1: a disc",
    "solidity": "area as a share of its convex hull's, 0 to 1",
    "elongation": "long axis over short axis of the ellipse of the same moments, at least 1",
    "concavity": "depth of the deepest bay under the convex hull, in diameters of the nucleus",
    "concavities": "bays deeper than a tenth of the diameter, number",
    "branches": "branches of the skeleton longer than a sixth of the diameter, number",
    "skeleton": "length of the skeleton, in diameters of the nucleus",
    "intensity": "mean brightness above the background, counts",
    "total": "sum of the brightness above the background, counts; follows the DNA content",
    "texture": "standard deviation of the brightness over its mean, within the nucleus",
    "saturated": "share of the nucleus at the crop's greatest count, 0 to 1; above a few percent it was overexposed",
    "border": "share of the nucleus's outline on the crop's border, 0 to 1; above 0 it is cut",
}
"""Features that `nuclear_features` measures, with units. Those that need a mask or a pixel size are NaN without it."""

MIN_BRIGHTNESS_SNR = 5.0
"""Smallest brightness of a nucleus above the background, in standard deviations of the smoothed noise."""

MIN_NUCLEUS_SHARE = 0.04
"""Smallest area of a nucleus, as a share of the cell; that of a segmented granulocyte is about 0.25."""

MIN_PIECE_SHARE = 0.1
"""Smallest area of a part of the nucleus, as a share of the largest part."""

MIN_OVERLAP_SHARE = 1 / 3
"""Smallest share of a bright spot within the cell from which that part belongs to the nucleus of the cell."""

MAX_GAP = 0.2
"""Without a mask: largest gap between parts of one nucleus, in diameters of the part nearest to the centre."""

SMOOTHING_WIDTH = 1 / 60
"""Standard deviation of the smoothing, in diameters of the cell; at least 0.5 px. About 0.2 µm."""

DEFAULT_CELL_WIDTH = 0.5
"""Diameter of a cell without a mask, as a share of the crop's shorter edge."""

LOBE_NECK_RATIO = 0.8
"""Width of a constriction, as a share of the lobe, below which the lobe counts. Noise dents a smooth outline less than
that. The optics widen the filaments between lobes; the textbook's third of the width needs stained smears under oil."""

STANDARD_DIAMETER_PX = 40
"""Diameter at which the shape is measured, px."""


def nuclear_features(
    nucleus: np.ndarray, cell: np.ndarray | None = None, pixel_um: float | None = None
) -> dict[str, float] | None:
    """Measure the nucleus of the cell in the middle of a crop.

    Args:
        nucleus: nuclear fluorescence, (H, W) or (H, W, 3), raw counts of any depth; NaN where unknown.
        cell: mask of the cell, (H, W) booleans; None where unknown.
        pixel_um: edge of a pixel, µm; None where unknown.

    Returns:
        The features in `FEATURES`, or None where there is no nucleus.

    Raises:
        ImageError: wrong or different shapes, or a pixel size that is not positive.
    """
    if pixel_um is not None and not (math.isfinite(pixel_um) and pixel_um > 0):
        raise ImageError(
            f"the pixel size is {pixel_um} µm; it must be positive, or None where it is unknown",
            code="fields.pixel_size_invalid",
        )
    segmented = _segment(nucleus, cell)
    if segmented is None:
        return None
    mask, above, smooth, level = segmented
    grey = _grey(nucleus)
    area = float(mask.sum())
    um = math.nan if pixel_um is None else pixel_um
    covers = math.nan if cell is None else float(np.count_nonzero(cell))
    values = above[mask]
    outline = mask & ~ndimage.binary_erosion(mask, border_value=0)
    frame = np.ones_like(mask)
    frame[1:-1, 1:-1] = False
    return {
        "area": area,
        "area_um2": area * um**2,
        "diameter_um": 2 * math.sqrt(area / math.pi) * um,
        "cell_diameter_um": 2 * math.sqrt(covers / math.pi) * um,
        "ratio": min(area / covers, 1.0) if cell is not None else math.nan,
        **_shape(*_at_standard_size(mask, smooth, level)),
        "intensity": float(values.mean()),
        "total": float(values.sum()),
        "texture": float(smooth[mask].std() / values.mean()),
        "saturated": float((grey[mask] >= np.nanmax(grey)).mean()),
        "border": float(frame[outline].mean()),
    }


def _segment(nucleus: np.ndarray, cell: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, float] | None:
    """Return the mask, the counts above the background, these smoothed, all (H, W), and the threshold of the last."""
    from skimage.filters import threshold_otsu

    grey = _grey(nucleus)
    if cell is not None and cell.shape != grey.shape:
        raise ImageError(
            f"the crop of the nucleus is {grey.shape[1]} x {grey.shape[0]} px and the mask of the cell has shape "
            f"{cell.shape}; both must cover the same pixels",
            code="fields.mask_shape",
        )
    cell = None if cell is None else np.asarray(cell, dtype=bool)
    known = np.isfinite(grey)
    if known.mean() < 0.5 or (cell is not None and not cell.any()):
        return None
    grey = np.where(known, grey, np.median(grey[known]))
    H, W = grey.shape
    edge = min(H, W)
    across = DEFAULT_CELL_WIDTH * edge if cell is None else 2 * math.sqrt(cell.sum() / math.pi)
    away = np.hypot(*(np.mgrid[:H, :W] - np.array([(H - 1) / 2, (W - 1) / 2])[:, None, None]))
    middle = away <= across / 2 if cell is None else cell

    above = grey - _background(grey, ~middle)
    smooth = ndimage.gaussian_filter(above, max(0.5, SMOOTHING_WIDTH * across))
    noise = _spread(smooth[~middle & (smooth < np.median(smooth) + 3 * _spread(smooth))])
    if np.issubdtype(np.asarray(nucleus).dtype, np.integer):
        noise = max(noise, 0.1)  # integer counts hide noise below this
    peak = float(np.percentile(smooth[middle], 97))
    if peak <= max(MIN_BRIGHTNESS_SNR * noise, 1e-6 * np.abs(grey).max()):
        return None
    level = float(threshold_otsu(np.clip(smooth, 0, peak)))
    bright = smooth > level

    if cell is not None:
        mask = _within(bright, ndimage.binary_dilation(cell, iterations=max(1, round(0.04 * across))))
        least = MIN_NUCLEUS_SHARE * cell.sum()
    else:
        mask = _nearest(bright, away, edge / 4)
        least = MIN_NUCLEUS_SHARE * math.pi / 4 * across**2
    mask = _without_specks(mask)
    if mask.sum() < max(least, 8):
        return None
    return mask, above, smooth, level


def _grey(nucleus: np.ndarray) -> np.ndarray:
    array = np.asarray(nucleus)
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,)) or min(array.shape[:2]) < 8:
        raise ImageError(
            f"the crop of the nucleus has shape {array.shape}; it must be (H, W) or (H, W, 3), at least 8 px each way",
            code="fields.nucleus_shape",
        )
    return array.reshape(*array.shape[:2], -1).mean(axis=2, dtype=np.float64)


def _spread(values: np.ndarray) -> float:
    """Estimate the standard deviation by the median absolute deviation."""
    return float(1.4826 * np.median(np.abs(values - np.median(values)))) if values.size else 0.0


def _background(grey: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Fit a plane to the pixels outside the cell, (H, W), without other nuclei.

    Where the cell fills the crop, the background is the median of the darkest tenth.
    """
    H, W = grey.shape
    rows, columns = np.mgrid[:H, :W] / max(H, W) - 0.5
    terms = np.stack([np.ones_like(rows), rows, columns], axis=-1)  # (H, W, 3)
    used = outside & (grey <= np.median(grey[outside])) if outside.sum() > 0.1 * grey.size else None
    if used is None:
        return np.full_like(grey, np.median(grey[grey <= np.percentile(grey, 10)]))
    plane = np.full_like(grey, np.median(grey[used]))
    for _ in range(5):
        left = grey - plane
        # Fluorescence only adds to the noise, so its lower half gives its width.
        low = left[outside & (left <= 0)]
        width = 1.4826 * float(np.median(-low)) if low.size else 0.0
        used = outside & (left <= 2.5 * width + 1e-9 * np.abs(grey).max())
        if used.sum() < 12:
            break
        plane = terms @ np.linalg.lstsq(terms[used], grey[used], rcond=None)[0]
    return plane


def _within(bright: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Select the bright parts in the cell, without those of a neighbour."""
    spots, _ = ndimage.label(bright, np.ones((3, 3)))
    whole = np.bincount(spots.ravel())
    inside = np.bincount(spots[cell], minlength=len(whole))
    own = inside >= MIN_OVERLAP_SHARE * whole
    own[0] = False
    return own[spots] & cell


def _nearest(bright: np.ndarray, away: np.ndarray, reach: float) -> np.ndarray:
    """Select the bright part nearest to the centre, and the parts across a small gap."""
    spots, count = ndimage.label(bright, np.ones((3, 3)))
    if count == 0:
        return bright
    distances = ndimage.minimum(away, spots, range(1, count + 1))
    if distances.min() > reach:
        return np.zeros_like(bright)
    # A part that covers the centre is nearest. Of several around it, take the largest within the distance of a lobe.
    areas = np.bincount(spots.ravel(), minlength=count + 1)[1:]
    near = distances <= distances.min() + 0.1 * reach
    first = spots == 1 + int(np.argmax(np.where(near, areas, 0)))
    gap = MAX_GAP * 2 * math.sqrt(first.sum() / math.pi)
    joined, _ = ndimage.label(ndimage.distance_transform_edt(~bright) <= gap / 2, np.ones((3, 3)))
    return bright & (joined == joined[first][0])


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """Fill small holes, and drop parts that are much smaller than the largest."""
    holes, _ = ndimage.label(~mask)
    filled = mask | (np.bincount(holes.ravel()) < 0.05 * mask.sum())[holes]
    spots, count = ndimage.label(filled, np.ones((3, 3)))
    if count < 2:
        return filled
    areas = np.bincount(spots.ravel())
    areas[0] = 0
    return (areas >= MIN_PIECE_SHARE * areas.max())[spots] & filled


def _at_standard_size(mask: np.ndarray, smooth: np.ndarray, level: float) -> tuple[np.ndarray, float]:
    """Scale the nucleus to `STANDARD_DIAMETER_PX` with a subpixel outline; return the mask and its diameter, px."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    mask = np.pad(mask[box], 2)
    values = np.pad(smooth, 2, mode="edge")[box[0].start : box[0].stop + 4, box[1].start : box[1].stop + 4]
    fold = STANDARD_DIAMETER_PX / (2 * math.sqrt(mask.sum() / math.pi))
    # At the outline the counts decide; farther out, or where the mask of the cell cut it, the mask decides.
    values = np.where(ndimage.binary_dilation(mask), np.where(mask, np.maximum(values, level), values), 0)
    values = np.minimum(values, 2 * level)
    if fold < 1:
        values = ndimage.gaussian_filter(values, 0.5 / fold)
    shape = np.pad(ndimage.zoom(values, fold, order=1, mode="grid-constant", grid_mode=True) > level, 2)
    shape = _without_specks(shape)
    return shape, 2 * math.sqrt(shape.sum() / math.pi)


def _shape(shape: np.ndarray, diameter: float) -> dict[str, float]:
    from skimage.measure import perimeter_crofton, regionprops
    from skimage.morphology import convex_hull_image

    area = float(shape.sum())
    hull = convex_hull_image(shape)
    bays, count = ndimage.label(hull & ~shape)
    depth = ndimage.distance_transform_edt(hull)
    depths = np.asarray(ndimage.maximum(depth, bays, range(1, count + 1))) / diameter if count else np.zeros(1)
    ellipse = regionprops(shape.astype(np.uint8))[0]
    distance = ndimage.distance_transform_edt(shape)
    branches, length = _skeleton(shape, distance, diameter)
    return {
        "pieces": float(ndimage.label(shape, np.ones((3, 3)))[1]),
        "lobes": float(_lobes(distance, LOBE_NECK_RATIO)),
        "neck": _neck(distance),
        "thickness": 2 * float(distance.max()) / diameter,
        "roundness": min(1.0, 4 * math.pi * area / float(perimeter_crofton(shape, 4)) ** 2),
        "solidity": area / float(hull.sum()),
        "elongation": ellipse.axis_major_length / max(ellipse.axis_minor_length, 1.0),
        "concavity": float(depths.max()),
        "concavities": float((depths > 0.1).sum()),
        "branches": branches,
        "skeleton": length,
    }


def _lobes(distance: np.ndarray, neck: float) -> int:
    """Count maxima of the distance to the outline that are separated by a saddle below `neck` times their height.

    Args:
        distance: distance to the outline, px, 0 outside, (H, W).
        neck: share between 0 and 1, exclusive.
    """
    from skimage.morphology import local_maxima, reconstruction

    # Domes of a given relative height: the h-maxima of the logarithm.
    height = np.log(np.maximum(distance, 0.5))
    tops, count = ndimage.label(local_maxima(reconstruction(height + math.log(neck), height)), np.ones((3, 3)))
    radii = np.asarray(ndimage.maximum(distance, tops, range(1, count + 1)))
    return int((radii >= 0.3 * radii.max()).sum())


def _neck(distance: np.ndarray) -> float:
    """Find the constriction at which the nucleus divides into two, by bisection to 0.02."""
    if ndimage.label(distance > 0, np.ones((3, 3)))[1] > 1:
        return 0.0
    if _lobes(distance, 0.98) < 2:
        return 1.0
    low, high = 0.1, 0.98
    while high - low > 0.02:
        middle = (low + high) / 2
        low, high = (low, middle) if _lobes(distance, middle) >= 2 else (middle, high)
    return (low + high) / 2


def _skeleton(shape: np.ndarray, distance: np.ndarray, diameter: float) -> tuple[float, float]:
    """Count the branches longer than a sixth of the diameter, and measure the length of the skeleton in diameters.

    Ends that run into corners of the outline, where less than half the width is left, do not count.
    """
    from skimage.morphology import skeletonize

    line = skeletonize(shape) & (distance >= 0.5 * distance.max())
    neighbours = ndimage.convolve(line.astype(int), np.ones((3, 3), int), mode="constant") - 1
    branches, count = ndimage.label(line & (neighbours <= 2), np.ones((3, 3)))
    lengths = np.bincount(branches.ravel(), minlength=count + 1)[1:]
    return float((lengths > diameter / 6).sum()), float(line.sum() / diameter)
