"""What the API and the pages call: classify what was sent, count it, with the functions of the command line."""

import asyncio
import shutil
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from urnet.bundle.model import Model
from urnet.calibration.conformal import COVERAGE
from urnet.counting.sample import Sample, count_sample
from urnet.errors import CellsError, ImageError, RunError, list_first
from urnet.evaluation.predictions import overlap_warnings, training_cell_keys
from urnet.export.engine import Engine, choose_engine
from urnet.predict import PADDING
from urnet.run_folder import find_run
from urnet.serve.batching import BatchedNetwork
from urnet.serve.cell_images import CellImages
from urnet.serve.database.store import Store
from urnet.serve.settings import Settings
from urnet.serve.uploads.receive import DecodedCell, DecoderPool, Upload
from urnet.serve.uploads.storage import StorageFullError, UploadFolder, UploadStorage, Usage, size_of

T = TypeVar("T")

NOT_CALIBRATED = "the model is not calibrated, so its counts cannot be corrected; run `urnet calibrate` on it"

CHUNK_IMAGES = 16
"""Images that one request has with the decoders or the network at a time, of one file."""

COMPARISON_THREADS = 2
"""Pairs of runs that are compared at a time, in threads of their own: pictures and answers do not wait for them."""

PARALLEL_FILES = 8
"""Files of one request that are worked on side by side."""


@dataclass(frozen=True)
class ImageResult:
    """What is said of one image.

    Attributes:
        path: its address, with the client's name of the file: `stack.tif#p001`.
        row: `predicted` and `Model.prediction_columns`, as `urnet predict` writes them; empty where there is an error.
        error: why the image could not be used.
        key: what it shares with its copies, where that was asked for.
    """

    path: str
    row: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    key: str = ""

    @property
    def reason(self) -> str:
        """The error, with the image named."""
        return self.error if self.path in self.error else f"{self.path}: {self.error}"

    @property
    def is_padding(self) -> bool:
        """Whether it is a tile that fills up a montage, and no image."""
        return self.error == PADDING


class UnreadableError(ImageError):
    """Fields of a sample cannot be read, and nobody said that the others are to be counted without them.

    Args:
        unreadable: what cannot be read, and why.
        files: number of files in all.
    """

    code = "fields.unreadable"

    def __init__(self, lost: "Sequence[ImageResult]", files: int):
        super().__init__(
            f"{len(lost)} of the {files} files cannot be read, and a count over the others is not that of the sample: "
            f"mend or leave out these, or ask for a partial count; the first: {lost[0].reason}"
        )
        self.unreadable = lost


@dataclass(frozen=True)
class SampleCount:
    """The differential of what was sent.

    Attributes:
        sample: the counts.
        notes: what the user should know.
        failed: images that could not be used.
        fields: whether cells were cut out of fields of view.
    """

    sample: Sample
    notes: list[str]
    failed: list[ImageResult]
    fields: bool


@dataclass(frozen=True)
class FieldPreview:
    """A field of view whose cells were cut out.

    Attributes:
        name: what the client calls its file.
        picture: the field in even light, reduced, as PNG.
        height, width: of the field, px.
    """

    name: str
    picture: Path
    height: int
    width: int


@dataclass(frozen=True)
class CellPosition:
    """Where a cell lies.

    Attributes:
        field: number of its field.
        x, y: of its middle, px of the field.
    """

    field: int
    x: float
    y: float


@dataclass(frozen=True)
class UploadedCells:
    """What is to be classified of what was sent.

    Attributes:
        sources: files of crops, or the folder of cells that were cut out of fields.
        notes: on the fields.
        fields: what is known of each; none where the files are crops.
        positions: where each cell lies, in the order of the cells' folder.
        unreadable: what cannot be read of fields.
    """

    sources: list[Upload]
    notes: list[str] = field(default_factory=list)
    fields: list[FieldPreview] = field(default_factory=list)
    positions: list[CellPosition] = field(default_factory=list)
    unreadable: list[ImageResult] = field(default_factory=list)


