"""Classify cells with a trained model: into a CSV that survives an interruption, or into a table in memory.

Threads decode the next crops and write the last rows while the networks run.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from urnet.bundle.model import Model
from urnet.calibration.conformal import COVERAGE
from urnet.cells.cache.crops import use_cached_crops
from urnet.cells.copies import find_padding_tiles
from urnet.cells.read import find_images
from urnet.cells.table import TABLE_NAME, Cells
from urnet.errors import RecipeError, RunError
from urnet.export.engine import MAX_SAMPLE, Engine, check_engine, choose_engine
from urnet.files.outputs import refuse_existing
from urnet.images.montage import Address, resolve_address
from urnet.images.read import SUFFIXES, is_file
from urnet.prefetch import DecodedCell, decode_cells, prefetch_cells
from urnet.progress import Progress
from urnet.resumable_table import is_interrupted, open_resumable_table

PADDING = "padding of the archive: an identical tile stands there a dozen times or more"
MAX_REASONS = 3
"""Number of reasons that a message lists; it counts the others."""

CAM_BATCH = 4
"""Images per batch of Grad-CAM."""

PREFETCH_BATCHES = 2
"""Number of batches that are decoded ahead."""

MAX_CORRELATION = 0.99
"""Correlation of enhanced and raw images above which the enhancer changes hardly anything."""


OnClassified = Callable[[int, Mapping[str, str], np.ndarray], None]
"""Called with the number of a classified cell, its row, and its crop (C, S, S) in raw counts."""


@dataclass(frozen=True)
class PredictionSummary:
    """Counts of a prediction.

    Attributes:
        images: number of images.
        counts: countable cells by predicted class, without rejected ones.
        rejected: images that show no countable cell; 0 for a model without calibration.
        failed: images that could not be used.
        left_out: tiles that are an archive's padding, not cells.
        engines: images by the engine that classified them.
        resumed: rows of an interrupted prediction that were kept.
        reasons: number of failed images by reason, the most frequent first.
        correlation: median correlation of enhanced and raw images; none if no enhanced image was written.
    """

    images: int
    counts: dict[str, int]
    rejected: int
    failed: int
    left_out: int
    engines: dict[str, int] = field(default_factory=dict)
    resumed: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    correlation: float | None = None

    @property
    def failure_message(self) -> str:
        """Number of images that could not be used, and why."""
        usable = self.images - self.left_out
        share = f"none of the {usable}" if self.failed == usable else f"{self.failed} of {usable}"
        verb = "could" if self.failed == usable else "could not"
        return f"{share} image(s) {verb} be used: {summarize_reasons(self.reasons)}; the column 'error' says which"

    @property
    def notes(self) -> list[str]:
        """Notes for the user about the enhanced images."""
        if self.correlation is None or self.correlation <= MAX_CORRELATION:
            return []
        return [
            f"the enhanced images hardly differ from the raw images (median correlation {self.correlation:.3f}, above "
            f"{MAX_CORRELATION:g}): this enhancer changes what the classifier sees, not what a person sees"
        ]


@dataclass(frozen=True)
class CellPredictions:
    """Predictions of the cells of a table, in memory.

    Attributes:
        table: a row a cell, with the columns of the CSV that `predict_files` writes; all values are text.
        summary: counts.
        copy_keys: hashes of the crops that could be read, by which copies are found; empty unless asked for.
    """

    table: pd.DataFrame
    summary: PredictionSummary
    copy_keys: list[str]


class _RowTarget(Protocol):
    """A table that rows are written to.

    Attributes:
        done: number of rows that it has.
    """

    done: int

    def write(self, rows: Sequence[Mapping[str, str]]) -> None: ...


class _MemoryTable:
    """Rows in memory."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, str]] = []

    @property
    def done(self) -> int:
        return len(self.rows)

    def write(self, rows: Sequence[Mapping[str, str]]) -> None:
        self.rows += rows


