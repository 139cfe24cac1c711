"""Services that routes and pages share: classify and count uploads, and label cells.

All rules of the domain are here or in the functions of the command line; a route only translates from and to HTTP.
"""

import asyncio
import shutil
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from urnet.bundle.model import Model
from urnet.calibration.conformal import COVERAGE
from urnet.counting.sample import Sample, count_sample
from urnet.errors import ImageError, RunError, list_first
from urnet.export.engine import Engine, choose_engine
from urnet.run_folder import find_run
from urnet.serve.batching import BatchedNetwork
from urnet.serve.cell_images import CellImages
from urnet.serve.database.labels import LabelStore
from urnet.serve.database.store import Store
from urnet.serve.results import (
    CellPosition,
    FieldPreview,
    ImageResult,
    NoUsableImageError,
    SampleCount,
    UnreadableError,
    UploadedCells,
)
from urnet.serve.settings import Settings
from urnet.serve.uploads.decoders import DecoderPool, UploadedCell
from urnet.serve.uploads.receive import Upload
from urnet.serve.uploads.storage import StorageFullError, UploadFolder, UploadStorage, Usage, measure_bytes

T = TypeVar("T")

NOT_CALIBRATED = "the model is not calibrated, so its counts cannot be corrected; run `urnet calibrate` on it"
UNUSED_PIXEL_SIZE = "pixel_size_um was not used: the files are crops, which are classified as they are."

CHUNK_IMAGES = 16
"""Images of one file that a request has with the decoders or the network at a time."""

COMPARISON_THREADS = 2
"""Pairs of runs that are compared at a time, in threads of their own, so that other requests do not wait."""

