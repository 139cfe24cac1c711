"""Single cells in an energy: its connected parts, divided where they have a neck or two nuclei."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from urnet.fields.detection.energy import MIN_CELL_ENERGY

MIN_RADIUS_PX = 3.5
"""Radius of the disc that fits everywhere into a cell, px: thinner parts are threads, seams and noise."""

ENERGY_MARGIN_PX, MAX_NECK_RATIO = 5.0, 0.95
"""What the energy adds about a cell, px, and how narrow (as a share of the smaller part) a waist must be to divide."""

MIN_AXIS_RATIO, MAX_VALLEY_RATIO = 1.2, 0.6
"""Least ratio of a piece's axes, and greatest nuclear brightness between its halves as a share of theirs, that make it
two cells."""


@dataclass(frozen=True)
class Segment:
    """A connected part of the energy, or what a neck divides from it."""

    top: int
    left: int
    mask: np.ndarray
    area: float

    @property
    def box(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return slice(self.top, self.top + self.mask.shape[0]), slice(self.left, self.left + self.mask.shape[1])


def find_segments(energy: np.ndarray) -> Iterator[Segment]:
    """Single cells as far as necks tell them apart, in an energy whose threshold is 1."""
    from scipy.ndimage import binary_fill_holes, distance_transform_edt, find_objects, label

    labels, _ = label(energy > 1)
    for number, (rows, columns) in enumerate(find_objects(labels), 1):
        if min(rows.stop - rows.start, columns.stop - columns.start) < 2 * MIN_RADIUS_PX:
            continue
        own = labels[rows, columns] == number
        inside = energy[rows, columns]
        # An outline is half-way (of a logarithm) from the threshold up to the cell's own energy.
        own &= inside > np.sqrt(np.percentile(inside[own], 75))
        own = np.pad(binary_fill_holes(own), 5)
        core = distance_transform_edt(own) > MIN_RADIUS_PX
        own &= distance_transform_edt(~core) <= MIN_RADIUS_PX
        parts = label(own[5:-5, 5:-5])[0]
        for part, (down, across) in enumerate(find_objects(parts), 1):
            divided, cells = _divided(parts[down, across] == part)
            for cell, (y, x) in enumerate(find_objects(divided, cells), 1):
                mask = divided[y, x] == cell
                area = float(mask.sum())
                top, left = rows.start + down.start, columns.start + across.start
                if area >= np.pi * MIN_RADIUS_PX**2 and inside[down, across][y, x][mask].mean() >= MIN_CELL_ENERGY:
                    yield Segment(top + y.start, left + x.start, mask, area)


def _divided(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the parts of a clump, (H, W) from 1, and count them."""
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


def split_by_nuclei(piece: Segment, glow: np.ndarray, nuclear: float) -> list[Segment]:
    """The piece, or its halves: two cells that overlap make a long piece with a nucleus on either side."""
    from scipy.ndimage import gaussian_filter1d

    places = np.argwhere(piece.mask)
    offset = places - places.mean(axis=0)
    spread, axes = np.linalg.eigh(offset.T @ offset / len(places))
    if spread[1] < MIN_AXIS_RATIO**2 * spread[0]:
        return [piece]
    along = offset @ axes[:, 1]
    bright = np.maximum(glow[piece.top + places[:, 0], piece.left + places[:, 1]] - nuclear, 0)
    edges = np.arange(np.floor(along.min()), np.ceil(along.max()) + 1)
    profile = gaussian_filter1d(np.histogram(along, edges, weights=bright)[0], 1.5, mode="constant")
    third = len(profile) // 3
    gap = third + int(profile[third : len(profile) - third].argmin()) if third else 0
    if not third or profile[gap] > MAX_VALLEY_RATIO * min(profile[:gap].max(), profile[gap:].max()):
        return [piece]
    halves = []
    for side in (along <= edges[gap] + 0.5, along > edges[gap] + 0.5):
        top, left = places[side].min(axis=0)
        mask = np.zeros(places[side].max(axis=0) - (top, left) + 1, dtype=bool)
        mask[tuple((places[side] - (top, left)).T)] = True
        halves.append(Segment(piece.top + int(top), piece.left + int(left), mask, float(mask.sum())))
    return halves