@dataclass(frozen=True)
class _PredictionTask:
    """Cells to classify, the model, and the pictures to write."""

    model: Model
    cells: Cells
    padding: set[int]
    coverage: float
    enhanced: Path | None = None
    cam: Path | None = None
    hash_crops: bool = False
    on_classified: OnClassified | None = None
    correlations: list[float] = field(default_factory=list)
    copy_keys: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """Columns of the table of predictions."""
        pictures = [name for name, folder in (("enhanced", self.enhanced), ("cam", self.cam)) if folder is not None]
        return ["path", "predicted", *self.model.prediction_columns, *pictures, "engine", "error"]

    @property
    def settings(self) -> dict[str, str]:
        """Settings that determine the rows, by their names in messages."""
        return {
            "model": self.model.digest(),
            "images": _digest(self.cells),
            "coverage": repr(self.coverage),
            "pictures": f"enhanced: {self.enhanced}, cam: {self.cam}",
        }

    @cached_property
    def names(self) -> list[str]:
        """File names of the pictures, one a cell."""
        return _file_names(self.cells.table["path"])


class _RowCounter:
    """Counts of the rows of a prediction."""

    def __init__(self) -> None:
        self.outcomes, self.engines, self.reasons = Counter[str](), Counter[str](), Counter[str]()

    def add(self, row: Mapping[str, str]) -> None:
        """Count one row."""
        self.outcomes[(outcome := _outcome(row))] += 1
        if outcome == "failed":
            self.reasons[_reason(row)] += 1
        self.engines.update([row["engine"]] if row.get("engine") else ())

    def summarize(self, task: _PredictionTask, resumed: int = 0) -> PredictionSummary:
        """Make the summary of a finished task."""
        return PredictionSummary(
            images=len(task.cells),
            counts={name: self.outcomes[f"class {name}"] for name in task.model.classes},
            rejected=self.outcomes["rejected"],
            failed=self.outcomes["failed"],
            left_out=self.outcomes["left out"],
            engines=dict(self.engines),
            resumed=resumed,
            reasons=dict(self.reasons.most_common()),
            correlation=float(np.median(task.correlations)) if task.correlations else None,
        )


def predict_files(
    model: Model,
    paths: Iterable[Path | str],
    out: Path,
    *,
    engine: str = "auto",
    enhanced: Path | None = None,
    cam: Path | None = None,
    coverage: float = COVERAGE,
    progress: Progress | None = None,
) -> PredictionSummary:
    """Classify files, folders or tables into a CSV.

    Columns: `path`, `predicted`, `p_<class>`, `enhanced` and `cam` if they are written, `engine`, and `error` with the
    reason why an image could not be used. A calibrated model adds `rejected`, the reason why a crop shows no countable
    cell, and `set`, the classes that cannot be ruled out, joined by `|`. A cell counts as its predicted class where
    `rejected` and `error` are empty.

    Rows are written to `<out>.part`, which is moved to `out` at the end. The same call resumes an interrupted
    prediction.

    Args:
        model: a trained model.
        paths: images, folders of images, or tables with a column `path`.
        out: new CSV.
        engine: engine that runs the networks: `torch`, `onnx`, `openvino`, or `auto`, the fastest exact one.
        enhanced: new folder for the enhanced images, in the range of the raw counts.
        cam: new folder for pictures of Grad-CAM of the predicted class, beside the raw image.
        coverage: share of each class's cells whose prediction set holds the true class, between 0 and 1.
        progress: called with a stage and the share done.

    Raises:
        CellsError: a path does not exist or holds no images.
        RunError: `out`, `enhanced` or `cam` exists already (code `run.exists`) or lies among the images; an
            interrupted prediction had other settings; the engine is unknown, not installed or not exact; or the
            coverage is not between 0 and 1 (code `predict.coverage_invalid`).
        RecipeError: the classifier has no feature maps for Grad-CAM (code `recipe.no_feature_maps`).

    Example:
        >>> model = urnet.load("run")
        >>> summary = predict_files(model, ["cells/disc"], Path("predictions.csv"))
        >>> summary.images
        20
    """
    refuse_existing(out, file=True, resumes=True)
    paths = list(paths)
    folders = [folder for folder in (enhanced, cam) if folder is not None]
    for folder in folders:
        _refuse_output_among_images(folder, paths)
        if not is_interrupted(out):
            refuse_existing(folder)
    if out in (enhanced, cam):
        raise RunError(
            f"{out}: cannot be the table and a folder of pictures; choose another --out", code="predict.same_output"
        )
    _check_coverage(coverage)
    check_engine(engine)
    if cam is not None:
        _check_cam(model)
    progress = progress or (lambda what, share: None)
    progress("find images", 0.0)
    cells = use_cached_crops(find_images(paths, model.config.tile, model.config.image))
    progress("find images", 1.0)
    task = _PredictionTask(model, cells, find_padding_tiles(cells), coverage, enhanced, cam)
    counter, names = _RowCounter(), cells.table["path"].tolist()
    with open_resumable_table(out, task.columns, names, task.settings, counter.add, folders) as table:
        resumed = table.done
        _classify_remaining(task, engine, table, progress)
    return counter.summarize(task, resumed)


