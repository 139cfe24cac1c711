"""Where the cells of a field lie, from brightfield alone or with a nuclear channel.

Cells without stain are neither darker nor brighter than their surroundings, but less even. So what is thresholded is
the local energy of the brightness about the background: edges, rings, granules and shading all raise it, ramps do not.
Clumps are divided where their distance transform has a neck; each cell's outline is then traced (`outline`) and cells
that claim the same pixel share it by their outlines. Sizes are taken in a picture reduced so that a cell is about
`WORKING` px wide, found by trying.

Thresholds and size limits are the field's own: noise from its quiet parts, the least size from its typical cell.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from urnet.errors import ImageError
from urnet.fields.outline import ANGLES, outlines
from urnet.fields.red_cells import red_cells

Read = Callable[[int, int, int, int], np.ndarray]
"""Gives the pixels of (top, left, height, width) of a field: (h, w) or (h, w, 3)."""

WORKING = 30
"""Width of a typical cell in the picture that is searched, px, as far as reducing by whole numbers gets there."""

BLOCK = 8
"""Edge of the blocks whose medians give the background, px."""

QUIET = 20
"""Percentile of the energy that is taken for the noise's: four fifths of a field may be cells."""

RISE = 7.0
"""Threshold of the energy, in that of the quiet parts; of white noise, 0.5 % lies above."""

STRONG = 2.5
"""Least mean energy of a cell, in thresholds."""

THIN = 3.5
"""Radius of the disc that fits everywhere into a cell, px: thinner parts are threads, seams and noise."""

MARGIN, NECK = 5.0, 0.95
"""What the energy adds about a cell, px, and how narrow (as a share of the smaller part) a waist must be to divide."""

HALO = 4
"""What smoothing adds to the width of a piece, px."""

SMALLEST, LARGEST = 16, 60
"""Widths of cells in the picture that is searched, px."""

WIDEST = 0.7
"""Greatest width of a cell, in the field's shorter edge; what is wider is uneven light."""

OVERLAP = 128
"""What is read about each tile, in px of the picture that is searched; cells in wider clumps may depend on the tile."""

WINDOW, WINDOWS = 640, 3
"""Edge of the windows from which noise and scale are learned, px, and how many of them down and across at most."""

RINGS = 4
"""Rings from a particle's middle to its outline in which its shading is compared with others'."""

ROUND = 0.9
"""Least roundness of a particle that may be told to be a red cell."""

LONG, VALLEY = 1.2, 0.6
"""Least ratio of a piece's axes, and greatest nuclear brightness between its halves as a share of theirs, that make it
two cells."""

NUCLEAR = 0.1
"""Least share of a cell that its nucleus covers."""


@dataclass(frozen=True)
class Found:
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
    read: Read,
    shape: tuple[int, int],
    *,
    nuclei: Read | None = None,
    least: float | None = None,
    most: float | None = None,
    roundness: float = 0.0,
    border: bool = True,
    tile: int = 2048,
) -> list[Found]:
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
    view = _learn(read, nuclei, shape, least, most)
    if view is None:
        return []
    step = max(1, round(tile / (BLOCK * view.fold))) * BLOCK
    height, width = view.shape
    particles = [
        particle
        for top in range(0, height, step)
        for left in range(0, width, step)
        for particle in _search(view, top, left, step)
    ]
    if most is None:
        particles = [p for p in particles if max(p.found.mask.shape) <= max(WIDEST * min(shape), view.fold * SMALLEST)]
    cells = _within_limits(particles, least, most, brightfield=nuclei is None)
    cells = [cell for cell in cells if cell.roundness >= roundness and (border or not cell.on_edge)]
    return sorted(cells, key=lambda cell: (cell.y, cell.x))


