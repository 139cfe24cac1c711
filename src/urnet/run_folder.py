"""The run folder: what training leaves, and what evaluation, prediction and resumption read.

recipe.yaml   as it was resolved       history.csv   a row an epoch
scaling.json  of raw counts to [0, 1]
cells.csv     with the split used,     checkpoints/  best.ckpt, last.ckpt, and the same of pretrain/
              hashes of the pixels     crop.json     of cells out of fields
model/        the bundle               evaluation/   one folder a part
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from urnet.bundle.config import CONFIG_NAME, parse_scaling
from urnet.bundle.model import Model
from urnet.cells.cache.crops import use_cached_crops
from urnet.cells.pixel_hashes import add_pixel_hashes, find_changed_images
from urnet.cells.read import read_cells
from urnet.cells.table import PARTS, TABLE_NAME, TARGET_COLUMNS, Cells, MissingFilesError
from urnet.errors import RunError
from urnet.fields.cropping.settings import SETTINGS_NAME
from urnet.files.atomic import atomic_file
from urnet.files.json_files import describe_error, read_canonical_json
from urnet.files.outputs import refuse_existing, unfinished_files
from urnet.files.user_tables import read_table
from urnet.images.scale import Scaling
from urnet.recipe import Recipe, load_recipe

HISTORY_COLUMNS = (
    "stage",
    "epoch",
    "train_loss",
    "validation_loss",
    "train_accuracy",
    "validation_accuracy",
    "validation_macro_recall",
    "lr",
)
"""Columns of every history."""

NEW_HISTORY_COLUMNS = (*HISTORY_COLUMNS, "identity_error")
"""Columns of a new history; `identity_error` is a share of the images' own variance, 0 to 1 and more."""

EXCLUDED = "left out"
"""Column of the counts for cells that are in no part: copies, padding, constant images."""