def predict_cells(
    model: Model,
    cells: Cells,
    *,
    engine: str = "auto",
    coverage: float = COVERAGE,
    hash_crops: bool = False,
    on_classified: OnClassified | None = None,
    progress: Progress | None = None,
) -> CellPredictions:
    """Classify the cells of a table in memory.

    Args:
        model: a trained model.
        cells: the table, labelled or not.
        engine: as for `predict_files`.
        coverage: as for `predict_files`.
        hash_crops: whether to hash each crop as well, for a comparison with other cells.
        on_classified: called with each classified cell, in order.
        progress: called with a stage and the share done.

    Raises:
        RunError: as `predict_files`, of engine and coverage.

    Example:
        >>> predicted = predict_cells(urnet.load("run"), find_images(["cells/disc"]))
        >>> len(predicted.table)
        20
    """
    _check_coverage(coverage)
    check_engine(engine)
    padding = find_padding_tiles(cells)
    task = _PredictionTask(model, cells, padding, coverage, hash_crops=hash_crops, on_classified=on_classified)
    rows, counter = _MemoryTable(), _RowCounter()
    _classify_remaining(task, engine, rows, progress or (lambda what, share: None))
    for row in rows.rows:
        counter.add(row)
    table = pd.DataFrame(rows.rows, columns=task.columns, dtype=object).fillna("")
    return CellPredictions(table, counter.summarize(task), task.copy_keys)


def summarize_reasons(reasons: Mapping[str, int]) -> str:
    """List the reasons why images could not be used: the only one, or the most frequent with their numbers.

    Args:
        reasons: number of images by reason, the most frequent first.
    """
    if len(reasons) == 1:
        return next(iter(reasons))
    listed = [f"{count} x {reason}" for reason, count in islice(reasons.items(), MAX_REASONS)]
    more = len(reasons) - len(listed)
    return " | ".join([*listed, *([f"{more} more reason(s)"] if more else [])])


def _check_coverage(coverage: float) -> None:
    if not 0 < coverage < 1:
        raise RunError(
            f"coverage must lie between 0 and 1, found {coverage:g}. Use a share such as 0.9",
            code="predict.coverage_invalid",
        )


def _refuse_output_among_images(folder: Path, paths: Iterable[Path | str]) -> None:
    """Refuse a folder for pictures that lies among the images, where the next prediction would classify them."""
    for path in map(Path, paths):
        is_searched = path.is_dir() and not is_file(path / TABLE_NAME)
        if is_searched and folder.resolve().is_relative_to(path.resolve()):
            raise RunError(
                f"{folder}: lies in the folder of the images, {path}, so the next prediction would classify the "
                "pictures in it; choose another place",
                code="predict.output_among_images",
            )


