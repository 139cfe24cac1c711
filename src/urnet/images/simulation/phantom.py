"""Phantom crops and fields: white blood cells without stain, drawn from scratch and imaged in brightfield.

A crop of any size covers `CROP_UM` micrometres. Every cell, donor and field has its own random stream, so cell 7 of
donor 2 does not depend on the number of cells.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter

from urnet.errors import ImageError
from urnet.images.simulation.optics import REFERENCE_PX, draw_imaging, simulate_brightfield
from urnet.images.simulation.particles import (
    CROP_UM,
    THICKNESS,
    ParticlePatch,
    PhantomDonor,
    paint_other_particle,
    paint_white_cell,
)

CLASS_FREQUENCY = {"granulocyte": 0.60, "lymphocyte": 0.32, "monocyte": 0.08}
"""Shares of the classes in the blood of a healthy adult."""

WHITE_PHASE = 1.25 * THICKNESS
"""Phase that is white in `clean`."""

IMAGING_SPREAD = 0.12
"""Standard deviation of the imaging conditions around the donor's, as a share of their ranges."""

_STREAMS = (*CLASS_FREQUENCY, "donor", "field")


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
