"""Classify image files with a trained model, a batch at a time, and write a row for each as it is done.

Threads decode the next crops and write the last rows while the network looks at a batch.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np

from urnet.bundle.model import Model
from urnet.calibration.conformal import COVERAGE
from urnet.cells.cache.crops import use_cached_crops
from urnet.cells.copies import find_padding_tiles
from urnet.cells.read import find_images
from urnet.cells.table import TABLE_NAME, Cells
from urnet.errors import RecipeError, RunError
from urnet.export.engine import MAX_SAMPLE, BatchSizeTuner, Engine, check_engine, choose_engine
from urnet.files.outputs import refuse_existing
from urnet.images.montage import Address, resolve_address
from urnet.images.read import SUFFIXES, is_file
from urnet.prefetch import DecodedCell, decode_cells, prefetch_cells
from urnet.progress import Progress
from urnet.resumable_table import ResumableTable, is_interrupted, open_resumable_table

PADDING = "padding of the archive: an identical tile stands there a dozen times or more"
MAX_REASONS = 3
"""Reasons that are told of why images could not be used; of others it says how many."""

CAM_BATCH = 4
"""Images of which Grad-CAM is computed at once."""

PREFETCH_BATCHES = 2
"""Batches of the largest size that may be waiting for the network."""


@dataclass(frozen=True)
class PredictionSummary:
    """How a prediction went.

    Attributes:
        images: number of images named.
        counts: images of each class, without those rejected.
        rejected: images that show no countable cell; their rows say why. 0 for a model without calibration.
        failed: images that could not be used; their rows say why.
        left_out: tiles that are an archive's padding, not cells.
        engines: images that each engine classified.
        resumed: rows that were there already, of a prediction that was interrupted.
        reasons: why images could not be used, with how many each, the commonest first.
    """

    images: int
    counts: dict[str, int]
    rejected: int
    failed: int
    left_out: int
    engines: dict[str, int] = field(default_factory=dict)
    resumed: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def failure_message(self) -> str:
        """How many images could not be used, and why."""
        usable = self.images - self.left_out
        found = f"none of the {usable}" if self.failed == usable else f"{self.failed} of {usable}"
        verb = "could" if self.failed == usable else "could not"
        return f"{found} image(s) {verb} be used: {summarize_reasons(self.reasons)}; the column 'error' says which"


@dataclass(frozen=True)
class _PredictionTask:
    """What is asked for, and of what."""

    model: Model
    cells: Cells
    padding: set[int]
    coverage: float
    enhanced: Path | None
    cam: Path | None

    @property
    def columns(self) -> list[str]:
        """Of the CSV."""
        pictures = [name for name, folder in (("enhanced", self.enhanced), ("cam", self.cam)) if folder is not None]
        return ["path", "predicted", *self.model.prediction_columns, *pictures, "engine", "error"]

    @property
    def about(self) -> dict[str, str]:
        """All that the rows depend on, by what it is called to the user."""
        return {
            "model": self.model.digest(),
            "images": _digest(self.cells),
            "coverage": repr(self.coverage),
            "pictures": f"enhanced: {self.enhanced}, cam: {self.cam}",
        }

    @cached_property
    def names(self) -> list[str]:
        """Of the pictures, one a cell."""
        return _file_names(self.cells.table["path"])


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
    """Classify files, folders or tables into a CSV: `path`, `predicted`, `p_<class>`, `engine`, `error`.

    Of a calibrated model it also says, after the probabilities, why an image shows no countable cell (`rejected`, empty
    for one that does), and which classes cannot be ruled out (`set`, joined by `|`). `predicted` is filled either way:
    what counts as a cell of its class is a row whose `rejected` and `error` are empty.

    An image that cannot be used gets a row with its reason, and the rest goes on. The CSV is written beside its place
    and moved there at the end; the rows of an interrupted prediction stay in `<out>.part`, and the same call
    goes on from there.

    Args:
        model: a trained model.
        paths: images, folders of images, or tables with a column `path`.
        out: the CSV.
        engine: what runs the networks: `torch`, `onnx`, `openvino`, or `auto`, the fastest exact one at hand.
        enhanced: folder for the enhanced images, in the raw counts' own range; named in the column `enhanced`.
        cam: folder for Grad-CAM over the raw image, for the predicted class; named in the column `cam`.
        coverage: of the sets: the share of each class's cells whose set holds it, between 0 and 1.
        progress: called with a stage and the share done.

    Raises:
        CellsError: a path does not exist or holds no images.
        RunError: `out`, `enhanced` or `cam` exists already; pictures would lie among the images; rows of an interrupted
            prediction are there that was of something else; the engine is unknown, not installed or not exact; or the
            coverage is not between 0 and 1.
        RecipeError: Grad-CAM is asked for, and the classifier has no feature maps.
    """
    refuse_existing(out, file=True, resumes=True)
    paths = list(paths)
    folders = [folder for folder in (enhanced, cam) if folder is not None]
    for folder in folders:
        _refuse_output_among_images(folder, paths)
        if not is_interrupted(out):
            refuse_existing(folder)
    if out in (enhanced, cam):
        raise RunError(f"{out}: cannot be the table and a folder of pictures at once; choose another --out")
    if not 0 < coverage < 1:
        raise RunError(f"a coverage of {coverage:g} was asked for; it must lie between 0 and 1, as 0.9")
    check_engine(engine)
    if cam is not None:
        _check_cam(model)
    progress = progress or (lambda what, share: None)
    progress("find images", 0.0)
    cells = use_cached_crops(find_images(paths, model.config.tile, model.config.image))
    progress("find images", 1.0)
    task = _PredictionTask(model, cells, find_padding_tiles(cells), coverage, enhanced, cam)
    outcomes, engines, reasons = Counter[str](), Counter[str](), Counter[str]()

    def count_row(row: Mapping[str, str]) -> None:
        outcomes[(outcome := _outcome(row))] += 1
        if outcome == "failed":
            reasons[_reason(row)] += 1
        engines.update([row["engine"]] if row.get("engine") else ())

    with open_resumable_table(out, task.columns, cells.table["path"].tolist(), task.about, count_row, folders) as table:
        resumed = table.done
        if resumed < len(cells):
            _classify_remaining(task, engine, table, progress)
    return PredictionSummary(
        images=len(cells),
        counts={name: outcomes[f"class {name}"] for name in model.classes},
        rejected=outcomes["rejected"],
        failed=outcomes["failed"],
        left_out=outcomes["left out"],
        engines=dict(engines),
        resumed=resumed,
        reasons=dict(reasons.most_common()),
    )


def summarize_reasons(reasons: Mapping[str, int]) -> str:
    """Why images could not be used, in words: the only reason, or the commonest with their numbers.

    Args:
        reasons: with how many images each, the commonest first.
    """
    if len(reasons) == 1:
        return next(iter(reasons))
    told = [f"{count} x {reason}" for reason, count in islice(reasons.items(), MAX_REASONS)]
    more = len(reasons) - len(told)
    return " | ".join([*told, *([f"{more} more reason(s)"] if more else [])])


def _refuse_output_among_images(folder: Path, paths: Iterable[Path | str]) -> None:
    """Pictures are not written into a folder that is searched, where they would be images the next time."""
    for path in map(Path, paths):
        searched = path.is_dir() and not is_file(path / TABLE_NAME)
        if searched and folder.resolve().is_relative_to(path.resolve()):
            raise RunError(
                f"{folder}: lies in the folder of the images {path}, and its pictures would be classified the next "
                "time; choose another place"
            )


def _outcome(row: Mapping[str, str]) -> str:
    """What a row counts as."""
    if row.get("error"):
        return "left out" if row["error"] == PADDING else "failed"
    return "rejected" if row.get("rejected") else f"class {row['predicted']}"


def _reason(row: Mapping[str, str]) -> str:
    """Why an image failed, without its name."""
    error, path = row["error"], row["path"]
    names = (Path(path).name, Path(Address.parse(path).file).name)
    return next((rest for name in names if (rest := error.partition(f"{name}: ")[2])), error)


def _classify_remaining(task: _PredictionTask, name: str, table: ResumableTable, progress: Progress) -> None:
    """Classify what has no row yet."""
    cells, start = task.cells, table.done
    progress("prepare the networks", 0.0)
    engine = choose_engine(task.model, name, _sample(task, start), len(cells))
    progress("prepare the networks", 1.0)
    size = BatchSizeTuner(engine.sizes)

    def write(rows: list[dict[str, str]], finish: Callable[[], None]) -> None:
        finish()
        table.write(rows)

    def written(writing: Future[None]) -> None:
        writing.result()
        progress("classify", table.done / len(cells))

    with (
        closing(prefetch_cells(task.model, cells, start, PREFETCH_BATCHES * max(engine.sizes), task.padding)) as reader,
        ThreadPoolExecutor(1, "write") as writer,
    ):
        last: Future[None] | None = None
        while batch := list(islice(reader, size.current)):
            rows = [_row(task, read) for read in batch]
            finish = _classify(task, engine, batch, rows, size)
            if last is not None:
                written(last)
            last = writer.submit(write, rows, finish)
        if last is not None:
            written(last)


def _row(task: _PredictionTask, read: DecodedCell) -> dict[str, str]:
    """What is known of a cell before it is classified."""
    error = PADDING if read.index in task.padding else read.error
    return {"path": task.cells.table["path"].iloc[read.index]} | ({"error": error} if error else {})


def _classify(
    task: _PredictionTask, engine: Engine, batch: list[DecodedCell], rows: list[dict[str, str]], size: BatchSizeTuner
) -> Callable[[], None]:
    """Run a batch through the networks; what is left to do fills in its rows and writes its pictures."""
    good = [(row, read) for row, read in zip(rows, batch, strict=True) if read.crop is not None]
    if not good:
        return lambda: None
    model, crops = task.model, np.stack([read.crop for _, read in good])  # (B, C, S, S)
    begun = time.perf_counter()
    probabilities, enhanced, features = engine.run(crops)
    size.record(len(crops), time.perf_counter() - begun)
    maps = _cam(model, crops, probabilities) if task.cam is not None else None

    def finish() -> None:
        seen = task.cells.table.iloc[[read.index for _, read in good]]
        told = model.prediction_rows(probabilities, features, crops, seen, task.coverage)
        for (row, _), answers in zip(good, told, strict=True):
            row |= {name: f"{value:.6f}" if type(value) is float else value for name, value in answers.items()}
            row["engine"] = engine.name
        if task.enhanced is not None:
            for (row, read), image in zip(good, model.config.scaling.invert(enhanced), strict=True):
                row["enhanced"] = _write_enhanced(task.enhanced / f"{task.names[read.index]}.tif", image)
        if maps is not None:
            inputs = model.config.scaling.apply(crops)
            for (row, read), image, heat in zip(good, inputs, maps, strict=True):
                row["cam"] = _write_cam(task.cam / f"{task.names[read.index]}.png", image, heat)

    return finish


def _cam(model: Model, crops: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Grad-CAM of the predicted classes, (B, S, S), in batches of one size: in others, the last bits are others."""
    import torch

    from urnet.nets.gradcam import grad_cam

    inputs, classes = model.config.scaling.apply(crops), probabilities.argmax(axis=1)
    maps = []
    for start in range(0, len(inputs), CAM_BATCH):
        rows = np.arange(start, start + CAM_BATCH).clip(max=len(inputs) - 1)
        maps.append(grad_cam(model.joint, torch.from_numpy(inputs[rows]), torch.from_numpy(classes[rows])))
    return np.concatenate(maps)[: len(inputs)]