def _outcome(row: Mapping[str, str]) -> str:
    """Return the outcome that a row of the table counts as."""
    if row.get("error"):
        return "left out" if row["error"] == PADDING else "failed"
    return "rejected" if row.get("rejected") else f"class {row['predicted']}"


def _reason(row: Mapping[str, str]) -> str:
    """Give the reason why an image failed, without its name."""
    error, path = row["error"], row["path"]
    names = (Path(path).name, Path(Address.parse(path).file).name)
    return next((rest for name in names if (rest := error.partition(f"{name}: ")[2])), error)


def _classify_remaining(task: _PredictionTask, name: str, table: _RowTarget, progress: Progress) -> None:
    """Classify the cells that have no row yet."""
    cells, start = task.cells, table.done
    if start == len(cells):
        return
    progress("prepare the networks", 0.0)
    first = range(start, min(start + MAX_SAMPLE, len(cells)))
    sample = decode_cells(task.model, cells, first, task.padding, hash_crops=task.hash_crops)
    crops = [cell.crop for cell in sample if cell.crop is not None]
    engine = choose_engine(task.model, name, np.stack(crops) if crops else None, len(cells))
    progress("prepare the networks", 1.0)

    def write(rows: list[dict[str, str]], finish: Callable[[], None]) -> None:
        finish()
        table.write(rows)

    def wait_for(writing: Future[None]) -> None:
        writing.result()
        progress("classify", table.done / len(cells))

    ahead = PREFETCH_BATCHES * engine.size
    rest = prefetch_cells(task.model, cells, first.stop, ahead, task.padding, hash_crops=task.hash_crops)
    with closing(rest), ThreadPoolExecutor(1, "write") as writer:
        decoded = chain(sample, rest)
        last: Future[None] | None = None
        while batch := list(islice(decoded, engine.size)):
            rows = [_row(task, cell) for cell in batch]
            finish = _classify(task, engine, batch, rows)
            if last is not None:
                wait_for(last)
            last = writer.submit(write, rows, finish)
        if last is not None:
            wait_for(last)


def _row(task: _PredictionTask, cell: DecodedCell) -> dict[str, str]:
    """Begin the row of a cell: its path, and its error."""
    if cell.copy_key:
        task.copy_keys.append(cell.copy_key)
    error = PADDING if cell.index in task.padding else cell.error
    return {"path": task.cells.table["path"].iloc[cell.index]} | ({"error": error} if error else {})


def _classify(
    task: _PredictionTask, engine: Engine, batch: list[DecodedCell], rows: list[dict[str, str]]
) -> Callable[[], None]:
    """Run a batch through the networks; the function that is returned completes its rows and writes its pictures."""
    good = [(row, cell) for row, cell in zip(rows, batch, strict=True) if cell.crop is not None]
    if not good:
        return lambda: None
    model, crops = task.model, np.stack([cell.crop for _, cell in good])  # (B, C, S, S)
    probabilities, enhanced, features = engine.run(crops)
    maps = _grad_cam(model, crops, probabilities) if task.cam is not None else None

    def finish() -> None:
        cells = task.cells.table.iloc[[cell.index for _, cell in good]]
        predicted = model.prediction_rows(probabilities, features, crops, cells, task.coverage)
        for (row, _), values in zip(good, predicted, strict=True):
            row |= {name: f"{value:.6f}" if type(value) is float else value for name, value in values.items()}
            row["engine"] = engine.name
        if task.on_classified is not None:
            for (row, cell), crop in zip(good, crops, strict=True):
                task.on_classified(cell.index, row, crop)
        if task.enhanced is None and maps is None:
            return
        inputs = model.config.scaling.apply(crops)
        if task.enhanced is not None:
            task.correlations.extend(map(_correlate, inputs, enhanced))
            for (row, cell), image in zip(good, model.config.scaling.invert(enhanced), strict=True):
                row["enhanced"] = _write_enhanced(task.enhanced / f"{task.names[cell.index]}.tif", image)
        if maps is not None:
            for (row, cell), image, heat in zip(good, inputs, maps, strict=True):
                row["cam"] = _write_cam(task.cam / f"{task.names[cell.index]}.png", image, heat)

    return finish


