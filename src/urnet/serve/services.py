"""What the API and the pages call: classify what was sent, count it, with the functions of the command line."""

import asyncio
import shutil
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from urnet.bundle.model import Model
from urnet.calibration.calibration import COVERAGE
from urnet.counting.sample import Sample, count_sample
from urnet.errors import CellsError, ImageError, RunError, list_first
from urnet.evaluation.predictions import seen_among, training_keys
from urnet.export.engine import Engine, choose_engine
from urnet.predict import PADDING
from urnet.run_folder import find_run
from urnet.serve.batching import Network
from urnet.serve.database.store import Store
from urnet.serve.settings import Settings
from urnet.serve.uploads.receive import Cell, Decoders, Upload
from urnet.serve.uploads.storage import Aside, FullError, Scratch, Usage, size_of

NOT_CALIBRATED = "the model is not calibrated, so its counts cannot be corrected; run `urnet calibrate` on it"

PART = 16
"""Images that one request has with the decoders or the network at a time, of one file."""

COMPARISONS = 2
"""Pairs of runs that are compared at a time, in threads of their own: pictures and answers do not wait for them."""

FILES = 8
"""Files of one request that are worked on side by side."""


@dataclass(frozen=True)
class Answer:
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
        lost: what cannot be read, and why.
        files: number of files in all.
    """

    code = "fields.unreadable"

    def __init__(self, lost: "Sequence[Answer]", files: int):
        super().__init__(
            f"{len(lost)} of the {files} files cannot be read, and a count over the others is not that of the sample: "
            f"mend or leave out these, or ask for a partial count; the first: {lost[0].reason}"
        )
        self.lost = lost


@dataclass(frozen=True)
class Counted:
    """The differential of what was sent.

    Attributes:
        sample: the counts.
        notes: what the user should know.
        failed: images that could not be used.
        fields: whether cells were cut out of fields of view.
    """

    sample: Sample
    notes: list[str]
    failed: list[Answer]
    fields: bool


@dataclass(frozen=True)
class FieldSeen:
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
class Place:
    """Where a cell lies.

    Attributes:
        field: number of its field.
        x, y: of its middle, px of the field.
    """

    field: int
    x: float
    y: float


@dataclass(frozen=True)
class Cut:
    """What is to be classified of what was sent.

    Attributes:
        sources: files of crops, or the folder of cells that were cut out of fields.
        notes: on the fields.
        fields: what is known of each; none where the files are crops.
        places: where each cell lies, in the order of the cells' folder.
        lost: what cannot be read of fields.
    """

    sources: list[Upload]
    notes: list[str] = field(default_factory=list)
    fields: list[FieldSeen] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    lost: list[Answer] = field(default_factory=list)


class Bench:
    """A trained model that is ready to work for several at once.

    Args:
        run: run folder or bundle.
        model: what lies in it.
        engine: what runs its networks.
        settings: the limits.
        store: where labels and corrections are kept; none for a server that only answers instruments.
        cells: the cells to be labelled, if any.
    """

    def __init__(
        self,
        run: Path,
        model: Model,
        engine: Engine,
        settings: Settings,
        store: Store | None = None,
        cells: Path | None = None,
    ):
        self.run, self.model, self.settings, self.store, self.cells = run, model, settings, store, cells
        self.digest = model.digest()
        self.network = Network(engine)
        self.decoders = Decoders(model, settings)
        self.scratch = Scratch(settings.upload_bytes)
        self.comparing = ThreadPoolExecutor(COMPARISONS, "comparing")
        self._trained_on: Future[set[str] | None] | None = None

    @classmethod
    def open(
        cls, run: Path, settings: Settings, engine: str = "auto", *, expect: str | None = None, **more: Any
    ) -> "Bench":
        """Load a model and choose its engine.

        Raises:
            RunError: no model there, another one than expected, or the engine cannot be had.
        """
        model = Model.load(run, expect=expect)
        return cls(Path(run), model, choose_engine(model, engine), settings, **more)

    @property
    def engine(self) -> str:
        """What runs the networks, as tables say it."""
        return self.network.engine.name

    def start(self) -> None:
        """Start the decoders and the network's thread, and make room for what will be sent."""
        self.scratch.start()
        self.decoders.start()
        self.network.start()
        run = find_run(self.run)
        if self.model.calibration is not None and run is not None:
            aside = ThreadPoolExecutor(1, "training-keys")
            self._trained_on = aside.submit(training_keys, run, calibration=True)
            aside.shutdown(wait=False)

    def stop(self) -> None:
        """Finish what runs, and end."""
        self.comparing.shutdown(cancel_futures=True)
        self.network.stop()
        self.decoders.stop()
        if self.store is not None:
            self.store.close()
        self.scratch.stop()

    @property
    def is_ready(self) -> bool:
        """Whether it can answer."""
        return self.network.is_running

    async def classify(self, uploads: Sequence[Upload], *, keys: bool = False) -> AsyncIterator[list[Answer]]:
        """Classify files, as `urnet predict` does.

        Args:
            uploads: the files.
            keys: whether to say what each image shares with its copies.

        Yields:
            The answers for each file, in order, as they are there.
        """
        left, running = iter(uploads), deque[asyncio.Task[list[Answer]]]()
        try:
            while True:
                while len(running) < FILES and (upload := next(left, None)) is not None:
                    running.append(asyncio.create_task(self._classify_file(upload, keys)))
                if not running:
                    return
                yield await running.popleft()
        finally:
            for task in running:
                task.cancel()

    async def count(self, name: str, aside: Aside, uploads: Sequence[Upload], *, partial: bool = False) -> Counted:
        """Count the cells of one sample, as `urnet differential` does.

        Args:
            name: of the sample.
            aside: where the files lie.
            uploads: fields of view, or crops.
            partial: count the other fields where some cannot be read.

        Raises:
            RunError: the model is not calibrated.
            CellsError: no image could be used.
            UnreadableError: a field cannot be read.
            ImageError: the fields cannot be cut.
            FullError: there is no room for their cells.
        """
        if self.model.calibration is None:
            raise RunError(NOT_CALIBRATED)
        cut = await self.cut(aside, uploads)
        if cut.fields and cut.lost and not partial:
            raise UnreadableError(cut.lost, len(uploads))
        answers: list[Answer] = []
        async with aclosing(self.classify(cut.sources, keys=True)) as files:
            async for part in files:
                answers += [answer for answer in part if not answer.is_padding]
        good = [answer for answer in answers if not answer.error]
        failed = [*cut.lost, *[answer for answer in answers if answer.error]]
        if failed and not good and (cut.sources or not cut.fields):
            raise CellsError(f"none of the {len(failed)} image(s) could be used; the first: {failed[0].reason}")
        notes = [*cut.notes, *await self.notes_on(answers)]
        return Counted(await asyncio.to_thread(self.sample, name, good), notes, failed, bool(cut.fields))

    async def cut(self, aside: Aside, uploads: Sequence[Upload]) -> Cut:
        """Cut the cells out of fields, where the files are fields and no crops, into a folder `cells` beside theirs.

        Args:
            aside: where the files lie.
            uploads: the files.

        Raises:
            ImageError: they cannot be cut.
            FullError: there is no room for the cells.
        """
        names = {upload.path.name: upload.name for upload in uploads if upload.path is not None}
        told: dict[str, Any] = {"fields": False}
        out = aside.root / "cells"
        if names:
            told = await self.decoders.cut(aside, out, [upload for upload in uploads if upload.path is not None])
        if not told["fields"]:
            return Cut(list(uploads))
        size = await asyncio.to_thread(size_of, out)
        try:
            aside.take(size)
        except FullError:  # what is not counted must not lie there
            await asyncio.to_thread(shutil.rmtree, out, ignore_errors=True)
            raise
        unreadable = told["unreadable"]
        whys = [(one.name, one.error if one.path is None else unreadable.get(one.path.name, "")) for one in uploads]
        lost = [Answer(name, error=why) for name, why in whys if why]
        numbers = {one["name"]: number for number, one in enumerate(told["seen"])}
        return Cut(
            [Upload("cells", out, usage=aside.usage)] * (told["cells"] > 0),
            [*_without(lost, len(uploads)), *told["notes"]],
            [
                FieldSeen(names.get(one["name"], one["name"]), out / one["picture"], one["height"], one["width"])
                for one in told["seen"]
            ],
            [Place(numbers[name], float(x), float(y)) for name, x, y in told["places"]],
            lost,
        )

    async def notes_on(self, answers: Sequence[Answer]) -> list[str]:
        """What the user should know of images, padding left out: that training saw them, that some cannot be used."""
        notes, keys = [], [answer.key for answer in answers if not answer.error]
        if self._trained_on is not None and keys:
            seen = await asyncio.shield(asyncio.wrap_future(self._trained_on))
            notes += seen_among(keys, seen, calibration=True)
        if failed := sum(bool(answer.error) for answer in answers):
            notes.append(f"{failed} image(s) could not be used and belong to no sample.")
        return notes

    def sample(self, name: str, answers: Sequence[Answer]) -> Sample:
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

    async def classify_file(self, upload: Upload, *, keys: bool = False) -> AsyncIterator[list[Answer]]:
        """Classify the images of one file, as `urnet predict` does.

        Args:
            upload: the file, or a folder of cells that `cut` made.
            keys: whether to say what each image shares with its copies.

        Yields:
            The answers for its images, in order, as they are there. One that names no image says that the rest of the
            file cannot be read.
        """
        if upload.path is None:
            yield [Answer(upload.name, error=upload.error)]
            return
        start, there, used = 0, 1, Usage()
        while start < there:
            try:
                there, cells = await self.decoders.read(upload, start, start + PART, keys=keys, file=used)
            except ImageError as error:
                yield [Answer(upload.name, error=str(error))]
                return
            yield await self._classify_cells(cells)
            start += PART

    async def _classify_file(self, upload: Upload, keys: bool) -> list[Answer]:
        """All images of one file."""
        async with aclosing(self.classify_file(upload, keys=keys)) as parts:
            return [answer async for part in parts for answer in part]

    async def _classify_cells(self, cells: Sequence[Cell]) -> list[Answer]:
        good = [cell for cell in cells if cell.crop is not None]
        rows = iter(())
        if good:
            crops = np.stack([cell.crop for cell in good])  # (B, C, S, S)
            probabilities, _, features = await self.network.run(crops)
            seen = pd.DataFrame([cell.seen for cell in good])

            def tell() -> list[dict[str, Any]]:
                told = self.model.prediction_rows(probabilities, features, crops, seen, COVERAGE)
                return [{name: _as_written(value) for name, value in row.items()} for row in told]

            rows = iter(await asyncio.to_thread(tell))
        return [
            Answer(cell.path, error=cell.error) if cell.error else Answer(cell.path, next(rows), key=cell.key)
            for cell in cells
        ]


def _without(lost: Sequence[Answer], files: int) -> list[str]:
    """A note on which files a count leaves out."""
    if not lost:
        return []
    named = list_first([answer.path for answer in lost])
    return [f"{files - len(lost)} of the {files} files are counted; {named} cannot be read."]


def _as_written(value: Any) -> Any:
    """Probabilities with the six decimals that tables have."""
    return round(value, 6) if type(value) is float else value
