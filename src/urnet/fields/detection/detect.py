"""Detect the cells of a field, from brightfield alone or with a nuclear channel.

1. Reduce the field until a cell is about 30 px wide (`scale.py`).
2. Threshold its local energy (`energy.py`).
3. Split touching cells: divide connected parts at necks and between two nuclei (`split_touching.py`).
4. Trace the outline of each part, and assign each pixel to one cell (`outline.py`).
5. Drop what is too small or too large for a cell of this field, and red cells (`red_cells.py`).
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
"""Margin that is read around each tile, px of the reduced field. Cells in wider clumps may depend on the tile."""

MIN_RED_CELL_ROUNDNESS = 0.9
"""Smallest roundness of a particle that can be a red cell."""

MIN_NUCLEAR_SHARE = 0.1
"""Smallest share of a cell that its nucleus covers."""


@dataclass(frozen=True)
class Detection:
    """One detected cell of a field.

    Args:
        x: column of the centre, px.
        y: row of the centre, px.
        area: area of the mask, px².
        diameter: diameter of the circle of the same area, px.
        roundness: 4·pi·area/perimeter² of the outline, at most 1.
        touching: share of the outline that lies next to another particle.
        on_edge: whether the border of the field cuts the cell.
        top: row of the mask in the field.
        left: column of the mask in the field.
        mask: pixels of the cell, (h, w), booleans.
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
    """Detect the white cells of a field.

    Args:
        read: reads a region of the brightfield, raw counts of any type. Colours are averaged. Values that are not
            finite count as background.
        shape: height and width of the field, px.
        nuclei: reads the same region of the nuclear channel. With it, only particles with a nucleus are cells.
        least: smallest diameter, px. By default half the typical diameter; then red cells are left out as well, where
            they form a separate cluster of small, round particles of equal appearance.
        most: largest diameter, px; by default 2.2 times the typical diameter.
        roundness: smallest roundness, 0 to 1.
        border: whether to keep cells at the border of the field.
        tile: edge of the tiles in which the field is searched, px.

    Returns:
        The cells from top to bottom, then from left to right; none for a blank field or for noise.

    Raises:
        ImageError: the limits exclude everything, or `shape` or `tile` is not positive.
    """
    if min(*shape, tile) < 1 or not 0 <= roundness <= 1 or (least or 0) < 0 or (most is not None and most <= 0):
        raise ImageError(
            f"field {shape}, tile {tile}, least {least}, most {most}, roundness {roundness}; sizes must be positive, "
            "and roundness must be 0 to 1",
            code="fields.setting_invalid",
        )
    if least is not None and most is not None and least > most:
        raise ImageError(
            f"cells of at least {least} px and at most {most} px: no cell can be both; swap the limits",
            code="fields.setting_invalid",
        )
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
            if max(p.detection.mask.shape) <= max(MAX_WIDTH_SHARE * min(shape), view.fold * MIN_WIDTH_PX)
        ]
    cells = _within_limits(particles, least, most, brightfield=nuclei is None)
    cells = [cell for cell in cells if cell.roundness >= roundness and (border or not cell.on_edge)]
    return sorted(cells, key=lambda cell: (cell.y, cell.x))


@dataclass(frozen=True)
class _Particle:
    """A particle, before the sizes of cells in this field are known.

    Args:
        detection: the particle, px of the field.
        appearance: logarithm of the strength of its edge, and mean deviation in rings; NaN where brightfield does not
            show the particle.
    """

    detection: Detection
    appearance: np.ndarray


def _search(view: ReducedField, top: int, left: int, step: int) -> Iterator[_Particle]:
    """Find the particles whose centre lies in one tile of the reduced field."""
    from scipy.ndimage import find_objects

    (H, W), n = view.shape, view.fold
    first, start = max(0, top - TILE_OVERLAP_PX), max(0, left - TILE_OVERLAP_PX)
    window = (first, start, min(H, top + step + TILE_OVERLAP_PX) - first, min(W, left + step + TILE_OVERLAP_PX) - start)
    signal = view.signal(window)
    energy, bright = view.evidence(signal)
    segments = [p for p in find_segments(energy) if p.area <= np.pi * MAX_WIDTH_PX**2]
    if signal.nuclei is not None:
        segments = [
            part for segment in segments for part in split_by_nuclei(segment, signal.nuclei, view.nuclear_threshold)
        ]
    if not segments:
        return
    owner, appearance, roundness = assign_pixels(segments, signal.deviation, bright, view.noise)

    for number, place in enumerate(find_objects(owner, len(segments)), 1):
        if place is None:
            continue
        rows, columns = place
        own = owner[place] == number
        down, across = np.nonzero(own)
        # Integers until the division, so that a cell has the same centre in every tile.
        y = float((down.sum() + (rows.start + first) * len(down)) / len(down))
        x = float((across.sum() + (columns.start + start) * len(across)) / len(across))
        if not (top <= y < top + step and left <= x < left + step) or own.sum() < np.pi * MIN_RADIUS_PX**2:
            continue
        if (
            signal.nuclei is not None
            and (signal.nuclei[place][own] > view.nuclear_threshold).mean() < MIN_NUCLEAR_SHARE
        ):
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
                roundness=float(roundness[number - 1]),
                touching=touching,
                on_edge=up == 0
                or over == 0
                or up + mask.shape[0] == view.full[0]
                or over + mask.shape[1] == view.full[1],
                top=up,
                left=over,
                mask=mask,
            ),
            appearance[number - 1],
        )


def _touching(owner: np.ndarray, place: tuple[slice, slice], number: int) -> float:
    """Return the share of a particle's outline that has another particle within 3 px."""
    from scipy.ndimage import binary_dilation, binary_erosion

    around = tuple(slice(max(0, side.start - 4), side.stop + 4) for side in place)
    own = owner[around] == number
    outline = own & ~binary_erosion(own)
    others = binary_dilation((owner[around] > 0) & ~own, iterations=3)
    return float(others[outline].mean())


def _full_size(own: np.ndarray, top: int, left: int, view: ReducedField) -> tuple[np.ndarray, int, int]:
    """Enlarge a mask to px of the field and cut it to its box; return the mask, and the row and column of the box."""
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
    """Drop particles that are too small or too large for cells of this field; in brightfield alone, red cells too."""
    if not particles:
        return []
    detections = [particle.detection for particle in particles]
    # A particle that the border cuts is at least as wide as the longer side of its box.
    widths = np.array([max(cell.diameter, *(cell.mask.shape if cell.on_edge else (0,))) for cell in detections])
    typical = typical_width(widths)
    keep = (widths >= (0.5 * typical if least is None else least)) & (
        widths <= (2.2 * typical if most is None else most)
    )
    if least is None and brightfield:
        whole = keep & np.array([cell.roundness >= MIN_RED_CELL_ROUNDNESS and not cell.on_edge for cell in detections])
        keep &= ~find_red_cells(widths, np.array([particle.appearance for particle in particles]), whole)
    return [cell for cell, inside in zip(detections, keep, strict=True) if inside]
