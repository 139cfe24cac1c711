"""Split touching cells: divide connected parts of the energy at necks, and between two nuclei."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from urnet.fields.detection.energy import MIN_CELL_ENERGY

MIN_RADIUS_PX = 3.5
"""Radius of the disc that fits everywhere into a cell, px. Thinner parts are threads, seams and noise."""

ENERGY_MARGIN_PX, MAX_NECK_RATIO = 5.0, 0.95
"""Width that the energy adds around a cell, px, and largest width of a neck as a share of the smaller part."""

MIN_AXIS_RATIO, MAX_VALLEY_RATIO = 1.2, 0.6
"""Two cells overlap where the ratio of the axes of a segment is at least the first value, and the nuclear brightness
between its halves, as a share of theirs, is at most the second."""


@dataclass(frozen=True)
class Segment:
    """A connected part of the energy, or one side of a neck."""

    top: int
    left: int
    mask: np.ndarray
    area: float

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of the segment."""
        return slice(self.top, self.top + self.mask.shape[0]), slice(self.left, self.left + self.mask.shape[1])


def find_segments(energy: np.ndarray) -> Iterator[Segment]:
    """Find segments in an energy whose threshold is 1, and divide them at necks."""
    from scipy.ndimage import binary_fill_holes, distance_transform_edt, find_objects, label

    labels, _ = label(energy > 1)
    for number, (rows, columns) in enumerate(find_objects(labels), 1):
        if min(rows.stop - rows.start, columns.stop - columns.start) < 2 * MIN_RADIUS_PX:
            continue
        own = labels[rows, columns] == number
        inside = energy[rows, columns]
        # The outline is halfway, on a logarithmic scale, from the threshold to the energy of the cell.
        own &= inside > np.sqrt(np.percentile(inside[own], 75))
        own = np.pad(binary_fill_holes(own), 5)
        core = distance_transform_edt(own) > MIN_RADIUS_PX
        own &= distance_transform_edt(~core) <= MIN_RADIUS_PX
        parts = label(own[5:-5, 5:-5])[0]
        for part, (down, across) in enumerate(find_objects(parts), 1):
            divided, cells = _divide_at_necks(parts[down, across] == part)
            for cell, (y, x) in enumerate(find_objects(divided, cells), 1):
                mask = divided[y, x] == cell
                area = float(mask.sum())
                top, left = rows.start + down.start, columns.start + across.start
                if area >= np.pi * MIN_RADIUS_PX**2 and inside[down, across][y, x][mask].mean() >= MIN_CELL_ENERGY:
                    yield Segment(top + y.start, left + x.start, mask, area)


def _divide_at_necks(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Divide a clump at its necks; return part numbers from 1, (H, W), and their count."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter, label
    from skimage.morphology import reconstruction
    from skimage.segmentation import watershed

    mask = np.pad(mask, 1)
    depth = gaussian_filter(distance_transform_edt(mask), 1) * mask
    # Two parts are separate cells where the depth between them falls below `MAX_NECK_RATIO` of the smaller maximum.
    logarithm = np.log(np.maximum(depth - ENERGY_MARGIN_PX, 0.5))
    fall = -np.log(MAX_NECK_RATIO)
    seeds, count = label(
        (logarithm - reconstruction(logarithm - fall, logarithm) >= 0.999 * fall) & (depth > ENERGY_MARGIN_PX + 1)
    )
    if count <= 1:
        return mask[1:-1, 1:-1].astype(np.int32), 1
    return watershed(-depth, seeds, mask=mask)[1:-1, 1:-1], count


def split_by_nuclei(segment: Segment, nuclei: np.ndarray, threshold: float) -> list[Segment]:
    """Return the segment, or its halves: two cells that overlap form a long segment with a nucleus on either side."""
    from scipy.ndimage import gaussian_filter1d

    places = np.argwhere(segment.mask)
    offset = places - places.mean(axis=0)
    spread, axes = np.linalg.eigh(offset.T @ offset / len(places))
    if spread[1] < MIN_AXIS_RATIO**2 * spread[0]:
        return [segment]
    along = offset @ axes[:, 1]
    bright = np.maximum(nuclei[segment.top + places[:, 0], segment.left + places[:, 1]] - threshold, 0)
    edges = np.arange(np.floor(along.min()), np.ceil(along.max()) + 1)
    profile = gaussian_filter1d(np.histogram(along, edges, weights=bright)[0], 1.5, mode="constant")
    third = len(profile) // 3
    gap = third + int(profile[third : len(profile) - third].argmin()) if third else 0
    if not third or profile[gap] > MAX_VALLEY_RATIO * min(profile[:gap].max(), profile[gap:].max()):
        return [segment]
    halves = []
    for side in (along <= edges[gap] + 0.5, along > edges[gap] + 0.5):
        top, left = places[side].min(axis=0)
        mask = np.zeros(places[side].max(axis=0) - (top, left) + 1, dtype=bool)
        mask[tuple((places[side] - (top, left)).T)] = True
        halves.append(Segment(segment.top + int(top), segment.left + int(left), mask, float(mask.sum())))
    return halves
