"""Measure the recall and precision of cell detection.

    python benchmarks/detection.py [--jurkat FOLDER] [--seeds 31 32] [--donors 8] [--side 0]

- Phantom fields of 1,024 px with 60 white cells, red cells and debris. A true cell is detected if the centre of a
  detection lies within a third of the typical diameter.
- Jurkat montages as free fields. The truth is the centre of the DNA stain in each tile. Padding tiles, which occur many
  times in a montage, do not count.

Intervals are Wilson's, 95 %. `--side 20000` measures time and memory for a field of that size, which
repeats a phantom field.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile

from urnet.cells.copies import MIN_PADDING_COPIES, group_equal_keys, hash_any_orientation
from urnet.fields.detection.detect import Detection, ReadRegion, detect
from urnet.fields.detection.matching import Agreement, match_positions, wilson
from urnet.images.simulation.phantom import PhantomField, PlacedCell, draw_field

TILE = 40
REACH = 9.0
"""Largest distance between a detected and a true centre, px: a third of 27 px, the typical diameter in both."""

PHASES = ("s", "g2", "prophase", "metaphase", "anaphase", "telophase", "g1")
CONTACTS = ("single", "touching", "overlapping")


def reader_of(pixels: np.ndarray) -> ReadRegion:
    """Return a function that reads regions of an array, as `detect` needs it."""
    return lambda top, left, height, width: pixels[top : top + height, left : left + width]


def positions(cells: list[Detection] | tuple[PlacedCell, ...]) -> np.ndarray:
    """Arrange the columns x and y, (N, 2)."""
    return np.array([(cell.x, cell.y) for cell in cells]).reshape(-1, 2)


def intersection_over_union(cell: Detection, true: PlacedCell) -> float:
    """Compute the intersection over union of a mask and a disc with the mean radius of the phantom cell."""
    half = int(np.ceil(true.radius)) + max(cell.mask.shape)
    y, x = np.mgrid[true.y - half : true.y + half + 1, true.x - half : true.x + half + 1]
    disc = np.hypot(y - true.y, x - true.x) <= true.radius
    mask = np.zeros_like(disc)
    top, left = cell.top - true.y + half, cell.left - true.x + half
    mask[top : top + cell.mask.shape[0], left : left + cell.mask.shape[1]] = cell.mask
    return float((mask & disc).sum() / (mask | disc).sum())


def print_row(name: str, agreement: Agreement, more: str = "") -> None:
    """Print one row of the table."""
    (p_low, p_high), (r_low, r_high) = agreement.precision_interval, agreement.recall_interval
    print(
        f"{name:<34} {agreement.truth:>6} {agreement.detected:>8}"
        f"   {agreement.precision:.3f} [{p_low:.3f}, {p_high:.3f}]"
        f"   {agreement.recall:.3f} [{r_low:.3f}, {r_high:.3f}]   {more}",
        flush=True,
    )


def measure_phantoms(fields: list[tuple[int, PhantomField]], nuclear: bool) -> None:
    """Print precision and recall on phantom fields: in total, by donor, and recall by contact with a neighbour."""
    channel = "brightfield and nuclei" if nuclear else "brightfield"
    donors: dict[int, Agreement] = {}
    detected_of, all_of = dict.fromkeys(CONTACTS, 0), dict.fromkeys(CONTACTS, 0)
    overlaps = []
    for donor, field in fields:
        nuclei = reader_of(field.nuclei) if nuclear else None
        cells = detect(reader_of(field.brightfield), field.brightfield.shape, nuclei=nuclei)
        pairs = match_positions(positions(cells), positions(field.cells), REACH)
        agreement = Agreement(len(cells), len(field.cells), len(pairs))
        donors[donor] = donors.get(donor, Agreement(0, 0, 0)) + agreement
        for cell in field.cells:
            all_of[cell.contact] += 1
        for detected, true in pairs:
            detected_of[field.cells[true].contact] += 1
            overlaps.append(intersection_over_union(cells[detected], field.cells[true]))
    for donor, agreement in donors.items():
        print_row(f"phantom donor {donor}, {channel}", agreement)
    spread = "IoU median {:.2f}, tenth {:.2f}".format(*np.percentile(overlaps, [50, 10]))
    print_row(f"phantom, {channel}", sum(donors.values(), Agreement(0, 0, 0)), spread)
    for contact in CONTACTS:
        low, high = wilson(detected_of[contact], all_of[contact])
        recall = detected_of[contact] / max(1, all_of[contact])
        print(f"  {contact:<32} {all_of[contact]:>6} {'':>35}   {recall:.3f} [{low:.3f}, {high:.3f}]", flush=True)


def find_dna_centres(montage: np.ndarray) -> np.ndarray:
    """Find the centre of the bright half of the stain in each tile, x and y in the montage, (tiles, 2)."""
    centres = []
    for top in range(0, montage.shape[0], TILE):
        for left in range(0, montage.shape[1], TILE):
            tile = montage[top : top + TILE, left : left + TILE].astype(float)
            tile -= np.median(np.concatenate([tile[0], tile[-1], tile[:, 0], tile[:, -1]]))
            y, x = (where.mean() for where in np.nonzero(tile >= 0.5 * tile.max()))
            centres.append((left + x, top + y))
    return np.array(centres)


def measure_jurkat(folder: Path, phase: str) -> Agreement:
    """Measure the detection on one montage as a field, without padding tiles."""
    montage = tifffile.imread(folder / phase / "brightfield.tif")
    truth = find_dna_centres(tifffile.imread(folder / phase / "dna.tif"))
    down, across = (side // TILE for side in montage.shape)
    tiles = montage.reshape(down, TILE, across, TILE).swapaxes(1, 2).reshape(-1, TILE, TILE)
    alike = group_equal_keys(hash_any_orientation(tile) for tile in tiles)
    padding = {int(k) for group in alike if len(group) >= MIN_PADDING_COPIES for k in group}
    cells = detect(reader_of(montage), montage.shape)
    cells = [
        cell for cell in cells if int((cell.y + 0.5) // TILE) * across + int((cell.x + 0.5) // TILE) not in padding
    ]
    truth = truth[[k for k in range(len(tiles)) if k not in padding]]
    return Agreement(len(cells), len(truth), len(match_positions(positions(cells), truth, REACH)))


def measure_large_field(side: int) -> None:
    """Print time and memory for a large field that is read region by region."""
    import resource

    pixels = draw_field(11, 1, 0).brightfield
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    cells = detect(repeat_field(pixels), (side, side))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{side} x {side} px: {len(cells)} cells in {time.perf_counter() - start:.0f} s; "
        f"peak memory {after / 1024:.0f} MiB, {before / 1024:.0f} of it before"
    )


def repeat_field(pixels: np.ndarray) -> Callable[[int, int, int, int], np.ndarray]:
    """Return a function that reads regions of an infinite field, which repeats a small field."""
    H, W = pixels.shape
    return lambda top, left, height, width: pixels[
        np.ix_(np.arange(top, top + height) % H, np.arange(left, left + width) % W)
    ]


def main() -> None:
    """Measure the detection, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jurkat", type=Path, help="folder with a folder per phase")
    parser.add_argument("--phases", nargs="*", default=PHASES)
    parser.add_argument("--seeds", nargs="*", type=int, default=[31, 32])
    parser.add_argument("--donors", type=int, default=8)
    parser.add_argument("--side", type=int, default=0, help="edge of a large field to be timed, px")
    arguments = parser.parse_args()
    if arguments.side:
        measure_large_field(arguments.side)
    print(f"{'':<34} {'cells':>6} {'detected':>8}   {'precision':<21}   {'recall':<21}")
    fields = [(donor, draw_field(seed, donor, 0)) for donor in range(arguments.donors) for seed in arguments.seeds]
    if fields:
        for nuclear in (False, True):
            measure_phantoms(fields, nuclear)
    if arguments.jurkat:
        for phase in arguments.phases:
            print_row(f"Jurkat {phase}, brightfield", measure_jurkat(arguments.jurkat, phase))


if __name__ == "__main__":
    main()
