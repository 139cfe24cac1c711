"""`urnet compare`: compare trained runs on the cells that all of them tested."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from urnet.benchmark.collect import collect_runs
from urnet.benchmark.report import write_comparison
from urnet.benchmark.row import ResultRow
from urnet.cells.table import Cells
from urnet.errors import RunError
from urnet.evaluation.predictions import Progress
from urnet.evaluation.runs import open_trainings
from urnet.files.atomic import atomic_folder
from urnet.files.outputs import refuse_existing


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`.

    Attributes:
        folder: holds `report.html`, `results.csv`, `differences.csv`, `tables/` and `figures/`.
        differences: paired differences of each run from the first one and from the one before, as `differences.csv`.
    """

    folder: Path
    differences: pd.DataFrame

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / "report.html"

    def __repr__(self) -> str:
        return f"<Comparison: {len(self.differences)} differences, report {self.report}>"

    def _repr_html_(self) -> str:
        return self.differences.to_html(index=False)


def compare(runs: Sequence[Path | str], out: Path | str, progress: Progress | None = None) -> Comparison:
    """Compare runs or cross-validations. The first one is the baseline.

    Args:
        runs: two or more run folders, or folders of cross-validations, over the same cells with the same split.
        out: new folder for the report, tables and figures.
        progress: called with the name of a step and the share of it that is done.

    Returns:
        The paired differences, and the folder with the report.

    Raises:
        RunError: fewer than two runs, other classes, other test cells, or `out` exists.
    """
    if len(runs) < 2:
        raise RunError(f"{len(runs)} run given. A comparison needs two or more", code="benchmark.too_few_runs")
    out = Path(out)
    refuse_existing(out)
    entries = collect_runs([Path(run) for run in runs], progress)
    first = entries[0]
    for other in entries[1:]:
        if not _parts(first) & _parts(other):
            raise RunError(
                f"{first.name} ({_list_folds(first)}) and {other.name} ({_list_folds(other)}) have no fold in common: "
                "they were tested on different cells. Compare runs over the same cells, split.seed and folds",
                code="evaluation.cells_differ",
            )
    cells = open_trainings(Path(runs[0]))[0].cells()
    dataset = f"{len(first.predictions):,} test cells" + (f"; {cells.simulated}" if cells.simulated else "")
    with atomic_folder(out) as staging:
        differences = write_comparison(
            staging, "compare", entries, name=_common_folder(cells), dataset=dataset, simulated=cells.simulated
        )
    return Comparison(out, differences)


def _parts(entry: ResultRow) -> set[tuple[int, int]]:
    """Repeat and fold of each test part."""
    return set(zip(entry.runs["repeat"], entry.runs["fold"], strict=True))


def _list_folds(entry: ResultRow) -> str:
    return ", ".join(f"repeat {repeat} fold {fold}" if repeat else str(fold) for repeat, fold in sorted(_parts(entry)))


def _common_folder(cells: Cells) -> str:
    """Find the name of the folder that contains all images, which serves as the name of the data set."""
    return Path(os.path.commonpath([str((cells.root / path).resolve()) for path in cells.table["path"]])).name
