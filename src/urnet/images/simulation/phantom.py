"""Phantom white blood cells without stain, drawn from scratch and imaged in brightfield, with other particles.

Shapes and sizes follow the textbook:

- granulocytes of 12 µm with a lobed nucleus and granules;
- monocytes of 14 to 15 µm with a kidney-shaped nucleus and fine texture;
- lymphocytes of 9 to 10 µm with a round nucleus that almost fills them;
- biconcave red cells (profile: Evans and Fung, Microvasc. Res. 4, 335, 1972), platelets and fragments.

The classes overlap on purpose. A cell's shape is drawn in micrometres, its image in pixels: a crop of any size covers
`CROP_UM` micrometres. Every cell, donor and field has its own random stream, so cell 7 of donor 2 does not depend on
the number of cells.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter

from urnet.errors import ImageError
from urnet.images.simulation.optics import REFERENCE_PX, Imaging, draw_imaging, simulate_brightfield

CLASS_FREQUENCY = {"granulocyte": 0.60, "lymphocyte": 0.32, "monocyte": 0.08}
"""Shares of the classes in the blood of a healthy adult."""

CROP_UM = 20.0
"""Edge of a crop, in micrometres."""

THICKNESS = 2.5
"""Phase of a round cell in suspension. A cell spread on a slide has 1."""

WHITE_PHASE = 1.25 * THICKNESS
"""Phase that is white in `clean`."""

IMAGING_SPREAD = 0.12
"""Standard deviation of the imaging conditions around the donor's, as a share of their ranges."""

_STREAMS = (*CLASS_FREQUENCY, "donor", "field")


@dataclass(frozen=True)
class PhantomDonor:
    """Common properties of the cells and the slide of one donor.

    Attributes:
        size: factor of every cell's radius.
        texture: factor of granules and cytoplasm texture.
        nucleus: factor of the phase of nuclei.
        imaging: conditions around which the conditions of each image vary.
    """

    size: float
    texture: float
    nucleus: float
    imaging: Imaging


@dataclass(frozen=True)
class PhantomCrop:
    """One phantom cell in the middle of a crop. All images are (size, size), uint8.

    Attributes:
        image: the stain-free brightfield image.
        clean: its phase.
        nuclei: the nuclear fluorescence.
    """

    image: np.ndarray
    clean: np.ndarray
    nuclei: np.ndarray


@dataclass(frozen=True)
class ParticlePatch:
    """One particle, centred in square arrays with an odd edge.

    Attributes:
        phase: phase of the particle, (n, n), float32.
        density: optical density of the particle, (n, n), float32.
        nucleus: fluorescence of its nucleus, (n, n), float32, about 1 in a nucleus and 0 elsewhere.
        radius: mean radius of the outline, in pixels.
    """

    phase: np.ndarray
    density: np.ndarray
    nucleus: np.ndarray
    radius: float


def open_random_stream(seed: int, donor: int, kind: str, index: int = 0) -> np.random.Generator:
    """Open the random stream of a cell (`kind` is its class), a donor or a field."""
    return np.random.default_rng((seed, donor, 1 + _STREAMS.index(kind), index))


def draw_donor(seed: int, donor: int) -> PhantomDonor:
    """Draw the properties of one donor.

    Args:
        seed: seed of the whole data set, at least 0.
        donor: number of the donor, from 0.
    """
    rng = open_random_stream(seed, donor, "donor")
    # Never in focus, where transparent cells are invisible. The sign alternates, so that few donors have both signs.
    defocus = float(rng.uniform(1.2, 3)) * (-1) ** donor
    return PhantomDonor(
        size=rng.normal(1, 0.02),
        texture=rng.lognormal(0, 0.2),
        nucleus=rng.lognormal(0, 0.2),
        imaging=replace(draw_imaging(rng), defocus=defocus),
    )


