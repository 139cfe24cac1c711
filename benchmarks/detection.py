"""How many cells of a field are found, and how many of those found are cells.

    python benchmarks/detection.py [--jurkat FOLDER] [--seeds 31 32] [--donors 8] [--side 0]

Phantom fields of 1,024 px with 60 white cells, red cells and debris: a true cell is found if a cell's centre lies
within a third of its typical diameter. Jurkat montages, cut up as free fields: the truth is the centre of the DNA stain
in each tile; padding tiles, which stand in a montage many times, count neither way. Intervals are Wilson's, 95 %.
With `--side 20000`, time and memory for a field of that size, a phantom field repeated.
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
"""Greatest distance of a found centre from a true one, px: a third of 27 px, the typical cell in both."""

PHASES = ("s", "g2", "prophase", "metaphase", "anaphase", "telophase", "g1")
CONTACTS = ("single", "touching", "overlapping")


def regions(pixels: np.ndarray) -> ReadRegion:
    """A field in memory as `detect` reads it."""
    return lambda top, left, height, width: pixels[top : top + height, left : left + width]


def positions(cells: list[Detection] | tuple[PlacedCell, ...]) -> np.ndarray:
    """Columns x and y, (N, 2)."""
    return np.array([(cell.x, cell.y) for cell in cells]).reshape(-1, 2)


def overlap(cell: Detection, true: PlacedCell) -> float:
    """Intersection over union of a mask and the disc of a phantom cell's mean radius."""
    half = int(np.ceil(true.radius)) + max(cell.mask.shape)
    y, x = np.mgrid[true.y - half : true.y + half + 1, true.x - half : true.x + half + 1]
    disc = np.hypot(y - true.y, x - true.x) <= true.radius
    mask = np.zeros_like(disc)
    top, left = cell.top - true.y + half, cell.left - true.x + half
    mask[top : top + cell.mask.shape[0], left : left + cell.mask.shape[1]] = cell.mask
    return float((mask & disc).sum() / (mask | disc).sum())


def line(name: str, agreement: Agreement, more: str = "") -> None:
    """Print one row of the table."""
    (p_low, p_high), (r_low, r_high) = agreement.precision_interval, agreement.recall_interval
    print(
        f"{name:<34} {agreement.truth:>6} {agreement.detected:>6}"
        f"   {agreement.precision:.3f} [{p_low:.3f}, {p_high:.3f}]"
        f"   {agreement.recall:.3f} [{r_low:.3f}, {r_high:.3f}]   {more}",
        flush=True,
    )


def phantoms(fields: list[tuple[int, PhantomField]], nuclear: bool) -> None:
    """Precision and recall on phantom fields: in all, by donor, and recall by how a cell lies to its neighbour."""
    channel = "brightfield and nuclei" if nuclear else "brightfield"
    donors: dict[int, Agreement] = {}
    found_of, all_of = dict.fromkeys(CONTACTS, 0), dict.fromkeys(CONTACTS, 0)
    overlaps = []
    for donor, field in fields:
        nuclei = regions(field.nuclei) if nuclear else None
        cells = detect(regions(field.brightfield), field.brightfield.shape, nuclei=nuclei)
        pairs = match_positions(positions(cells), positions(field.cells), REACH)
        agreement = Agreement(len(cells), len(field.cells), len(pairs))
        donors[donor] = donors.get(donor, Agreement(0, 0, 0)) + agreement
        for cell in field.cells:
            all_of[cell.contact] += 1
        for found, true in pairs:
            found_of[field.cells[true].contact] += 1
            overlaps.append(overlap(cells[found], field.cells[true]))
    for donor, agreement in donors.items():
        line(f"phantom donor {donor}, {channel}", agreement)
    spread = "IoU median {:.2f}, tenth {:.2f}".format(*np.percentile(overlaps, [50, 10]))
    line(f"phantom, {channel}", sum(donors.values(), Agreement(0, 0, 0)), spread)
    for contact in CONTACTS:
        low, high = wilson(found_of[contact], all_of[contact])
        recall = found_of[contact] / max(1, all_of[contact])
        print(f"  {contact:<32} {all_of[contact]:>6} {'':>33}   {recall:.3f} [{low:.3f}, {high:.3f}]", flush=True)


def dna_centres(montage: np.ndarray) -> np.ndarray:
    """Centre of the bright half of each tile's stain, x and y in the montage, (tiles, 2)."""
    centres = []
    for top in range(0, montage.shape[0], TILE):
        for left in range(0, montage.shape[1], TILE):
            tile = montage[top : top + TILE, left : left + TILE].astype(float)
            tile -= np.median(np.concatenate([tile[0], tile[-1], tile[:, 0], tile[:, -1]]))
            y, x = (where.mean() for where in np.nonzero(tile >= 0.5 * tile.max()))
            centres.append((left + x, top + y))
    return np.array(centres)


def jurkat(folder: Path, phase: str) -> Agreement:
    """Detection on one montage taken as a field, its padding left out."""
    montage = tifffile.imread(folder / phase / "brightfield.tif")
    truth = dna_centres(tifffile.imread(folder / phase / "dna.tif"))
    down, across = (side // TILE for side in montage.shape)
    tiles = montage.reshape(down, TILE, across, TILE).swapaxes(1, 2).reshape(-1, TILE, TILE)
    alike = group_equal_keys(hash_any_orientation(tile) for tile in tiles)
    padding = {int(k) for group in alike if len(group) >= MIN_PADDING_COPIES for k in group}
    cells = detect(regions(montage), montage.shape)
    cells = [
        cell for cell in cells if int((cell.y + 0.5) // TILE) * across + int((cell.x + 0.5) // TILE) not in padding
    ]
    truth = truth[[k for k in range(len(tiles)) if k not in padding]]
    return Agreement(len(cells), len(truth), len(match_positions(positions(cells), truth, REACH)))


def large(side: int) -> None:
    """Time and memory for a large field that is read region by region."""
    import resource

    pixels = draw_field(11, 1, 0).brightfield
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    cells = detect(periodic(pixels), (side, side))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{side} x {side} px: {len(cells)} cells in {time.perf_counter() - start:.0f} s; "
        f"peak memory {after / 1024:.0f} MiB, {before / 1024:.0f} of it before"
    )


def periodic(pixels: np.ndarray) -> Callable[[int, int, int, int], np.ndarray]:
    """A field without end that repeats a small one."""
    H, W = pixels.shape
    return lambda top, left, height, width: pixels[
        np.ix_(np.arange(top, top + height) % H, np.arange(left, left + width) % W)
    ]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jurkat", type=Path, help="folder with a folder per phase")
    parser.add_argument("--phases", nargs="*", default=PHASES)
    parser.add_argument("--seeds", nargs="*", type=int, default=[31, 32])
    parser.add_argument("--donors", type=int, default=8)
    parser.add_argument("--side", type=int, default=0, help="edge of a large field to be timed, px")
    arguments = parser.parse_args()
    if arguments.side:
        large(arguments.side)
    print(f"{'':<34} {'cells':>6} {'found':>6}   {'precision':<21}   {'recall':<21}")
    fields = [(donor, draw_field(seed, donor, 0)) for donor in range(arguments.donors) for seed in arguments.seeds]
    if fields:
        for nuclear in (False, True):
            phantoms(fields, nuclear)
    if arguments.jurkat:
        for phase in arguments.phases:
            line(f"Jurkat {phase}, brightfield", jurkat(arguments.jurkat, phase))


if __name__ == "__main__":
    main()