def _sample(task: _PredictionTask, start: int) -> np.ndarray | None:
    """A few usable images, on which an engine can be checked; none where the first ones are all unusable."""
    index = (i for i in range(start, len(task.cells)) if i not in task.padding)
    decoded = decode_cells(task.model, task.cells, islice(index, MAX_SAMPLE))
    crops = [cell.crop for cell in decoded if cell.crop is not None]
    return np.stack(crops) if crops else None


def _digest(cells: Cells) -> str:
    """What tells these images from all others: what the table says of them, and each file's size and time."""
    content, last, stamp = sha256(), "", ""
    for row in cells.table.itertuples(index=False):
        file = resolve_address(cells.root, row.path).file
        if file != last:  # the tiles of a montage follow each other
            last, stamp = file, _stamp(cells.root / file)
        content.update("\0".join((*row, stamp, "")).encode("utf-8", "surrogateescape"))
    return content.hexdigest()[:32]


def _stamp(file: Path) -> str:
    try:
        about = file.stat()
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        return ""
    return f"{about.st_size} {about.st_mtime_ns}"


def _check_cam(model: Model) -> None:
    """Find out with one black image, not after the first batch."""
    import torch

    from urnet.nets.gradcam import grad_cam

    config = model.config
    try:
        grad_cam(model.joint, torch.zeros(1, config.channels, config.size, config.size))
    except (RecipeError, ValueError):
        raise RecipeError(
            f"classifier {config.classifier['name']!r} makes no feature maps that Grad-CAM could show; leave --cam out"
        ) from None


def _write_cam(path: Path, image: np.ndarray, heat: np.ndarray) -> str:
    """A map (S, S) over its image (C, S, S) as PNG."""
    from PIL import Image

    from urnet.nets.gradcam import overlay

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(overlay(np.moveaxis(image, 0, -1), heat)).save(path)
    return path.as_posix()


def _write_enhanced(path: Path, planes: np.ndarray) -> str:
    """(C, S, S) as TIFF at its own depth."""
    import tifffile

    path.parent.mkdir(parents=True, exist_ok=True)
    colour = planes.shape[0] == 3
    tifffile.imwrite(
        path, np.moveaxis(planes, 0, -1) if colour else planes[0], photometric="rgb" if colour else "minisblack"
    )
    return path.as_posix()


def _file_names(paths: Iterable[str]) -> list[str]:
    """Distinct file names, without the image's suffix, that keep the folders below the common one."""
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