def draw_crop(label: str, seed: int, donor: int, index: int, size: int = 48) -> PhantomCrop:
    """Draw the crop of one cell.

    Args:
        label: a class of `CLASS_FREQUENCY`.
        seed: seed of the whole data set, at least 0.
        donor: number of the donor, from 0.
        index: number of the cell in its class and donor, from 0.
        size: edge in pixels. A crop of any size covers `CROP_UM` micrometres.
    """
    rng = open_random_stream(seed, donor, label, index)
    traits = draw_donor(seed, donor)
    imaging = draw_imaging(rng, around=traits.imaging, spread=IMAGING_SPREAD)
    canvas = Scene(size, size)
    middle = rng.normal(size / 2, 0.02 * size, 2).astype(int)
    if rng.random() < 0.25:
        angle = rng.uniform(0, 2 * np.pi)
        row, column = (size / 2 + 0.55 * size * np.array([np.sin(angle), np.cos(angle)])).astype(int)
        canvas.add(paint_other_particle(rng, CROP_UM / size), row, column)
    canvas.add(paint_white_cell(label, traits, rng, CROP_UM / size), *middle)
    image = simulate_brightfield(canvas.phase, canvas.density, imaging, rng)
    nuclei = simulate_fluorescence(canvas.nuclei, size, rng)
    return PhantomCrop(
        *(np.rint(255 * np.clip(a, 0, 1)).astype(np.uint8) for a in (image, canvas.phase / WHITE_PHASE, nuclei))
    )


@dataclass(frozen=True)
class PlacedCell:
    """Position of a white cell in a phantom field.

    Attributes:
        x: column of its centre, in pixels.
        y: row of its centre, in pixels.
        radius: mean radius of its outline, in pixels.
        label: its class.
        contact: contact with the nearest white cell: `single`, `touching` or `overlapping`.
    """

    x: int
    y: int
    radius: float
    label: str
    contact: str


@dataclass(frozen=True)
class PhantomField:
    """A phantom field of view.

    Attributes:
        brightfield: (H, W), uint16 of the 12-bit range, an empty area at about 2,000.
        nuclei: nuclear fluorescence, (H, W), uint16 of the 12-bit range.
        cells: its white cells.
    """

    brightfield: np.ndarray
    nuclei: np.ndarray
    cells: tuple[PlacedCell, ...]


def draw_field(
    seed: int, donor: int, index: int, *, shape: tuple[int, int] = (1024, 1024), cells: int = 60, crop: int = 48
) -> PhantomField:
    """Draw a field of white cells, red cells and debris. About a fifth of the white cells touch or overlap in pairs.

    Args:
        seed: seed of the whole data set, at least 0.
        donor: number of the donor, from 0.
        index: number of the field of its donor, from 0.
        shape: height and width, in pixels.
        cells: number of white cells, with classes drawn by `CLASS_FREQUENCY`. All are completely inside.
        crop: edge of a crop of `CROP_UM` micrometres at this magnification, in pixels.

    Raises:
        ImageError: the cells do not fit into the field (`images.field_overfull`).
    """
    rng = open_random_stream(seed, donor, "field", index)
    traits = draw_donor(seed, donor)
    imaging = draw_imaging(rng, around=traits.imaging, spread=IMAGING_SPREAD)
    labels = [str(label) for label in rng.choice(list(CLASS_FREQUENCY), cells, p=list(CLASS_FREQUENCY.values()))]
    patches = [paint_white_cell(label, traits, rng, CROP_UM / crop) for label in labels]
    places = _place_cells([patch.radius for patch in patches], shape, 0.1 * crop, rng)
    canvas = Scene(*shape)
    for patch, (row, column, _) in zip(patches, places, strict=True):
        canvas.add(patch, row, column)
    taken = np.array([(*place[:2], patch.radius) for place, patch in zip(places, patches, strict=True)]).reshape(-1, 3)
    for _ in range(cells):
        particle = paint_other_particle(rng, CROP_UM / crop)
        row, column = (int(rng.integers(side)) for side in shape)
        # A particle can touch a white cell, but not cover it.
        if np.all(np.hypot(taken[:, 0] - row, taken[:, 1] - column) > taken[:, 2] + 0.9 * particle.radius):
            canvas.add(particle, row, column)
    images = (
        simulate_brightfield(canvas.phase, canvas.density, imaging, rng, crop),
        np.clip(simulate_fluorescence(canvas.nuclei, crop, rng), 0, 1),
    )
    placed = (
        PlacedCell(column, row, patch.radius, label, contact)
        for label, patch, (row, column, contact) in zip(labels, patches, places, strict=True)
    )
    brightfield, nuclei = (np.rint(4095 * image).astype(np.uint16) for image in images)
    return PhantomField(brightfield, nuclei, tuple(placed))