class NoModelError(RunError):
    """The server runs without a model, so it can neither classify nor count."""

    code = "server.no_model"

    def __init__(self) -> None:
        super().__init__("this server runs without a model; start it with a run folder: urnet serve RUN")


class Services:
    """The functions that routes and pages call: classify and count with one model, label the cells of one queue.

    Args:
        settings: limits of the server.
        run: run folder or bundle; none to label without a model.
        model: the model in it.
        engine: runs the networks of the model.
        store: database with labels and reviews; none for a server that only answers instruments.
        images: cells to be labelled, if any.

    Attributes:
        storage: temporary storage for uploaded files.
        comparison_threads: threads that compare runs.
    """

    def __init__(
        self,
        settings: Settings,
        run: Path | None = None,
        model: Model | None = None,
        engine: Engine | None = None,
        *,
        store: Store | None = None,
        images: CellImages | None = None,
    ):
        self.settings, self.store, self.images = settings, store, images
        self.digest = "" if model is None else model.digest()
        self.storage = UploadStorage(settings.upload_bytes)
        self.comparison_threads = ThreadPoolExecutor(COMPARISON_THREADS, "comparing")
        self._run, self._model = run, model
        self._network = None if engine is None else BatchedNetwork(engine)
        self._decoders = None if model is None else DecoderPool(model, settings)
        self._training_keys: Future[set[str] | None] | None = None

    @classmethod
    def open(
        cls,
        run: Path,
        settings: Settings,
        engine: str = "auto",
        *,
        expect: str | None = None,
        store: Store | None = None,
    ) -> "Services":
        """Load a model and choose its engine.

        Args:
            run: run folder or bundle.
            settings: limits of the server.
            engine: name of the engine.
            expect: first digits of the model's digest.
            store: database with labels and reviews.

        Raises:
            RunError: the folder holds no model or another one than expected, or the engine is not available.
        """
        model = Model.load(run, expect=expect)
        return cls(settings, Path(run), model, choose_engine(model, engine), store=store)

    @property
    def has_model(self) -> bool:
        """Whether the server can classify and count."""
        return self._model is not None

    @property
    def model(self) -> Model:
        """The model. Raises NoModelError without one, as do the next three."""
        return _require(self._model)

    @property
    def run(self) -> Path:
        """Run folder or bundle of the model."""
        return _require(self._run)

    @property
    def network(self) -> BatchedNetwork:
        """Thread that runs the networks of the model."""
        return _require(self._network)

    @property
    def decoders(self) -> DecoderPool:
        """Processes that decode uploaded files."""
        return _require(self._decoders)

    @property
    def engine(self) -> str:
        """Name of the engine, as tables have it."""
        return self.network.engine.name

    @property
    def title(self) -> str:
        """Name of the model, or of the cells to be labelled."""
        if self._model is not None:
            return self._model.config.name
        return "" if self.images is None else Path(self.images.name).name

    def label_classes(self) -> tuple[str, ...]:
        """Return the classes that labellers choose from: those of the model, else those set for the queue."""
        if self._model is not None:
            return tuple(self._model.classes)
        if self.store is None or self.images is None:
            return ()
        return tuple(self.store.labels.read_classes(self.images.name))

    def set_label_classes(self, names: Sequence[str]) -> tuple[str, ...]:
        """Set the classes that labellers choose from.

        Raises:
            RunError: a model defines the classes, or there are no cells to label.
            StoreError: see `LabelStore.set_classes`.
        """
        if self._model is not None:
            raise RunError(
                f"the classes are those of the model ({', '.join(self._model.classes)}); start the server without a "
                "run to choose other classes",
                code="labels.classes_of_model",
            )
        if self.store is None or self.images is None:
            raise RunError("no cells to label; start the server with --cells", code="labels.no_cells")
        return tuple(self.store.labels.set_classes(self.images.name, names))

    def start(self) -> None:
        """Start the decoders and the network's thread, and create the temporary storage."""
        self.storage.start()
        if self._decoders is not None:
            self._decoders.start()
        if self._network is not None:
            self._network.start()
        run = None if self._run is None else find_run(self._run)
        if self._model is not None and self._model.calibration is not None and run is not None:
            threads = ThreadPoolExecutor(1, "training-keys")
            self._training_keys = threads.submit(training_cell_keys, run, calibration=True)
            threads.shutdown(wait=False)

    def stop(self) -> None:
        """Finish running work, stop all threads and processes, and delete the temporary storage."""
        self.comparison_threads.shutdown(cancel_futures=True)
        if self._network is not None:
            self._network.stop()
        if self._decoders is not None:
            self._decoders.stop()
        if self.store is not None:
            self.store.close()
        self.storage.stop()

    @property
    def is_ready(self) -> bool:
        """Whether the server can answer requests."""
        return self._network is None or self._network.is_running

    async def classify(self, uploads: Sequence[Upload], *, keys: bool = False) -> AsyncIterator[list[ImageResult]]:
        """Classify files, as `urnet predict` does.

        Args:
            uploads: the files.
            keys: whether to say what each image shares with its copies.

        Yields:
            The answers for each file, in order, as they are there.
        """
        left, running = iter(uploads), deque[asyncio.Task[list[ImageResult]]]()
        try:
            while True:
                while len(running) < PARALLEL_FILES and (upload := next(left, None)) is not None:
                    running.append(asyncio.create_task(self._classify_file(upload, keys)))
                if not running:
                    return
                yield await running.popleft()
        finally:
            for task in running:
                task.cancel()

    async def count(
        self, name: str, folder: UploadFolder, uploads: Sequence[Upload], *, partial: bool = False
    ) -> SampleCount:
        """Count the cells of one sample, as `urnet differential` does.

        Args:
            name: of the sample.
            folder: where the files lie.
            uploads: fields of view, or crops.
            partial: count the other fields where some cannot be read.

        Raises:
            RunError: the model is not calibrated.
            CellsError: no image could be used.
            UnreadableError: a field cannot be read.
            ImageError: the fields cannot be cut.
            StorageFullError: there is no room for their cells.
        """
        if self.model.calibration is None:
            raise RunError(NOT_CALIBRATED)
        cut = await self.extract_cells(folder, uploads)
        if cut.fields and cut.unreadable and not partial:
            raise UnreadableError(cut.unreadable, len(uploads))
        answers: list[ImageResult] = []
        async with aclosing(self.classify(cut.sources, keys=True)) as files:
            async for part in files:
                answers += [answer for answer in part if not answer.is_padding]
        good = [answer for answer in answers if not answer.error]
        failed = [*cut.unreadable, *[answer for answer in answers if answer.error]]
        if failed and not good and (cut.sources or not cut.fields):
            raise CellsError(f"none of the {len(failed)} image(s) could be used; the first: {failed[0].reason}")
        notes = [*cut.notes, *await self.collect_notes(answers)]
        return SampleCount(await asyncio.to_thread(self.count_results, name, good), notes, failed, bool(cut.fields))

    async def extract_cells(self, folder: UploadFolder, uploads: Sequence[Upload]) -> UploadedCells:
        """Cut the cells out of fields, where the files are fields and no crops, into a folder `cells` beside theirs.

        Args:
            folder: where the files lie.
            uploads: the files.

        Raises:
            ImageError: they cannot be cut.
            StorageFullError: there is no room for the cells.
        """
        names = {upload.path.name: upload.name for upload in uploads if upload.path is not None}
        told: dict[str, Any] = {"fields": False}
        out = folder.root / "cells"
        if names:
            told = await self.decoders.extract_cells(
                folder, out, [upload for upload in uploads if upload.path is not None]
            )
        if not told["fields"]:
            return UploadedCells(list(uploads))
        size = await asyncio.to_thread(size_of, out)
        try:
            folder.reserve(size)
        except StorageFullError:  # what is not counted must not lie there
            await asyncio.to_thread(shutil.rmtree, out, ignore_errors=True)
            raise
        unreadable = told["unreadable"]
        whys = [(one.name, one.error if one.path is None else unreadable.get(one.path.name, "")) for one in uploads]
        lost = [ImageResult(name, error=why) for name, why in whys if why]
        numbers = {one["name"]: number for number, one in enumerate(told["seen"])}
        return UploadedCells(
            [Upload("cells", out, usage=folder.usage)] * (told["cells"] > 0),
            [*_note_unreadable(lost, len(uploads)), *told["notes"]],
            [
                FieldPreview(names.get(one["name"], one["name"]), out / one["picture"], one["height"], one["width"])
                for one in told["seen"]
            ],
            [CellPosition(numbers[name], float(x), float(y)) for name, x, y in told["places"]],
            lost,
        )

    async def collect_notes(self, answers: Sequence[ImageResult]) -> list[str]:
        """What the user should know of images, padding left out: that training saw them, that some cannot be used."""
        notes, keys = [], [answer.key for answer in answers if not answer.error]
        if self._training_keys is not None and keys:
            seen = await asyncio.shield(asyncio.wrap_future(self._training_keys))
            notes += overlap_warnings(keys, seen, calibration=True)
        if failed := sum(bool(answer.error) for answer in answers):
            notes.append(f"{failed} image(s) could not be used and belong to no sample.")
        return notes

    def count_results(self, name: str, answers: Sequence[ImageResult]) -> Sample:
        """The counts of usable images, by a calibrated model.

        Args:
            name: of the sample.
            answers: for its images, those without an error.

        Raises:
            RunError: the model is not calibrated.
        """
        if self.model.calibration is None:
            raise RunError(NOT_CALIBRATED)
        known, classes = self.model.calibration.reference, self.model.classes
        probabilities = np.array([[answer.row[f"p_{c}"] for c in classes] for answer in answers], np.float64)
        rejected = [answer.row["rejected"] for answer in answers]
        return count_sample(name, probabilities, rejected, known.confusion, classes, reference=known)

    async def classify_file(self, upload: Upload, *, keys: bool = False) -> AsyncIterator[list[ImageResult]]:
        """Classify the images of one file, as `urnet predict` does.

        Args:
            upload: the file, or a folder of cells that `extract_cells` made.
            keys: whether to say what each image shares with its copies.

        Yields:
            The answers for its images, in order, as they are there. One that names no image says that the rest of the
            file cannot be read.
        """
        if upload.path is None:
            yield [ImageResult(upload.name, error=upload.error)]
            return
        start, there, used = 0, 1, Usage()
        while start < there:
            try:
                there, cells = await self.decoders.read(upload, start, start + CHUNK_IMAGES, keys=keys, file=used)
            except ImageError as error:
                yield [ImageResult(upload.name, error=str(error))]
                return
            yield await self._classify_cells(cells)
            start += CHUNK_IMAGES

    async def _classify_file(self, upload: Upload, keys: bool) -> list[ImageResult]:
        """All images of one file."""
        async with aclosing(self.classify_file(upload, keys=keys)) as parts:
            return [answer async for part in parts for answer in part]

    async def _classify_cells(self, cells: Sequence[DecodedCell]) -> list[ImageResult]:
        good = [cell for cell in cells if cell.crop is not None]
        rows = iter(())
        if good:
            crops = np.stack([cell.crop for cell in good])  # (B, C, S, S)
            probabilities, _, features = await self.network.run(crops)
            seen = pd.DataFrame([cell.seen for cell in good])

            def tell() -> list[dict[str, Any]]:
                told = self.model.prediction_rows(probabilities, features, crops, seen, COVERAGE)
                return [{name: _round_as_written(value) for name, value in row.items()} for row in told]

            rows = iter(await asyncio.to_thread(tell))
        return [
            ImageResult(cell.path, error=cell.error) if cell.error else ImageResult(cell.path, next(rows), key=cell.key)
            for cell in cells
        ]


def _require(part: "T | None") -> T:
    if part is None:
        raise NoModelError
    return part


def _note_unreadable(lost: Sequence[ImageResult], files: int) -> list[str]:
    """A note on which files a count leaves out."""
    if not lost:
        return []
    named = list_first([answer.path for answer in lost])
    return [f"{files - len(lost)} of the {files} files are counted; {named} cannot be read."]


def _round_as_written(value: Any) -> Any:
    """Probabilities with the six decimals that tables have."""
    return round(value, 6) if type(value) is float else value
