"""Measure the audit's threshold between two images of one cell and images of two cells.

    python benchmarks/near_copies.py CELLS [--set KEY=VALUE …]

It prints the correlation of the most similar pairs of distinct cells in a table, and how often the audit detects copies
that were changed by noise, gain, JPEG, resizing or a shift.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image

from urnet.cells import near_copies
from urnet.cells.audit import audit_cells
from urnet.cells.copies import make_thumbnail
from urnet.cells.read import read_cells
from urnet.recipe import load_recipe

SAMPLE = 200


def altered(crop: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Change a crop as an archive may do."""
    crop = crop.mean(axis=-1) if crop.ndim == 3 else crop.astype(float)
    low, high = crop.min(), crop.max()
    eight_bit = Image.fromarray(((crop - low) / (high - low) * 255).astype(np.uint8))
    if kind == "2 % noise":
        return crop + rng.normal(0, 0.02 * (high - low), crop.shape)
    if kind == "gain 0.85":
        return (crop - low) * 0.85 + low + 0.05 * (high - low)
    if kind == "resized to 70 %":
        return np.asarray(eight_bit.resize((int(eight_bit.width * 0.7), int(eight_bit.height * 0.7)))).astype(float)
    if kind.startswith("shifted"):
        return np.roll(crop, int(kind.split()[1]), axis=0)
    buffer = io.BytesIO()
    eight_bit.save(buffer, "JPEG", quality=75)
    decoded = np.asarray(Image.open(buffer)).astype(float)
    return np.rot90(decoded) if kind.endswith("turned") else decoded


def main() -> None:
    """Measure one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", type=Path)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    recipe = load_recipe("quick", arguments.set)
    cells = read_cells(arguments.cells, tile=recipe.tile, image=recipe.image)
    audit = audit_cells(cells, near_copies=False)
    cells = cells.where(audit.distinct)
    crops = [cells.read(index) for index in range(len(cells))]
    small = np.stack([make_thumbnail(crop) for crop in crops])
    bits, same = near_copies.MAX_HASH_DISTANCE, near_copies.MIN_CORRELATION

    near_copies.MIN_CORRELATION = 0.9
    pairs = near_copies.find_near_copies(small)
    print(f"{len(cells)} distinct cells; pairs within {bits} bits and a correlation of at least")
    for line in (0.90, 0.95, 0.97, same, 0.99):
        print(f"  {line:.2f}: {sum(alike >= line for *_, alike in pairs)}")
    for first, second, alike in pairs[:5]:
        print(f"  {alike:.4f}  {cells.table['path'][first]}  {cells.table['path'][second]}")

    rng = np.random.default_rng(0)
    near_copies.MIN_CORRELATION = same
    chosen = rng.choice(len(crops), min(SAMPLE, len(crops)), replace=False)
    print(f"altered copies found with {bits} bits and {same} (of {len(chosen)})")
    kinds = ("2 % noise", "gain 0.85", "JPEG 75", "JPEG 75, turned", "resized to 70 %", "shifted 1 px", "shifted 2 px")
    for kind in kinds:
        is_detected = [
            len(
                near_copies.find_near_copies(np.stack([small[index], make_thumbnail(altered(crops[index], kind, rng))]))
            )
            for index in chosen
        ]
        print(f"  {kind}: {np.mean(is_detected):.1%}")


if __name__ == "__main__":
    main()