def _place_cells(
    radii: list[float], shape: tuple[int, int], gap: float, rng: np.random.Generator
) -> list[tuple[int, int, str]]:
    """Place discs, alone or in pairs, at least `gap` px apart. Return row, column and contact of each disc."""
    places: list[tuple[int, int, str]] = []
    while len(places) < len(radii):
        first = len(places)
        contact = str(rng.choice(["single", "touching", "overlapping"], p=[0.88, 0.06, 0.06]))
        group = radii[first : first + 1 + (contact != "single")]
        if len(group) == 1:
            contact = "single"
        reach = {"single": 0.0, "touching": 1.0, "overlapping": rng.uniform(0.65, 0.85)}[contact] * sum(group)
        near = np.array([place[:2] for place in places]).reshape(-1, 2)
        for _ in range(1000):
            spot, angle = rng.uniform((0, 0), shape), rng.uniform(0, 2 * np.pi)
            spots = np.rint([spot, spot + reach * np.array([np.sin(angle), np.cos(angle)])])[: len(group)]
            if all(
                np.all((at > 1.1 * radius) & (at < np.array(shape) - 1 - 1.1 * radius))
                and np.all(np.hypot(*(near - at).T) > np.array(radii[:first]) + radius + gap)
                for at, radius in zip(spots, group, strict=True)
            ):
                break
        else:
            raise ImageError(
                f"{len(radii)} white cells of about {2 * np.mean(radii):.0f} px do not fit into a field of "
                f"{shape[1]} x {shape[0]} px. Draw fewer cells or a larger field",
                code="images.field_overfull",
            )
        places += [(int(row), int(column), contact) for row, column in spots]
    return places


class Scene:
    """Sum of particles: their phase, density and nuclear fluorescence, each (height, width), float32."""

    def __init__(self, height: int, width: int):
        self.phase, self.density, self.nuclei = np.zeros((3, height, width), np.float32)

    def add(self, patch: ParticlePatch, row: int, column: int) -> None:
        """Add a particle centred on a pixel. Parts beyond the border are cut off."""
        half = patch.phase.shape[0] // 2
        top, left = row - half, column - half
        height, width = self.phase.shape
        rows = slice(max(top, 0), min(top + 2 * half + 1, height))
        columns = slice(max(left, 0), min(left + 2 * half + 1, width))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        inside = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
        self.phase[rows, columns] += patch.phase[inside]
        self.density[rows, columns] += patch.density[inside]
        self.nuclei[rows, columns] += patch.nucleus[inside]


def simulate_fluorescence(nuclei: np.ndarray, crop: int, rng: np.random.Generator) -> np.ndarray:
    """Simulate the fluorescence image of nuclei: point spread, background, shot noise and read-out noise.

    Args:
        nuclei: brightness of the nuclei, (H, W), about 1 in a nucleus.
        crop: edge of a single cell's crop, in pixels.
        rng: random generator for the noise.

    Returns:
        Brightness, (H, W), float32, mostly within [0, 1].
    """
    seen = 0.05 + 0.7 * gaussian_filter(nuclei, 2 * crop / REFERENCE_PX)
    return seen + np.sqrt(0.0015 * seen + 1e-4) * rng.standard_normal(seen.shape, dtype=np.float32)


def paint_white_cell(label: str, donor: PhantomDonor, rng: np.random.Generator, pixel: float) -> ParticlePatch:
    """Draw one white cell.

    Args:
        label: a class of `CLASS_FREQUENCY`.
        donor: its donor.
        rng: random stream of the cell.
        pixel: edge of a pixel, in micrometres.
    """
    mean, spread, minimum, maximum = _RADIUS_UM[label]
    radius = float(np.clip(rng.normal(mean, spread), minimum, maximum)) * donor.size
    wobble = 0.035 if label == "monocyte" else 0.02
    flatness = rng.uniform(2.2, 4.5)
    chain = _NUCLEUS[label](radius, rng)
    nuclear = rng.lognormal(np.log(0.11), 0.25) * donor.nucleus
    graininess = rng.lognormal(np.log(_TEXTURE_STRENGTH[label]), 0.35) * donor.texture
    granules = rng.poisson(_GRANULE_COUNT[label])

    grid = _ParticleGrid(radius, pixel, wobble, rng)
    body = np.sqrt(np.clip(1 - grid.rho**flatness, 0, 1))
    depth = _compute_depth(chain, grid, rng)  # micrometres inside the nucleus, negative outside
    nucleus = np.clip(0.5 + depth / 0.4, 0, 1) * np.clip((1 - grid.rho) * radius / 0.4, 0, 1)
    chromatin = _draw_texture(grid, 0.45, rng)
    cytoplasm = np.clip(body * 1.5, 0, 1) * (1 - nucleus)
    phase = 0.8 * body + nuclear * nucleus * (1 + 0.25 * chromatin)
    phase += cytoplasm * graininess * (_draw_texture(grid, 0.3, rng) + _draw_granules(grid, granules, 0.16, rng))
    density = 0.5 * body + 0.5 * nucleus
    # The stain binds to a fixed amount of DNA, so smaller nuclei are brighter.
    area = nucleus.sum() * grid.step**2
    glow = np.clip(45 / area, 0.6, 1.3) * nucleus * (1 + 0.12 * chromatin)
    return grid.patch(phase, density, glow)


