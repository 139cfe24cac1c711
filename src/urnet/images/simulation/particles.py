"""Particles of phantom images: white cells of three classes, red cells, platelets and fragments.

Shapes and sizes follow the textbook:

- granulocytes of 12 µm with a lobed nucleus and granules;
- monocytes of 14 to 15 µm with a kidney-shaped nucleus and fine texture;
- lymphocytes of 9 to 10 µm with a round nucleus that almost fills them;
- biconcave red cells (profile: Evans and Fung, Microvasc. Res. 4, 335, 1972), platelets and fragments.

The classes overlap on purpose. A shape is drawn in micrometres, its image in pixels.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from urnet.images.simulation.optics import REFERENCE_PX, Imaging

CROP_UM = 20.0
"""Edge of a crop, in micrometres."""

THICKNESS = 2.5
"""Phase of a round cell in suspension. A cell spread on a slide has 1."""


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


def paint_white_cell(label: str, donor: PhantomDonor, rng: np.random.Generator, pixel: float) -> ParticlePatch:
    """Draw one white cell.

    Args:
        label: one of the three classes.
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
