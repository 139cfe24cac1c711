"""Where the cells of a field lie, from brightfield alone or with a nuclear channel.

The field is reduced until a cell is some 30 px wide (`reduction`), and its local energy is thresholded (`signal`). What
is connected is divided where it has a neck (`pieces`), each part's outline is traced, and cells that claim the same
pixel share it by their outlines (`outline`). Then sizes and looks decide what is a cell of this field (`red_cells`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from urnet.errors import ImageError
from urnet.fields.detection.energy import BLOCK_PX, ReadRegion, ReducedField
from urnet.fields.detection.outline import assign_pixels
from urnet.fields.detection.red_cells import find_red_cells
from urnet.fields.detection.scale import MAX_WIDTH_PX, MAX_WIDTH_SHARE, MIN_WIDTH_PX, reduce_field, typical_width
from urnet.fields.detection.split_touching import MIN_RADIUS_PX, find_segments, split_by_nuclei

TILE_OVERLAP_PX = 128
"""What is read about each tile, in px of the picture that is searched; cells in wider clumps may depend on the tile."""

MIN_RED_CELL_ROUNDNESS = 0.9
"""Least roundness of a particle that may be told to be a red cell."""

MIN_NUCLEAR_SHARE = 0.1
"""Least share of a cell that its nucleus covers."""


@dataclass(frozen=True)
class Detection:
    """One cell of a field.

    Args:
        x: column of its centre, px.
        y: row of its centre, px.
        area: of its mask, px.
        diameter: of the circle of the same area, px.
        roundness: 4·pi·area/perimeter² of its outline, at most 1.
        touching: share of the mask's outline that lies next to another particle.
        on_edge: whether the field's border cuts it.
        top: row of the mask's first row in the field.
        left: column of the mask's first column in the field.
        mask: the pixels that are the cell's, (h, w), booleans.
    """

    x: float
    y: float
    area: float
    diameter: float
    roundness: float
    touching: float
    on_edge: bool
    top: int
    left: int
    mask: np.ndarray


def detect(
    read: ReadRegion,
    shape: tuple[int, int],
    *,
    nuclei: ReadRegion | None = None,
    least: float | None = None,
    most: float | None = None,
    roundness: float = 0.0,
    border: bool = True,
    tile: int = 2048,
) -> list[Detection]:
    """Find the white cells of a field.

    Args:
        read: gives the pixels of a region of the brightfield, raw counts of any depth. Colours are averaged; values
            that are no numbers are taken for background.
        shape: height and width of the field, px.
        nuclei: the same for the nuclear channel. With it, only what has a nucleus is a cell.
        least: least diameter, px. By default half the typical one; and where small round particles that look alike
            stand apart from the cells, as red cells do, these are left out too.
        most: greatest diameter, px; by default 2.2 times the typical one.
        roundness: least roundness, 0 to 1.
        border: whether to keep cells that the field's border cuts.
        tile: edge of the tiles in which the field is searched, px.

    Returns:
        The cells from top to bottom, then from left to right; none for a blank field or one of noise.

    Raises:
        ImageError: the limits exclude everything, or `shape` or `tile` is not positive.
    """
    if min(*shape, tile) < 1 or not 0 <= roundness <= 1 or (least or 0) < 0 or (most is not None and most <= 0):
        raise ImageError(
            f"field {shape}, tile {tile}, least {least}, most {most}, roundness {roundness}; sizes must be positive, "
            "and roundness lies between 0 and 1"
        )
    if least is not None and most is not None and least > most:
        raise ImageError(f"cells of at least {least} px and at most {most} px: no cell can be both; swap the limits")
    view = reduce_field(read, nuclei, shape, least, most)
    if view is None:
        return []
    step = max(1, round(tile / (BLOCK_PX * view.fold))) * BLOCK_PX
    height, width = view.shape
    particles = [
        particle
        for top in range(0, height, step)
        for left in range(0, width, step)
        for particle in _search(view, top, left, step)
    ]
    if most is None:
        particles = [
            p
            for p in particles
            if max(p.found.mask.shape) <= max(MAX_WIDTH_SHARE * min(shape), view.fold * MIN_WIDTH_PX)
        ]
    cells = _within_limits(particles, least, most, brightfield=nuclei is None)
    cells = [cell for cell in cells if cell.roundness >= roundness and (border or not cell.on_edge)]
    return sorted(cells, key=lambda cell: (cell.y, cell.x))


@dataclass(frozen=True)
class _Particle:
    """What was found, before it is known which sizes are cells'.

    Args:
        found: the particle in px of the field.
        looks: logarithm of its edge's strength, and mean deviation in rings; NaN where brightfield shows none.
    """

    found: Detection
    looks: np.ndarray


def _search(view: ReducedField, top: int, left: int, step: int) -> Iterator[_Particle]:
    """Particles whose centre lies in one tile of the reduced field."""
    from scipy.ndimage import find_objects

    (H, W), n = view.shape, view.fold
    first, start = max(0, top - TILE_OVERLAP_PX), max(0, left - TILE_OVERLAP_PX)
    window = (first, start, min(H, top + step + TILE_OVERLAP_PX) - first, min(W, left + step + TILE_OVERLAP_PX) - start)
    signal = view.signal(window)
    energy, bright = view.evidence(signal)
    pieces = [p for p in find_segments(energy) if p.area <= np.pi * MAX_WIDTH_PX**2]
    if signal.glow is not None:
        pieces = [part for piece in pieces for part in split_by_nuclei(piece, signal.glow, view.nuclear)]
    if not pieces:
        return
    owner, looks, rounds = assign_pixels(pieces, signal.deviation, bright, view.noise)

    for number, place in enumerate(find_objects(owner, len(pieces)), 1):
        if place is None:
            continue
        rows, columns = place
        own = owner[place] == number
        down, across = np.nonzero(own)
        # Whole numbers until the division, so that the same cell has the same centre in every tile.
        y = float((down.sum() + (rows.start + first) * len(down)) / len(down))
        x = float((across.sum() + (columns.start + start) * len(across)) / len(across))
        if not (top <= y < top + step and left <= x < left + step) or own.sum() < np.pi * MIN_RADIUS_PX**2:
            continue
        if signal.glow is not None and (signal.glow[place][own] > view.nuclear).mean() < MIN_NUCLEAR_SHARE:
            continue
        touching = _touching(owner, place, number)
        mask, up, over = _full_size(own, rows.start + first, columns.start + start, view)
        area = float(mask.sum())
        yield _Particle(
            Detection(
                x=(x + 0.5) * n - 0.5,
                y=(y + 0.5) * n - 0.5,
                area=area,
                diameter=2 * float(np.sqrt(area / np.pi)),
                roundness=float(rounds[number - 1]),
                touching=touching,
                on_edge=up == 0
                or over == 0
                or up + mask.shape[0] == view.full[0]
                or over + mask.shape[1] == view.full[1],
                top=up,
                left=over,
                mask=mask,
            ),
            looks[number - 1],
        )


def _touching(owner: np.ndarray, place: tuple[slice, slice], number: int) -> float:
    """Share of a particle's outline that has another one within 3 px."""
    from scipy.ndimage import binary_dilation, binary_erosion

    around = tuple(slice(max(0, side.start - 4), side.stop + 4) for side in place)
    own = owner[around] == number
    outline = own & ~binary_erosion(own)
    others = binary_dilation((owner[around] > 0) & ~own, iterations=3)
    return float(others[outline].mean())