def paint_other_particle(rng: np.random.Generator, pixel: float) -> ParticlePatch:
    """Draw a particle without a nucleus: a red cell, a platelet or a fragment.

    Args:
        rng: random generator.
        pixel: edge of a pixel, in micrometres.
    """
    if rng.random() < 0.55:
        grid = _ParticleGrid(rng.normal(3.7, 0.2), pixel, 0.015, rng)
        r2 = np.clip(grid.rho, 0, 1) ** 2
        height = np.sqrt(1 - r2) * (0.207 + 2.003 * r2 - 1.123 * r2**2) / 0.65
        return grid.patch(0.7 * height, 1.2 * height)
    radius, wobble, height = (
        (rng.uniform(0.7, 1.3), 0.04, 0.3) if rng.random() < 0.6 else (rng.uniform(1.2, 2.4), 0.12, 0.5)
    )
    grid = _ParticleGrid(radius, pixel, wobble, rng)
    body = np.sqrt(np.clip(1 - grid.rho**2, 0, 1)) * rng.uniform(0.6, 1.2) * height
    return grid.patch(body, 0.5 * body)


_RADIUS_UM = {  # micrometres: mean, standard deviation, minimum, maximum
    "granulocyte": (5.9, 0.4, 4.8, 7.0),
    "lymphocyte": (4.6, 0.5, 3.6, 6.2),
    "monocyte": (7.1, 0.62, 5.6, 8.4),
}
_TEXTURE_STRENGTH = {
    "granulocyte": 0.04,
    "lymphocyte": 0.015,
    "monocyte": 0.02,
}  # phase, standard deviation of the texture
_GRANULE_COUNT = {"granulocyte": 90, "lymphocyte": 4, "monocyte": 25}  # mean number


def _draw_lobed_nucleus(radius: float, rng: np.random.Generator) -> np.ndarray:
    """Draw two to five lobes on an arc, joined by bridges of random width, up to a band like that of a monocyte."""
    lobes = rng.choice([2, 3, 4, 5], p=[0.25, 0.45, 0.25, 0.05])
    lobe = rng.uniform(0.36, 0.44) * (2 / lobes) ** 0.7 * radius
    span = min(rng.uniform(0.75, 1.15) * (1.0 + 1.1 * lobes), 5.2)
    return _draw_arc(0.48 * radius, span, lobes, lobe, rng.uniform(0.1, 0.7) * lobe, rng)


def _draw_kidney_nucleus(radius: float, rng: np.random.Generator) -> np.ndarray:
    """Draw one thick arc, from a bean to a horseshoe."""
    thickness = rng.uniform(0.33, 0.44) * radius
    return _draw_arc(rng.uniform(0.28, 0.42) * radius, rng.uniform(1.4, 3.0), 1, thickness, 0.8 * thickness, rng)


def _draw_round_nucleus(radius: float, rng: np.random.Generator) -> np.ndarray:
    """Draw one disc, sometimes dented, in a rim of cytoplasm that is wider in large lymphocytes."""
    fill = np.clip(rng.normal(0.86 - 0.07 * max(radius - 4.5, 0), 0.05), 0.6, 0.92)
    dent = rng.uniform(0, 0.22) * radius
    return _draw_arc(dent, 1.6, 1, fill * radius - dent, fill * radius - dent, rng)


_NUCLEUS = {"granulocyte": _draw_lobed_nucleus, "lymphocyte": _draw_round_nucleus, "monocyte": _draw_kidney_nucleus}