PARALLEL_FILES = 8
"""Files of one request that are decoded and classified side by side."""


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
    def is_calibrated(self) -> bool:
        """Whether the server can count: the model is calibrated."""
        return self.has_model and self.model.calibration is not None

    @property
    def can_crop_fields(self) -> bool:
        """Whether samples may be fields of view: the model was trained on crops of fields, and is calibrated."""
        return self.is_calibrated and self.model.cropping is not None

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

    def add_label_classes(self, names: Sequence[str]) -> tuple[str, ...]:
        """Add classes that labellers choose from.

        Raises:
            RunError: a model defines the classes, or there are no cells to label.
            StoreError: see `LabelStore.add_classes`.
        """
        labels, queue = self._editable_queue()
        return tuple(labels.add_classes(queue, names))

    def remove_label_class(self, name: str) -> tuple[str, ...]:
        """Remove a class that labellers choose from.

        Raises:
            RunError: a model defines the classes, or there are no cells to label.
            StoreError: some cells have this label.
        """
        labels, queue = self._editable_queue()
        return tuple(labels.remove_class(queue, name))

    def rename_label_class(self, name: str, new_name: str) -> tuple[str, ...]:
        """Rename a class that labellers choose from, also in its labels.

        Raises:
            RunError: a model defines the classes, or there are no cells to label.
            StoreError: see `LabelStore.rename_class`.
        """
        labels, queue = self._editable_queue()
        return tuple(labels.rename_class(queue, name, new_name))

    def _editable_queue(self) -> tuple[LabelStore, str]:
        """Return the labels and the name of the queue, if its classes can be changed."""
        if self._model is not None:
            raise RunError(
                f"the classes are those of the model ({', '.join(self._model.classes)}); start the server without a "
                "run to choose other classes",
                code="labels.classes_of_model",
            )
        if self.store is None or self.images is None:
            raise RunError("no cells to label; start the server with --cells", code="labels.no_cells")
        return self.store.labels, self.images.name

    def start(self) -> None:
        """Start the decoders and the network's thread, and create the temporary storage."""
        self.storage.start()
        if self._decoders is not None:
            self._decoders.start()
        if self._network is not None:
            self._network.start()
        if self.is_calibrated and (run := find_run(self.run)) is not None:
            from urnet.evaluation.predictions import training_cell_keys  # imports torch, which labelling does not need

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

    async def classify(
        self, uploads: Sequence[Upload], *, copy_keys: bool = False
    ) -> AsyncGenerator[list[ImageResult], None]:
        """Classify files, as `urnet predict` does.

        Args:
            uploads: the files.
            copy_keys: compute the key that copies of each image share.

        Yields:
            The results of each file, in order, as soon as they are known.
        """
        left, running = iter(uploads), deque[asyncio.Task[list[ImageResult]]]()
        try:
            while True:
                while len(running) < PARALLEL_FILES and (upload := next(left, None)) is not None:
                    running.append(asyncio.create_task(self._classify_whole_file(upload, copy_keys)))
                if not running:
                    return
                yield await running.popleft()
        finally:
            for task in running:
                task.cancel()

    async def classify_all(self, uploads: Sequence[Upload]) -> list[tuple[Upload, ImageResult]]:
        """Classify files, and leave out the padding of montages.

        Returns:
            The results of all images, each with its file.

        Raises:
            NoUsableImageError: no image can be used.
        """
        results: list[tuple[Upload, ImageResult]] = []
        async with aclosing(self.classify(uploads)) as files:
            number = 0
            async for file in files:
                results += [(uploads[number], result) for result in file if not result.is_padding]
                number += 1
        if all(result.error for _, result in results):
            raise NoUsableImageError([result for _, result in results])
        return results

    async def count(
        self,
        name: str,
        folder: UploadFolder,
        uploads: Sequence[Upload],
        *,
        partial: bool = False,
        has_pixel_size: bool = False,
    ) -> SampleCount:
        """Count the cells of one sample, as `urnet differential` does.

        Args:
            name: name of the sample.
            folder: folder of the files.
            uploads: fields of view, or crops.
            partial: count the other fields where some cannot be read.
            has_pixel_size: the client gave a pixel size; a note says so where it is not used.

        Raises:
            RunError: the model is not calibrated.
            NoUsableImageError: no image can be used.
            UnreadableError: a field cannot be read.
            ImageError: the fields cannot be cropped.
            StorageFullError: the storage has no room for the cells.
        """
        if all(upload.error for upload in uploads):
            raise NoUsableImageError([ImageResult(one.name, error=one.error, code=one.code) for one in uploads])
        if not self.is_calibrated:
            raise RunError(NOT_CALIBRATED, code="model.not_calibrated")
        cells = await self.extract_cells(folder, uploads)
        if cells.fields and cells.unreadable and not partial:
            raise UnreadableError(cells.unreadable, len(uploads))
        results: list[ImageResult] = []
        async with aclosing(self.classify(cells.sources, copy_keys=True)) as files:
            async for file in files:
                results += [result for result in file if not result.is_padding]
        usable = [result for result in results if not result.error]
        failed = [*cells.unreadable, *[result for result in results if result.error]]
        if failed and not usable and (cells.sources or not cells.fields):
            raise NoUsableImageError(failed)
        notes = [*cells.notes, *await self.collect_notes(results)]
        if has_pixel_size and not cells.fields:
            notes.append(UNUSED_PIXEL_SIZE)
        return SampleCount(await asyncio.to_thread(self.count_results, name, usable), notes, failed, bool(cells.fields))

    async def extract_cells(self, folder: UploadFolder, uploads: Sequence[Upload]) -> UploadedCells:
        """Crop the cells of fields into a folder `cells` beside the files; crops stay as they are.

        Args:
            folder: folder of the files.
            uploads: the files.

        Raises:
            ImageError: the fields cannot be cropped.
            StorageFullError: the storage has no room for the cells.
        """
        names = {upload.path.name: upload.name for upload in uploads if upload.path is not None}
        reply: dict[str, Any] = {"fields": False}
        out = folder.root / "cells"
        if names:
            stored = [upload for upload in uploads if upload.path is not None]
            reply = await self.decoders.extract_cells(folder, out, stored)
        if not reply["fields"]:
            return UploadedCells(list(uploads))
        size = await asyncio.to_thread(measure_bytes, out)
        try:
            folder.reserve(size)
        except StorageFullError:  # bytes that are not counted must not stay
            await asyncio.to_thread(shutil.rmtree, out, ignore_errors=True)
            raise
        unreadable = []
        for one in uploads:
            error, code = (
                (one.error, one.code) if one.path is None else reply["unreadable"].get(one.path.name, ("", ""))
            )
            if error:
                unreadable.append(ImageResult(one.name, error=error, code=code))
        numbers = {one["name"]: number for number, one in enumerate(reply["seen"])}
        return UploadedCells(
            [Upload("cells", out, usage=folder.usage)] * (reply["cells"] > 0),
            [*_note_unreadable(unreadable, len(uploads)), *reply["notes"]],
            [
                FieldPreview(names.get(one["name"], one["name"]), out / one["preview"], one["height"], one["width"])
                for one in reply["seen"]
            ],
            [CellPosition(numbers[name], float(x), float(y)) for name, x, y in reply["places"]],
            unreadable,
        )

    async def collect_notes(self, results: Sequence[ImageResult]) -> list[str]:
        """Collect notes on classified images: overlap with the training, and unusable images."""
        notes, keys = [], [result.copy_key for result in results if not result.error]
        if self._training_keys is not None and keys:
            from urnet.evaluation.predictions import overlap_warnings

            training = await asyncio.shield(asyncio.wrap_future(self._training_keys))
            notes += overlap_warnings(keys, training, calibration=True)
        if failed := sum(bool(result.error) for result in results):
            notes.append(f"{failed} image(s) could not be used and belong to no sample.")
        return notes

    def count_results(self, name: str, results: Sequence[ImageResult]) -> Sample:
        """Count classified images with the calibrated model.

        Args:
            name: name of the sample.
            results: results of usable images.

        Raises:
            RunError: the model is not calibrated.
        """
        if self.model.calibration is None:
            raise RunError(NOT_CALIBRATED, code="model.not_calibrated")
        reference, classes = self.model.calibration.reference, self.model.classes
        probabilities = np.array([[result.row[f"p_{c}"] for c in classes] for result in results], np.float64)
        rejected = [result.row["rejected"] for result in results]
        return count_sample(name, probabilities, rejected, reference.confusion, classes, reference=reference)

    async def classify_file(
        self, upload: Upload, *, copy_keys: bool = False
    ) -> AsyncGenerator[list[ImageResult], None]:
        """Classify the images of one file, as `urnet predict` does.

        Args:
            upload: the file, or a folder of cells that `extract_cells` wrote.
            copy_keys: compute the key that copies of each image share.

        Yields:
            The results of its images, in order, as soon as they are known. A result that names no image says that the
            rest of the file cannot be read.
        """
        if upload.path is None:
            yield [ImageResult(upload.name, error=upload.error, code=upload.code)]
            return
        start, count, usage = 0, 1, Usage()
        while start < count:
            try:
                count, cells = await self.decoders.read(
                    upload, start, start + CHUNK_IMAGES, copy_keys=copy_keys, file_usage=usage
                )
            except ImageError as error:
                yield [ImageResult(upload.name, error=str(error), code=error.code)]
                return
            yield await self._classify_cells(cells)
            start += CHUNK_IMAGES

    async def _classify_whole_file(self, upload: Upload, copy_keys: bool) -> list[ImageResult]:
        async with aclosing(self.classify_file(upload, copy_keys=copy_keys)) as chunks:
            return [result async for chunk in chunks for result in chunk]

    async def _classify_cells(self, cells: Sequence[UploadedCell]) -> list[ImageResult]:
        usable = [cell for cell in cells if cell.crop is not None]
        rows: Iterator[dict[str, Any]] = iter(())
        if usable:
            crops = np.stack([cell.crop for cell in usable])  # (B, C, S, S)
            probabilities, _, features = await self.network.run(crops)
            measures = pd.DataFrame([cell.measures for cell in usable])

            def make_rows() -> list[dict[str, Any]]:
                rows = self.model.prediction_rows(probabilities, features, crops, measures, COVERAGE)
                return [{name: _round_as_written(value) for name, value in row.items()} for row in rows]

            rows = iter(await asyncio.to_thread(make_rows))
        return [
            ImageResult(cell.path, error=cell.error, code=cell.code)
            if cell.error
            else ImageResult(cell.path, next(rows), copy_key=cell.copy_key)
            for cell in cells
        ]


def _require(part: T | None) -> T:
    if part is None:
        raise NoModelError
    return part


def _note_unreadable(unreadable: Sequence[ImageResult], files: int) -> list[str]:
    """Note which files a count leaves out."""
    if not unreadable:
        return []
    names = list_first([result.path for result in unreadable])
    return [f"{files - len(unreadable)} of the {files} files are counted; {names} cannot be read."]


def _round_as_written(value: Any) -> Any:
    """Round probabilities to the six decimals of tables."""
    return round(value, 6) if type(value) is float else value
