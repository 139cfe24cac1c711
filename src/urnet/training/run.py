"""The run folder: what training leaves, and what evaluation, prediction and resumption read.

recipe.yaml   as it was resolved       history.csv   a row an epoch
cells.csv     with the split used      checkpoints/  best.ckpt, last.ckpt, pretrain/
model/        the bundle               evaluation/   one folder a part
"""

import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from urnet.bundle import CONFIG_NAME, Model
from urnet.cells.table import TABLE_NAME, Cells, read_cells
from urnet.errors import RunError
from urnet.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class Run:
    """A run folder."""

    folder: Path

    @property
    def recipe_path(self) -> Path:
        """The resolved recipe."""
        return self.folder / "recipe.yaml"

    @property
    def cells_path(self) -> Path:
        """The cells with their parts."""
        return self.folder / TABLE_NAME

    @property
    def history_path(self) -> Path:
        """A row an epoch."""
        return self.folder / "history.csv"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of the joint training; those of the pre-training are in `pretrain/` below."""
        return self.folder / "checkpoints"

    @property
    def model(self) -> Path:
        """The bundle."""
        return self.folder / "model"

    @property
    def finished(self) -> bool:
        """Whether training came to its end."""
        return (self.model / CONFIG_NAME).is_file()

    @classmethod
    def create(cls, folder: Path, recipe: Recipe, cells: Cells) -> "Run":
        """Begin a run folder.

        Raises:
            RunError: the folder exists and is not empty.
        """
        run = cls(Path(folder))
        refuse_existing(run.folder)
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        cells.write(run.cells_path)
        part = run.recipe_path.with_suffix(".part")
        part.write_text(recipe.to_yaml(), encoding="utf-8")
        part.replace(run.recipe_path)
        return run

    @classmethod
    def open(cls, folder: Path | str) -> "Run":
        """An existing run folder.

        Raises:
            RunError: it is not one.
        """
        run = cls(Path(folder))
        missing = [p.name for p in (run.recipe_path, run.cells_path) if not p.is_file()]
        if missing:
            raise RunError(
                f"{folder}: not a run folder ({', '.join(missing)} missing); give the --out of `urnet train`"
            )
        return run

    def recipe(self) -> Recipe:
        """The recipe of the run."""
        return load_recipe(self.recipe_path)

    def cells(self) -> Cells:
        """The cells of the run, with the part that each was in ("" for those left out)."""
        cells = read_cells(self.cells_path)
        return Cells(cells.root, cells.table, tuple(self.recipe().classes or ()) or cells.classes)

    def history(self) -> pd.DataFrame:
        """`stage`, `epoch`, losses and accuracies, a row an epoch; empty before the first."""
        return pd.read_csv(self.history_path) if self.history_path.is_file() else pd.DataFrame()

    def load_model(self) -> Model:
        """The trained model."""
        return Model.load(self.folder)

    def wait(self, seconds: float = 600) -> "Run":
        """Wait until the first process of a distributed run has begun the folder."""
        end = time.monotonic() + seconds
        while not self.recipe_path.is_file():
            if time.monotonic() > end:
                raise RunError(f"{self.folder}: the first process did not begin the run within {seconds:.0f} s")
            time.sleep(0.2)
        return self


def refuse_existing(path: Path) -> None:
    """Nothing of the user's is overwritten.

    Raises:
        RunError: the path exists, and is not an empty folder.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise RunError(f"{path}: exists already; choose another --out, or remove it yourself")