def _draw_arc(arc: float, span: float, lobes: int, lobe: float, bridge: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a chain of circles along an arc around the cell's centre: x, y and radius in µm, (6·lobes + 1, 3)."""
    along = np.linspace(0, 1, 6 * lobes + 1)
    radii = bridge + (lobe - bridge) * np.sin(np.pi * lobes * along) ** 2
    angles = rng.uniform(0, 2 * np.pi) + span * (along - 0.5)
    reach = arc * (1 + 0.08 * rng.standard_normal(lobes).repeat(6)) if lobes > 1 else np.full(6, arc)
    reach = np.append(reach, reach[-1])
    x, y = reach * np.cos(angles), reach * np.sin(angles)
    # An open arc is heavier on one side. The shift moves the nucleus from the cell's edge towards its centre.
    return np.stack([x - 0.7 * x.mean(), y - 0.7 * y.mean(), radii], axis=1)


class _ParticleGrid:
    """Fine coordinates around one particle, and the conversion to pixels.

    `rho` is the distance from the centre as a share of the outline's distance: the particle is where rho < 1.
    """

    def __init__(self, radius: float, pixel: float, wobble: float, rng: np.random.Generator):
        # Fine enough for shapes as smooth as in a crop of the reference size.
        self.fold = int(np.ceil(REFERENCE_PX * pixel / CROP_UM))
        self.step = pixel / self.fold
        self.pixel = pixel
        self.radius = radius
        half = int(np.ceil(1.3 * radius / pixel)) + 1
        self.side = (2 * half + 1) * self.fold
        axis = ((np.arange(self.side) - (self.side - 1) / 2) * self.step).astype(np.float32)
        self.x, self.y = axis, axis[:, None]
        angle = np.arctan2(self.y, self.x)
        outline = np.ones_like(angle)
        for order in (2, 3, 4, 5):
            outline += (
                wobble
                * np.float32(rng.normal())
                * np.cos(order * angle + np.float32(rng.uniform(0, 2 * np.pi)))
                * np.float32(2 / order)
            )
        self.rho = np.hypot(self.x, self.y) / (radius * np.clip(outline, 0.75, 1.28))

    def patch(self, phase: np.ndarray, density: np.ndarray, nucleus: np.ndarray | None = None) -> ParticlePatch:
        """Smooth by one reference pixel, like a stained cell's thickness, and average to pixels."""
        smooth = CROP_UM / REFERENCE_PX / self.step
        nucleus = np.zeros_like(phase) if nucleus is None else nucleus
        return ParticlePatch(
            self._shrink(gaussian_filter(THICKNESS * phase, smooth)),
            self._shrink(density),
            self._shrink(nucleus),
            self.radius / self.pixel,
        )

    def _shrink(self, fine: np.ndarray) -> np.ndarray:
        n = self.side // self.fold
        return fine.reshape(n, self.fold, n, self.fold).mean(axis=(1, 3), dtype=np.float32)


def _compute_depth(chain: np.ndarray, grid: _ParticleGrid, rng: np.random.Generator) -> np.ndarray:
    """Compute the signed depth in a union of circles, in micrometres, with smooth corners and slight texture."""
    depth = np.full(grid.rho.shape, -np.inf, np.float32)
    for x, y, radius in chain.astype(np.float32):
        np.maximum(depth, radius - np.hypot(grid.x - x, grid.y - y), out=depth)
    return gaussian_filter(depth, 0.25 / grid.step) + 0.1 * _draw_texture(grid, 0.8, rng)


def _draw_texture(grid: _ParticleGrid, length: float, rng: np.random.Generator) -> np.ndarray:
    """Draw smooth noise with a correlation length in micrometres, mean 0, standard deviation about 1."""
    sigma = length / grid.step
    noise = gaussian_filter(rng.standard_normal(grid.rho.shape, dtype=np.float32), sigma, mode="wrap")
    return noise * np.float32(2 * np.sqrt(np.pi) * sigma)


def _draw_granules(grid: _ParticleGrid, count: int, length: float, rng: np.random.Generator) -> np.ndarray:
    """Draw granules at random positions in the cell: Gaussian spots of a radius in micrometres, about 2 high."""
    angle, reach = rng.uniform(0, 2 * np.pi, count), grid.radius * 0.95 * np.sqrt(rng.random(count))
    place = np.stack([reach * np.sin(angle), reach * np.cos(angle)]) / grid.step + grid.side / 2
    sigma = length / grid.step
    spots = np.zeros(grid.rho.shape, np.float32)
    np.add.at(spots, tuple(place.astype(int)), rng.uniform(1, 3, count) * 2 * np.pi * sigma**2)
    return gaussian_filter(spots, sigma)
