"""Run folder: the files of one training.

recipe.yaml   complete recipe                      history.csv   figures of each epoch
scaling.json  map of raw counts to [0, 1]          checkpoints/  best.ckpt, last.ckpt, and the same in pretrain/
cells.csv     cells with split and pixel hashes    crop.json     crop settings of cells from fields
model/        trained model (bundle)               evaluation/   one folder for each evaluated part
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
"""Columns of a new history. `identity_error` is a share of the images' own variance; it may exceed 1."""

EXCLUDED = "left out"
"""Column for excluded cells: copies, padding, constant images."""


@dataclass(frozen=True)
class Run:
    """Run folder.

    Attributes:
        folder: path of the folder.
    """

    folder: Path

    def __repr__(self) -> str:
        return f"<Run {self.folder}: {'finished' if self.finished else 'unfinished'}>"

    @property
    def recipe_path(self) -> Path:
        """Complete recipe."""
        return self.folder / "recipe.yaml"

    @property
    def cells_path(self) -> Path:
        """Cells table with the split."""
        return self.folder / TABLE_NAME

    @property
    def scaling_path(self) -> Path:
        """Scaling that was fitted to the training part."""
        return self.folder / "scaling.json"

    @property
    def cropping_path(self) -> Path:
        """Crop settings, if `urnet crop` wrote the cells."""
        return self.folder / SETTINGS_NAME

    @property
    def history_path(self) -> Path:
        """Figures of each epoch."""
        return self.folder / "history.csv"

    @property
    def selection_path(self) -> Path:
        """Features that the SVM uses, if the recipe selects features."""
        return self.folder / "selection.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints of joint training; those of the pre-training are in its folder `pretrain`."""
        return self.folder / "checkpoints"

    @property
    def model(self) -> Path:
        """Folder of the trained model."""
        return self.folder / "model"

    @property
    def finished(self) -> bool:
        """Whether the training is finished."""
        return (self.model / CONFIG_NAME).is_file()

    @property
    def is_bundle(self) -> bool:
        """Whether the folder is a bundle and not a run.

        The cells table of a run names files anywhere on the machine, and the user wrote it. A recipe or a table inside
        a bundle may come from someone else, and is not read.
        """
        return (self.folder / CONFIG_NAME).is_file() and not self.finished

    def refuse_bundle(self) -> None:
        """Raise an error if the folder is a bundle.

        Raises:
            RunError: it is a bundle (`run.is_bundle`).
        """
        if self.is_bundle:
            raise RunError(
                f"{self.folder}: not a run folder but a bundle (a model by itself). Its recipe or cells are not read. "
                "Name the --out of `urnet train`",
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
        """Create a run folder. The recipe, by which a run is recognised, is written last.

        Args:
            folder: new folder.
            recipe: complete recipe.
            cells: cells with a split.
            scaling: scaling that was fitted to the training part.
            progress: receives the share of the images that have been hashed, 0 to 1.

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
        """Raise an error if the folder exists, unless a run was killed while it created the folder.

        Raises:
            RunError: the folder exists and is not empty.
        """
        begun = any(file.is_file() for file in unfinished_files(self.recipe_path))
        if self.recipe_path.is_file() or not begun:
            refuse_existing(self.folder)

    @classmethod
    def open(cls, folder: Path | str) -> "Run":
        """Open an existing run folder.

        Raises:
            RunError: the folder is no run folder, or a bundle (`run.is_bundle`).
        """
        run = cls(Path(folder))
        run.refuse_bundle()
        missing = [p.name for p in (run.recipe_path, run.cells_path) if not p.is_file()]
        if (run.folder / "fold0" / run.recipe_path.name).is_file():
            raise RunError(
                f"{folder}: a cross-validation of several runs; name one of them, such as {run.folder / 'fold0'}",
                code="run.is_cross_validation",
            )
        if missing:
            raise RunError(
                f"{folder}: not a run folder ({', '.join(missing)} missing); name the --out of `urnet train`",
                code="run.not_a_run",
            )
        return run

    def recipe(self) -> Recipe:
        """Read the recipe of the run."""
        return load_recipe(self.recipe_path)

    def cells(self) -> Cells:
        """Read the cells of the run, with the part of each ("" for excluded cells).

        Raises:
            RunError: the table has no split.
            CellsError: the table is damaged, or images are missing.
        """
        try:
            cells = read_cells(self.cells_path, as_written=True)
        except MissingFilesError as error:
            place = os.path.normpath(self.folder.resolve() / error.files[0])
            raise MissingFilesError(
                f"{self.folder}: {len(error.files)} image(s) of this run are missing, such as {place}. A run folder "
                f"has no copies of the images. It finds them by the paths in its {TABLE_NAME}, relative to the run "
                "folder. Put the cells back (or a link to them), move the run folder with them, or correct the paths",
                error.files,
            ) from None
        if not cells.has_split:
            raise RunError(f"{self.cells_path}: the column 'split' is missing; restore the file", code="run.no_split")
        return use_cached_crops(Cells(cells.root, cells.table, order_classes(self.recipe(), cells)))

    def cells_for(self, model: Model) -> Cells:
        """Read the cells of the run and check that their labels are the classes of its model.

        Raises:
            RunError: the table has no split, or its labels are not the model's classes (`run.classes_changed`).
            CellsError: the table is damaged, or images are missing.
        """
        cells = self.cells()
        if cells.classes != model.classes:
            raise RunError(
                f"{self.cells_path}: its labels ({', '.join(cells.classes)}) are not the model's classes "
                f"({', '.join(model.classes)}). Restore the file",
                code="run.classes_changed",
            )
        return cells

    def scaling(self) -> Scaling | None:
        """Read the scaling of the run. Runs of version 0.1.0 have no such file: None.

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
                "train into a new --out",
                code="run.scaling_damaged",
            ) from None

    def has_cells(self, cells: Cells) -> bool:
        """Return whether the run was started with these cells: the same files with the same labels."""
        own = self.cells()
        return sorted(zip(_absolute_paths(own), own.table["label"], strict=True)) == sorted(
            zip(_absolute_paths(cells), cells.table["label"], strict=True)
        )

    def changed_images(self, progress: Callable[[float], None] | None = None) -> list[str]:
        """Return the images, paired ones included, whose pixels have changed since the run was started.

        Runs of version 0.1.0 have no hashes: the list is then empty. Names are those in `cells.csv`.
        """
        return find_changed_images(self.cells(), progress)

    def counts(self) -> pd.DataFrame:
        """Count the cells of each class (rows) in each part (columns), without opening images."""
        table = self._table()
        counts = pd.crosstab(table["label"], table["split"].replace("", EXCLUDED))
        classes = self.recipe().classes or counts.index
        return counts.reindex(index=list(classes), fill_value=0)[[c for c in (*PARTS, EXCLUDED) if c in counts]]

    def excluded_reasons(self) -> list[str]:
        """Return the reason of each excluded image (`padding`, `copy`, …), without opening images."""
        return [reason.split(" ")[0] for reason in self._table().get("left_out", []) if reason]

    def donors(self, part: str) -> set[str]:
        """Return the known donors of a part, without opening images."""
        table = self._table()
        return set(table["donor"][table["split"] == part]) - {""} if "donor" in table else set()

    def _table(self) -> pd.DataFrame:
        columns = ("label", "split", "donor", "left_out")
        return read_table(self.cells_path, columns, check_spelling=(), refuse_donor_synonyms=False, verbatim=True)

    def history(self) -> pd.DataFrame:
        """Read the history: `NEW_HISTORY_COLUMNS`, one row for each epoch, NaN for missing figures.

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
        except (ValueError, KeyError):  # the errors of the parser are ValueErrors
            raise RunError(
                f"{self.history_path}: not the history of a training; restore or remove the file",
                code="run.history_damaged",
            ) from None

    def load_model(self, expect: str | None = None) -> Model:
        """Load the trained model. With `expect`, a model with another digest is an error."""
        return Model.load(self.folder, expect=expect)

    def wait(self, seconds: float = 3600) -> "Run":
        """Wait until the first process of a distributed training has created the folder."""
        end = time.monotonic() + seconds
        while not self.recipe_path.is_file():
            if time.monotonic() > end:
                raise RunError(
                    f"{self.folder}: the first process did not create the run folder within {seconds:.0f} s",
                    code="run.not_started",
                )
            time.sleep(0.2)
        return self


def find_run(path: Path | str) -> Run | None:
    """Return the run that the path of a model names, or None for a bundle by itself."""
    run = Run(Path(path))
    return run if run.recipe_path.is_file() and not run.is_bundle else None


def copy_crop_settings(cells: Cells, folder: Path) -> None:
    """Copy the crop settings of cells to another folder, if `urnet crop` wrote the cells."""
    settings = cells.root / SETTINGS_NAME
    if settings.is_file() and settings.resolve() != (folder / SETTINGS_NAME).resolve():
        shutil.copyfile(settings, folder / SETTINGS_NAME)


def check_not_within(path: Path, cells: Path) -> None:
    """Check that an output does not lie among class folders, where it would be read as a class.

    Args:
        path: path of the output.
        cells: cells table, or folder with a folder for each class.

    Raises:
        RunError: the path lies inside such a folder.
    """
    loose = cells.is_dir() and not (cells / TABLE_NAME).is_file()
    if loose and path.resolve().is_relative_to(cells.resolve()):
        raise RunError(
            f"{path}: lies in the cells folder {cells} and would be read as a class; choose another --out",
            code="run.within_cells",
        )


def order_classes(recipe: Recipe, cells: Cells) -> tuple[str, ...]:
    """Return the classes in the order of the network's outputs: that of the recipe, else alphabetical."""
    return tuple(recipe.classes or sorted(set(cells.table["label"])))


def _image_columns(cells: Cells, recipe: Recipe) -> list[str]:
    """Return the columns whose images the training reads."""
    kind = recipe.pretrain.target
    wanted = ("target",) if kind == "target" else (f"target_{kind}", "target")
    painted = recipe.uses_target_images and (kind == "target" or f"target_{kind}" in TARGET_COLUMNS)
    return ["path", *(column for column in wanted if painted and column in cells.table)]


def _absolute_paths(cells: Cells) -> list[str]:
    root = cells.root.resolve()
    return [os.path.normpath(root / path) for path in cells.table["path"]]