def _correlate(one: np.ndarray, other: np.ndarray) -> float:
    """Compute Pearson's correlation of two images; 1 where one is constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.nan_to_num(np.corrcoef(one.ravel(), other.ravel())[0, 1], nan=1.0))


def _grad_cam(model: Model, crops: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Compute Grad-CAM of the predicted classes, (B, S, S), in batches of one size, which keeps the last bits equal."""
    import torch

    from urnet.nets.gradcam import grad_cam

    inputs, classes = model.config.scaling.apply(crops), probabilities.argmax(axis=1)
    maps = []
    for start in range(0, len(inputs), CAM_BATCH):
        rows = np.arange(start, start + CAM_BATCH).clip(max=len(inputs) - 1)
        maps.append(grad_cam(model.joint, torch.from_numpy(inputs[rows]), torch.from_numpy(classes[rows])))
    return np.concatenate(maps)[: len(inputs)]


def _digest(cells: Cells) -> str:
    """Hash the table of the images, with the size and time of each file."""
    content, last, stamp = sha256(), "", ""
    for row in cells.table.itertuples(index=False):
        file = resolve_address(cells.root, row.path).file
        if file != last:  # the tiles of a montage follow each other
            last, stamp = file, _stamp(cells.root / file)
        content.update("\0".join((*row, stamp, "")).encode("utf-8", "surrogateescape"))
    return content.hexdigest()[:32]


def _stamp(file: Path) -> str:
    """Give size and time of a file; "" where it does not exist."""
    try:
        about = file.stat()
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        return ""
    return f"{about.st_size} {about.st_mtime_ns}"


def _check_cam(model: Model) -> None:
    """Try Grad-CAM on a black image, so that an error comes before the first batch."""
    import torch

    from urnet.nets.gradcam import grad_cam

    config = model.config
    try:
        grad_cam(model.joint, torch.zeros(1, config.channels, config.size, config.size))
    except (RecipeError, ValueError):
        raise RecipeError(
            f"classifier {config.classifier['name']!r} has no feature maps, which Grad-CAM needs; leave --cam out",
            code="recipe.no_feature_maps",
        ) from None


def _write_cam(path: Path, image: np.ndarray, heat: np.ndarray) -> str:
    """Write an image (C, S, S) and its map (S, S) side by side with a legend, as PNG."""
    from PIL import Image

    from urnet.nets.gradcam import draw_side_by_side

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_side_by_side(np.moveaxis(image, 0, -1), heat)).save(path)
    return path.as_posix()


def _write_enhanced(path: Path, planes: np.ndarray) -> str:
    """Write an image (C, S, S) as TIFF, in its own data type."""
    import tifffile

    path.parent.mkdir(parents=True, exist_ok=True)
    colour = planes.shape[0] == 3
    tifffile.imwrite(
        path, np.moveaxis(planes, 0, -1) if colour else planes[0], photometric="rgb" if colour else "minisblack"
    )
    return path.as_posix()


def _file_names(paths: Iterable[str]) -> list[str]:
    """Make distinct file names, without suffix, that keep the folders below the common one."""
    paths = list(paths)
    try:
        common = os.path.commonpath([Path(path).parent for path in paths])
    except ValueError:  # absolute beside relative, or two drives
        common = ""
    names, seen = [], set()
    for path in paths:
        below = Path(os.path.relpath(path, common) if common else path)
        name = "/".join(part for part in below.parts if part not in ("..", below.anchor))
        if below.suffix.lower() in SUFFIXES:
            name = name.removesuffix(below.suffix)
        name = re.sub(r'[#:*?"<>|\\]', "_", name)
        while name.casefold() in seen:
            name += "_"
        seen.add(name.casefold())
        names.append(name)
    return names