@dataclass(frozen=True)
class Run:
    """A run folder."""

    folder: Path

    def __repr__(self) -> str:
        return f"<Run {self.folder}: {'finished' if self.finished else 'unfinished'}>"

    @property
    def recipe_path(self) -> Path:
        """The resolved recipe."""
        return self.folder / "recipe.yaml"

    @property
    def cells_path(self) -> Path:
        """The cells with their parts."""
        return self.folder / TABLE_NAME

    @property
    def scaling_path(self) -> Path:
        """The scaling that was fitted to the training part."""
        return self.folder / "scaling.json"

    @property
    def cropping_path(self) -> Path:
        """How the cells were cut out of fields, where `urnet crop` did it."""
        return self.folder / SETTINGS_NAME

    @property
    def history_path(self) -> Path:
        """A row an epoch."""
        return self.folder / "history.csv"

    @property
    def selection_path(self) -> Path:
        """Which features the SVM uses, where the recipe selects some."""
        return self.folder / "selection.json"

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

    @property
    def is_bundle(self) -> bool:
        """Whether the folder is a bundle by itself.

        The table of a run names cells anywhere on the machine, and belongs to the user. A recipe or a table that lies
        in a bundle came with it from elsewhere, and is not read.
        """
        return (self.folder / CONFIG_NAME).is_file() and not self.finished

    def refuse_bundle(self) -> None:
        """Refuse a bundle in the place of a run.

        Raises:
            RunError: it is one (`run.is_bundle`).
        """
        if self.is_bundle:
            raise RunError(
                f"{self.folder}: not a run folder but a bundle (a model by itself), and a recipe or cells in it are "
                "not read; give the --out of `urnet train`",
                code="run.is_bundle",
            )

    @classmethod
    def create(
        cls,
        folder: Path,
        recipe: Recipe,
        cells: Cells,
        scaling: Scaling,
        progress: Callable[[float], None] | None = None,
    ) -> "Run":
        """Begin a run folder; the recipe is what makes it one, and comes last.

        Args:
            folder: new.
            recipe: as it was resolved.
            cells: with their parts.
            scaling: fitted to the training part.
            progress: called with the share of the images that have been hashed, 0 to 1.

        Raises:
            RunError: the folder exists and is not empty.
            ImageError: an image cannot be read.
        """
        run = cls(Path(folder))
        run.refuse_existing()
        cells = add_pixel_hashes(cells, _image_columns(cells, recipe), progress)
        with atomic_file(run.recipe_path) as file:
            file.write(recipe.to_yaml().encode())
            file.flush()
            cells.write(run.cells_path)
            run.scaling_path.write_text(json.dumps(asdict(scaling), indent=2) + "\n", encoding="utf-8")
            copy_crop_settings(cells, run.folder)
            run.checkpoints.mkdir(exist_ok=True)
        for left in unfinished_files(run.recipe_path):
            left.unlink(missing_ok=True)
        return run

    def refuse_existing(self) -> None:
        """As the function of this name, but a run that was killed while its folder was begun may begin again.

        Raises:
            RunError: the folder exists and is not empty.
        """
        begun = any(file.is_file() for file in unfinished_files(self.recipe_path))
        if self.recipe_path.is_file() or not begun:
            refuse_existing(self.folder)

    @classmethod
    def open(cls, folder: Path | str) -> "Run":
        """An existing run folder.

        Raises:
            RunError: it is not one, or a bundle (`run.is_bundle`).
        """
        run = cls(Path(folder))
        run.refuse_bundle()
        missing = [p.name for p in (run.recipe_path, run.cells_path) if not p.is_file()]
        if (run.folder / "fold0" / run.recipe_path.name).is_file():
            raise RunError(f"{folder}: a cross-validation of several runs; give one of them, as {run.folder / 'fold0'}")
        if missing:
            raise RunError(
                f"{folder}: not a run folder ({', '.join(missing)} missing); give the --out of `urnet train`"
            )
        return run

    def recipe(self) -> Recipe:
        """The recipe of the run."""
        return load_recipe(self.recipe_path)

    def cells(self) -> Cells:
        """The cells of the run, with the part that each was in ("" for those left out).

        Raises:
            RunError: the table has lost its parts.
            CellsError: it is no table, or its images are not there.
        """
        try:
            cells = read_cells(self.cells_path, as_written=True)
        except MissingFilesError as error:
            place = os.path.normpath(self.folder.resolve() / error.files[0])
            raise MissingFilesError(
                f"{self.folder}: {len(error.files)} image(s) of this run's cells do not exist where they were, as "
                f"{place}. A run keeps no images of its own, and finds them by the paths in its {TABLE_NAME}, relative "
                "to the run's folder: put the cells back there (or a link to where they are now), move the run's "
                "folder the same way, or correct these paths",
                error.files,
            ) from None
        if not cells.has_split:
            raise RunError(f"{self.cells_path}: names no parts (column 'split'); restore the file")
        return use_cached_crops(Cells(cells.root, cells.table, order_classes(self.recipe(), cells)))

    def scaling(self) -> Scaling | None:
        """The scaling that the run was begun with; none of runs of version 0.1.0, which did not write it.

        Raises:
            RunError: the file is damaged.
        """
        if not self.scaling_path.is_file():
            return None
        try:
            return parse_scaling(json.loads(read_canonical_json(self.scaling_path)))
        except ValueError as error:
            raise RunError(
                f"{self.scaling_path}: not the scaling of a run ({describe_error(error)}); restore the file, or "
                "train into a new --out"
            ) from None

    def has_cells(self, cells: Cells) -> bool:
        """Whether these are the cells that the run was begun with: the same files under the same labels."""
        own = self.cells()
        return sorted(zip(_absolute_paths(own), own.table["label"], strict=True)) == sorted(
            zip(_absolute_paths(cells), cells.table["label"], strict=True)
        )

    def changed_images(self, progress: Callable[[float], None] | None = None) -> list[str]:
        """Images, paired ones too, whose pixels are other ones than when the run was begun, as `cells.csv` names them.

        None are known of runs that kept no hashes.
        """
        return find_changed_images(self.cells(), progress)

    def counts(self) -> pd.DataFrame:
        """Number of cells by class (rows) and part (columns), from the table alone."""
        table = self._table()
        counts = pd.crosstab(table["label"], table["split"].replace("", EXCLUDED))
        classes = self.recipe().classes or counts.index
        return counts.reindex(index=list(classes), fill_value=0)[[c for c in (*PARTS, EXCLUDED) if c in counts]]

    def excluded_reasons(self) -> list[str]:
        """Why each image of the table that is no cell of its own is left out (`padding`, `copy`, …)."""
        return [reason.split(" ")[0] for reason in self._table().get("left_out", []) if reason]

    def donors(self, part: str) -> set[str]:
        """The donors known in one part, from the table alone."""
        table = self._table()
        return set(table["donor"][table["split"] == part]) - {""} if "donor" in table else set()

    def _table(self) -> pd.DataFrame:
        columns = ("label", "split", "donor", "left_out")
        return read_table(self.cells_path, columns, check_spelling=(), refuse_donor_synonyms=False, verbatim=True)

    def history(self) -> pd.DataFrame:
        """`NEW_HISTORY_COLUMNS`, a row an epoch; empty before the first, and without a figure where none was written.

        Raises:
            RunError: the file is no history.
        """
        if not self.history_path.is_file():
            return pd.DataFrame(columns=list(NEW_HISTORY_COLUMNS))
        try:
            figures = dict.fromkeys(NEW_HISTORY_COLUMNS[2:], float)
            table = pd.read_csv(self.history_path, encoding="utf-8")
            history = table[list(HISTORY_COLUMNS)].join(
                table.reindex(columns=NEW_HISTORY_COLUMNS[len(HISTORY_COLUMNS) :])
            )
            return history.astype({"stage": str, "epoch": int, **figures})
        except (ValueError, KeyError):  # the parser's errors are ValueErrors
            raise RunError(f"{self.history_path}: not the history of a training; restore or remove the file") from None

    def load_model(self, expect: str | None = None) -> Model:
        """The trained model; with `expect`, only one of this digest."""
        return Model.load(self.folder, expect=expect)

    def wait(self, seconds: float = 3600) -> "Run":
        """Wait until the first process of a distributed run has begun the folder."""
        end = time.monotonic() + seconds
        while not self.recipe_path.is_file():
            if time.monotonic() > end:
                raise RunError(f"{self.folder}: the first process did not begin the run within {seconds:.0f} s")
            time.sleep(0.2)
        return self


