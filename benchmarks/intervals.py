"""Measure the coverage and length of the intervals on simulated donors whose true values are known.

    python benchmarks/intervals.py --out intervals [--part metrics …] [--replicates 2000] [--seed 0]

Each part is a module of `interval_studies/`, which says what it simulates and what its columns mean. It has a function
`run(replicates: int, rng: np.random.Generator) -> pd.DataFrame` that calls the functions of `urnet`. Each part prints a
Markdown table and writes `PART.csv` to the folder `--out`. A part whose file is there is not repeated.
"""

import argparse
import importlib
import time
from pathlib import Path

import numpy as np
import pandas as pd

STUDIES = Path(__file__).parent / "interval_studies"
PARTS = sorted(path.stem for path in STUDIES.glob("[a-z]*.py"))


def to_markdown(table: pd.DataFrame) -> str:
    """Format a table as Markdown, with three significant digits and at least whole numbers."""

    def text(value: object) -> str:
        if isinstance(value, float):
            return "–" if np.isnan(value) else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        return str(value)

    lines = [list(table.columns), ["---"] * table.shape[1], *(map(text, row) for row in table.itertuples(index=False))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Run the chosen parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for part in given.part:
        path = given.out / f"{part}.csv"
        if path.exists():
            table, seconds = pd.read_csv(path), None
        else:
            start = time.perf_counter()
            study = importlib.import_module(f"interval_studies.{part}")
            table = study.run(given.replicates, np.random.default_rng(given.seed))
            table.to_csv(path, index=False)
            seconds = time.perf_counter() - start
        print(f"## {part}{'' if seconds is None else f' ({seconds:.0f} s)'}\n\n{to_markdown(table)}\n", flush=True)


if __name__ == "__main__":
    main()