@dataclass(frozen=True)
class _View:
    """A field reduced by a whole number, and the noise in it.

    Args:
        read: the brightfield.
        nuclei: the nuclear channel.
        full: height and width of the field, px.
        fold: by how much it is reduced.
        threshold: of the energy.
        noise: standard deviation of the smoothed brightness in the background.
        nuclear: threshold of the nuclear channel's brightness above its background.
    """

    read: Read
    nuclei: Read | None
    full: tuple[int, int]
    fold: int = 1
    threshold: float = 0.0
    noise: float = 0.0
    nuclear: float = np.inf

    @property
    def shape(self) -> tuple[int, int]:
        return -(-self.full[0] // self.fold), -(-self.full[1] // self.fold)

    def region(self, read: Read, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Brightness of a region of the reduced field, (height, width), float32; NaN where there are no numbers."""
        grey = np.empty((height, width), np.float32)
        rows = max(1, 1024 // self.fold)  # a strip at a time, so that a large fold needs no more memory
        for start in range(0, height, rows):
            count = min(rows, height - start)
            grey[start : start + count] = self._strip(read, top + start, left, count, width)
        return grey

    def _strip(self, read: Read, top: int, left: int, height: int, width: int) -> np.ndarray:
        (H, W), n = self.full, self.fold
        down, right = min((top + height) * n, H) - top * n, min((left + width) * n, W) - left * n
        pixels = np.asarray(read(top * n, left * n, down, right))
        grey = pixels.mean(axis=2, dtype=np.float32) if pixels.ndim == 3 else pixels.astype(np.float32)
        if not np.isfinite(grey).all():
            grey[~np.isfinite(grey)] = np.nan
        if n == 1:
            return grey
        grey = np.pad(grey, ((0, height * n - down), (0, width * n - right)), mode="edge")
        return grey.reshape(height, n, width, n).mean(axis=(1, 3))


def _learn(
    read: Read, nuclei: Read | None, full: tuple[int, int], least: float | None, most: float | None
) -> _View | None:
    """The reduction at which most of a field's windows is cells, and the noise there; None where nothing is found."""
    view, best, size = _View(read, nuclei, full), 0.0, 0.0
    fold = 1
    while min(full) / fold >= SMALLEST:
        tried = _measured(replace(view, fold=fold))
        if tried is not None:
            widths = np.array([2 * np.sqrt(piece.area / np.pi) for piece in _sampled(tried)])
            low = max(SMALLEST, 0 if least is None else least / fold)
            high = min(LARGEST, WIDEST * min(tried.shape), np.inf if most is None else most / fold)
            widths = widths[(widths >= low) & (widths <= high)]
            covered = ((widths - HALO) ** 2).sum() / sum(h * w for *_, h, w in _windows(tried.shape))
            covered *= len(widths) / (len(widths) + 3)  # one large shadow is not a field of cells
            if covered < best:  # once cells are smaller than they can be seen, all that follows is uneven light
                break
            if covered > 1.05 * best:
                best, size = covered, _typical(widths) * fold
        fold *= 2
    return _measured(replace(view, fold=max(1, round(size / WORKING)))) if best else None


def _measured(view: _View) -> _View | None:
    """A view with its thresholds; None where it holds nothing."""
    energies, deviations, glows = [], [], []
    for window in _windows(view.shape):
        deviation = _deviation(view.region(view.read, *window))
        deviations.append(deviation.ravel())
        energies.append(_energy(deviation).ravel())
        if view.nuclei is not None:
            glows.append(_deviation(view.region(view.nuclei, *window)).ravel())
    energy, deviation = np.concatenate(energies), np.concatenate(deviations)
    threshold = float(RISE * np.percentile(energy, QUIET))
    # Where the background is even to the last count, a hundredth of the strongest trace is none.
    threshold = max(threshold, 1e-4 * float(np.percentile(energy, 99.9)))
    if not threshold > 0:
        threshold = 1e-4 * float(energy.max())
    nuclear = np.inf
    if glows:
        glow = np.concatenate(glows)
        sure = 6 * 1.4826 * float(np.median(np.abs(glow - np.median(glow))))
        bright = glow[glow > max(sure, 0.02 * float(glow.max()))]
        nuclear = max(sure, 0.25 * float(np.percentile(bright, 90))) if len(bright) else np.inf
    if not threshold > 0:
        if not np.isfinite(nuclear):
            return None
        threshold = 1.0
    quiet = deviation[energy <= threshold]
    return replace(view, threshold=threshold, noise=1.4826 * float(np.median(np.abs(quiet))), nuclear=nuclear)


def _windows(shape: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Windows evenly spread over a field (the whole of a small one): top, left, height and width."""
    starts = []
    for side in shape:
        count = min(WINDOWS, -(-side // WINDOW))
        last = max(0, side - WINDOW) // BLOCK * BLOCK
        starts.append(sorted({int(start) // BLOCK * BLOCK for start in np.linspace(0, last, count)}))
    return [
        (top, left, min(WINDOW, shape[0] - top), min(WINDOW, shape[1] - left))
        for top in starts[0]
        for left in starts[1]
    ]


def _sampled(view: _View) -> Iterator["_Piece"]:
    """Pieces of a view's windows that are as compact as cells and lie within; uneven light lies across the border."""
    for window in _windows(view.shape):
        energy = _both_energies(view, *window)[0]
        for piece in _pieces(energy):
            h, w = piece.mask.shape
            within = min(piece.top, piece.left, energy.shape[0] - piece.top - h, energy.shape[1] - piece.left - w) > 0
            if within and max(h, w) < 1.6 * min(h, w) and piece.area > 0.5 * h * w:  # a disc fills 0.785 of its square
                yield piece


def _background(grey: np.ndarray) -> np.ndarray:
    """Level about each pixel: the median of medians over some three cells, so that cells do not raise it."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter, median_filter, zoom

    H, W = grey.shape
    h, w = -(-H // BLOCK), -(-W // BLOCK)
    padded = np.pad(grey, ((0, h * BLOCK - H), (0, w * BLOCK - W)), mode="edge")
    blocks = padded.reshape(h, BLOCK, w, BLOCK).swapaxes(1, 2).reshape(h, w, -1)
    if np.isnan(grey).any():
        empty = np.isnan(blocks).all(axis=2)
        if empty.all():
            return np.zeros_like(grey)
        blocks[empty] = 0
        level = np.nanmedian(blocks, axis=2)
        nearest = distance_transform_edt(empty, return_distances=False, return_indices=True)
        level = level[tuple(nearest)]
    else:
        level = np.median(blocks, axis=2)
    level = gaussian_filter(median_filter(level, 9, mode="nearest"), 1.5, mode="nearest")
    return zoom(level, BLOCK, order=1, mode="nearest", grid_mode=True)[:H, :W]


def _deviation(grey: np.ndarray) -> np.ndarray:
    """Smoothed brightness above or below the background; 0 where there are no numbers."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(np.nan_to_num(grey - _background(grey), nan=0.0), 1.0)


def _energy(deviation: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(deviation * deviation, 1.5)


def _both_energies(view: _View, *window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Energy in thresholds, that of the brightfield alone, its deviation, and the nuclear channel's (or None).

    A nucleus counts up to a little more than makes a cell, so that a cell seen in brightfield keeps its own shape.
    """
    deviation = _deviation(view.region(view.read, *window))
    energy = bright = _energy(deviation) / view.threshold
    glow = None
    if view.nuclei is not None:
        glow = _deviation(view.region(view.nuclei, *window))
        energy = np.maximum(energy, np.clip(glow / view.nuclear, 0, 1.2 * STRONG))
    return energy, bright, deviation, glow


@dataclass(frozen=True)
class _Piece:
    """A connected part of the energy, or what a neck divides from it."""

    top: int
    left: int
    mask: np.ndarray
    area: float


def _pieces(energy: np.ndarray) -> Iterator[_Piece]:
    """Single cells as far as necks tell them apart, in an energy whose threshold is 1."""
    from scipy.ndimage import binary_fill_holes, distance_transform_edt, find_objects, label

    labels, _ = label(energy > 1)
    for number, (rows, columns) in enumerate(find_objects(labels), 1):
        if min(rows.stop - rows.start, columns.stop - columns.start) < 2 * THIN:
            continue
        own = labels[rows, columns] == number
        inside = energy[rows, columns]
        # An outline is half-way (of a logarithm) from the threshold up to the cell's own energy.
        own &= inside > np.sqrt(np.percentile(inside[own], 75))
        own = np.pad(binary_fill_holes(own), 5)
        core = distance_transform_edt(own) > THIN
        own &= distance_transform_edt(~core) <= THIN
        parts = label(own[5:-5, 5:-5])[0]
        for part, (down, across) in enumerate(find_objects(parts), 1):
            divided, cells = _divided(parts[down, across] == part)
            for cell, (y, x) in enumerate(find_objects(divided, cells), 1):
                mask = divided[y, x] == cell
                area = float(mask.sum())
                top, left = rows.start + down.start, columns.start + across.start
                if area >= np.pi * THIN**2 and inside[down, across][y, x][mask].mean() >= STRONG:
                    yield _Piece(top + y.start, left + x.start, mask, area)


def _divided(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the parts of a clump, (H, W) from 1, and count them."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter, label
    from skimage.morphology import reconstruction
    from skimage.segmentation import watershed

    mask = np.pad(mask, 1)
    depth = gaussian_filter(distance_transform_edt(mask), 1) * mask
    # A part of its own is one whose depth falls to `NECK` of its own greatest before it rises to a greater one.
    logarithm = np.log(np.maximum(depth - MARGIN, 0.5))
    fall = -np.log(NECK)
    seeds, count = label(
        (logarithm - reconstruction(logarithm - fall, logarithm) >= 0.999 * fall) & (depth > MARGIN + 1)
    )
    if count <= 1:
        return mask[1:-1, 1:-1].astype(np.int32), 1
    return watershed(-depth, seeds, mask=mask)[1:-1, 1:-1], count


def _with_one_nucleus(piece: _Piece, glow: np.ndarray, nuclear: float) -> list[_Piece]:
    """The piece, or its halves: two cells that overlap make a long piece with a nucleus on either side."""
    from scipy.ndimage import gaussian_filter1d

    places = np.argwhere(piece.mask)
    offset = places - places.mean(axis=0)
    spread, axes = np.linalg.eigh(offset.T @ offset / len(places))
    if spread[1] < LONG**2 * spread[0]:
        return [piece]
    along = offset @ axes[:, 1]
    bright = np.maximum(glow[piece.top + places[:, 0], piece.left + places[:, 1]] - nuclear, 0)
    edges = np.arange(np.floor(along.min()), np.ceil(along.max()) + 1)
    profile = gaussian_filter1d(np.histogram(along, edges, weights=bright)[0], 1.5, mode="constant")
    third = len(profile) // 3
    gap = third + int(profile[third : len(profile) - third].argmin()) if third else 0
    if not third or profile[gap] > VALLEY * min(profile[:gap].max(), profile[gap:].max()):
        return [piece]
    halves = []
    for side in (along <= edges[gap] + 0.5, along > edges[gap] + 0.5):
        top, left = places[side].min(axis=0)
        mask = np.zeros(places[side].max(axis=0) - (top, left) + 1, dtype=bool)
        mask[tuple((places[side] - (top, left)).T)] = True
        halves.append(_Piece(piece.top + int(top), piece.left + int(left), mask, float(mask.sum())))
    return halves


@dataclass(frozen=True)
class _Particle:
    """What was found, before it is known which sizes are cells'.

    Args:
        found: the particle in px of the field.
        looks: logarithm of its edge's strength, and mean deviation in `RINGS` rings; NaN where brightfield shows none.
    """

    found: Found
    looks: np.ndarray


def _search(view: _View, top: int, left: int, step: int) -> Iterator[_Particle]:
    """Particles whose centre lies in one tile of the reduced field."""
    from scipy.ndimage import find_objects

    (H, W), n = view.shape, view.fold
    first, start = max(0, top - OVERLAP), max(0, left - OVERLAP)
    window = (first, start, min(H, top + step + OVERLAP) - first, min(W, left + step + OVERLAP) - start)
    energy, bright, deviation, glow = _both_energies(view, *window)
    pieces = [p for p in _pieces(energy) if p.area <= np.pi * LARGEST**2]
    if glow is not None:
        pieces = [part for piece in pieces for part in _with_one_nucleus(piece, glow, view.nuclear)]
    if not pieces:
        return
    owner, looks, rounds = _outlined(pieces, deviation, bright, view.noise)

    for number, place in enumerate(find_objects(owner, len(pieces)), 1):
        if place is None:
            continue
        rows, columns = place
        own = owner[place] == number
        down, across = np.nonzero(own)
        # Whole numbers until the division, so that the same cell has the same centre in every tile.
        y = float((down.sum() + (rows.start + first) * len(down)) / len(down))
        x = float((across.sum() + (columns.start + start) * len(across)) / len(across))
        if not (top <= y < top + step and left <= x < left + step) or own.sum() < np.pi * THIN**2:
            continue
        if glow is not None and (glow[place][own] > view.nuclear).mean() < NUCLEAR:
            continue
        touching = _touching(owner, place, number)
        mask, up, over = _full_size(own, rows.start + first, columns.start + start, view)
        area = float(mask.sum())
        yield _Particle(
            Found(
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


def _outlined(
    pieces: list[_Piece], deviation: np.ndarray, bright: np.ndarray, noise: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trace every piece's outline: owner of each pixel (H, W), looks (N, 1 + RINGS) and roundness (N,)."""
    from scipy.ndimage import gaussian_filter1d

    owner = np.zeros(deviation.shape, np.int32)
    middles, seen = [], []
    for number, piece in enumerate(pieces, 1):
        box = (
            slice(piece.top, piece.top + piece.mask.shape[0]),
            slice(piece.left, piece.left + piece.mask.shape[1]),
        )
        owner[box][piece.mask] = number
        middles.append(np.argwhere(piece.mask).mean(axis=0) + np.array([piece.top, piece.left]))
        seen.append(bright[box][piece.mask].mean() >= STRONG)
    guesses = np.sqrt([piece.area / np.pi for piece in pieces])
    traced, strength = outlines(deviation, owner, np.array(middles), guesses, noise)
    traced = gaussian_filter1d(traced, 1.0, axis=1, mode="wrap")  # (N, ANGLES)

    nearest = np.full(deviation.shape, 1.0, np.float32)  # distance to the owner's middle as a share of its outline's
    owner = np.zeros_like(owner)
    angles = np.arange(ANGLES + 1) * 2 * np.pi / ANGLES
    H, W = owner.shape
    for number, (piece, (y, x), ring) in enumerate(zip(pieces, middles, traced, strict=True), 1):
        if seen[number - 1]:
            reach = int(np.ceil(ring.max())) + 1
            top, left = max(0, int(y) - reach), max(0, int(x) - reach)
            box = (slice(top, min(H, int(y) + reach + 2)), slice(left, min(W, int(x) + reach + 2)))
            rows, columns = np.ogrid[box]
            limit = np.interp(np.arctan2(rows - y, columns - x) % (2 * np.pi), angles, np.append(ring, ring[0]))
            share = np.hypot(rows - y, columns - x) / limit
        else:
            box = (
                slice(piece.top, piece.top + piece.mask.shape[0]),
                slice(piece.left, piece.left + piece.mask.shape[1]),
            )
            share = np.where(piece.mask, 0.5, 2.0)
        closer = share <= nearest[box]
        nearest[box][closer] = share[closer]
        owner[box][closer] = number

    looks = np.full((len(pieces) + 1, 1 + RINGS), np.nan)
    looks[1:, 0] = np.log(np.maximum(strength, 1e-30))
    ring = np.minimum((nearest * RINGS).astype(np.int64), RINGS - 1)
    counts, sums = (
        np.bincount((owner * RINGS + ring).ravel(), weights, looks[:, 1:].size).reshape(-1, RINGS)
        for weights in (None, deviation.ravel())
    )
    looks[:, 1:] = np.divide(sums, counts, out=looks[:, 1:].copy(), where=counts > 0)
    looks[1:][~np.array(seen)] = np.nan
    turned = np.roll(traced, -1, axis=1)
    area = 0.5 * np.sin(2 * np.pi / ANGLES) * (traced * turned).sum(axis=1)
    sides = np.sqrt(traced**2 + turned**2 - 2 * traced * turned * np.cos(2 * np.pi / ANGLES))
    return owner, looks[1:], np.minimum(1, 4 * np.pi * area / sides.sum(axis=1) ** 2)


def _touching(owner: np.ndarray, place: tuple[slice, slice], number: int) -> float:
    """Share of a particle's outline that has another one within 3 px."""
    from scipy.ndimage import binary_dilation, binary_erosion

    around = tuple(slice(max(0, side.start - 4), side.stop + 4) for side in place)
    own = owner[around] == number
    outline = own & ~binary_erosion(own)
    others = binary_dilation((owner[around] > 0) & ~own, iterations=3)
    return float(others[outline].mean())


def _full_size(own: np.ndarray, top: int, left: int, view: _View) -> tuple[np.ndarray, int, int]:
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


def _typical(widths: np.ndarray) -> float:
    """Median width, every particle counting by its area, so that debris does not."""
    order = np.sort(widths)
    return float(order[np.searchsorted(np.cumsum(order**2), 0.5 * (order**2).sum())])


def _within_limits(
    particles: list[_Particle], least: float | None, most: float | None, *, brightfield: bool
) -> list[Found]:
    """Leave out what is too small or too large for a cell of this field; in brightfield alone, red cells too."""
    if not particles:
        return []
    found = [particle.found for particle in particles]
    # What the border cuts is as wide as its longer side at least.
    widths = np.array([max(cell.diameter, *(cell.mask.shape if cell.on_edge else (0,))) for cell in found])
    typical = _typical(widths)
    keep = (widths >= (0.5 * typical if least is None else least)) & (
        widths <= (2.2 * typical if most is None else most)
    )
    if least is None and brightfield:
        whole = keep & np.array([cell.roundness >= ROUND and not cell.on_edge for cell in found])
        keep &= ~red_cells(widths, np.array([particle.looks for particle in particles]), whole)
    return [cell for cell, kept in zip(found, keep, strict=True) if kept]