def find_run(path: Path | str) -> Run | None:
    """The run that a path of a model names; None for a bundle by itself."""
    run = Run(Path(path))
    return run if run.recipe_path.is_file() and not run.is_bundle else None


def copy_crop_settings(cells: Cells, folder: Path) -> None:
    """Let the settings of `urnet crop` go with its cells to another folder."""
    settings = cells.root / SETTINGS_NAME
    if settings.is_file() and settings.resolve() != (folder / SETTINGS_NAME).resolve():
        shutil.copyfile(settings, folder / SETTINGS_NAME)


def check_not_within(path: Path, cells: Path) -> None:
    """Nothing is written among the class folders, where it would be a class the next time.

    Args:
        path: what is to be written.
        cells: a table, or a folder.

    Raises:
        RunError: the cells are a folder with a folder a class, and the path lies in it.
    """
    loose = cells.is_dir() and not (cells / TABLE_NAME).is_file()
    if loose and path.resolve().is_relative_to(cells.resolve()):
        raise RunError(f"{path}: lies in the cells folder {cells} and would be taken for a class; choose another --out")


def order_classes(recipe: Recipe, cells: Cells) -> tuple[str, ...]:
    """The classes in the order of the network's outputs: the recipe's, else the alphabet's."""
    return tuple(recipe.classes or sorted(set(cells.table["label"])))


def _image_columns(cells: Cells, recipe: Recipe) -> list[str]:
    """The columns whose images a training looks at."""
    kind = recipe.pretrain.target
    wanted = ("target",) if kind == "target" else (f"target_{kind}", "target")
    painted = recipe.uses_target_images and (kind == "target" or f"target_{kind}" in TARGET_COLUMNS)
    return ["path", *(column for column in wanted if painted and column in cells.table)]


def _absolute_paths(cells: Cells) -> list[str]:
    root = cells.root.resolve()
    return [os.path.normpath(root / path) for path in cells.table["path"]]