def _full_size(own: np.ndarray, top: int, left: int, view: ReducedField) -> tuple[np.ndarray, int, int]:
    """A mask in px of the field, cut to its box, with the box's first row and column."""
    from scipy.ndimage import zoom

    n = view.fold
    mask = own
    if n > 1:
        mask = zoom(np.pad(own, 1).astype(np.float32), n, order=1, mode="nearest", grid_mode=True) >= 0.5
        top, left = (top - 1) * n, (left - 1) * n
        y, x = max(0, -top), max(0, -left)
        mask = mask[y : view.full[0] - top, x : view.full[1] - left]
        top, left = top + y, left + x
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return box.copy(), top + int(rows[0]), left + int(columns[0])


def _within_limits(
    particles: list[_Particle], least: float | None, most: float | None, *, brightfield: bool
) -> list[Detection]:
    """Leave out what is too small or too large for a cell of this field; in brightfield alone, red cells too."""
    if not particles:
        return []
    found = [particle.found for particle in particles]
    # What the border cuts is as wide as its longer side at least.
    widths = np.array([max(cell.diameter, *(cell.mask.shape if cell.on_edge else (0,))) for cell in found])
    typical = typical_width(widths)
    keep = (widths >= (0.5 * typical if least is None else least)) & (
        widths <= (2.2 * typical if most is None else most)
    )
    if least is None and brightfield:
        whole = keep & np.array([cell.roundness >= MIN_RED_CELL_ROUNDNESS and not cell.on_edge for cell in found])
        keep &= ~find_red_cells(widths, np.array([particle.looks for particle in particles]), whole)
    return [cell for cell, kept in zip(found, keep, strict=True) if kept]
