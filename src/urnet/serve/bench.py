"""What the API and the pages call: classify what was sent, count it, with the functions of the command line."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from urnet.bundle import Model
from urnet.calibration.calibration import COVERAGE
from urnet.differential.sample import Sample, count_sample
from urnet.errors import CellsError, ImageError, RunError
from urnet.evaluation.scored import seen_among, training_keys
from urnet.export.engine import Engine, choose_engine
from urnet.predict import PADDING
from urnet.serve.batching import Network
from urnet.serve.settings import Settings
from urnet.serve.store import Store
from urnet.serve.uploads import Cell, Decoders, Upload
from urnet.training.run import Run

PART = 16
"""Images that one request has with the decoders or the network at a time, of one file."""

FILES = 8
"""Files of one request that are worked on side by side."""


@dataclass(frozen=True)
class Answer:
    """What is said of one image.

    Attributes:
        path: its address, with the client's name of the file: `stack.tif#p001`.
        row: `predicted` and `Model.columns`, as `urnet predict` writes them; empty where there is an error.
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
        self._trained_on: Future[set[str] | None] | None = None

    @classmethod
    def open(cls, run: Path, settings: Settings, engine: str = "auto", **more: Any) -> "Bench":
        """Load a model and choose its engine.

        Raises:
            RunError: no model there, or the engine cannot be had.
        """
        model = Model.load(run)
        return cls(Path(run), model, choose_engine(model, engine), settings, **more)

    @property
    def engine(self) -> str:
        """What runs the networks, as tables say it."""
        return self.network.engine.name

    def start(self) -> None:
        """Start the decoders and the network's thread."""
        self.decoders.start()
        self.network.start()
        if self.model.calibration is not None and Run(self.run).recipe_path.is_file():
            aside = ThreadPoolExecutor(1, "training-keys")
            self._trained_on = aside.submit(training_keys, Run(self.run), calibration=True)
            aside.shutdown(wait=False)

    def stop(self) -> None:
        """Finish what runs, and end."""
        self.network.stop()
        self.decoders.stop()
        if self.store is not None:
            self.store.close()

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

    async def count(self, name: str, folder: Path, uploads: Sequence[Upload]) -> Counted:
        """Count the cells of one sample, as `urnet differential` does.

        Args:
            name: of the sample.
            folder: where the files lie.
            uploads: fields of view, or crops.

        Raises:
            RunError: the model is not calibrated.
            CellsError: no image could be used.
            ImageError: a field cannot be read.
        """
        calibration = self.model.calibration
        if calibration is None:
            raise RunError(
                "the model is not calibrated, so its counts cannot be corrected; run `urnet calibrate` on it"
            )
        usable = [upload for upload in uploads if upload.path is not None]
        cut = {"fields": False}
        if usable:
            cut = await self.decoders.cut(folder, folder.parent / "cells", usable)
        notes, sources = list(cut.get("notes", ())), uploads
        if cut["fields"]:
            refused = [upload for upload in uploads if upload.path is None]
            sources = [*refused, *[Upload("cells", folder.parent / "cells")] * (cut["cells"] > 0)]
        answers: list[Answer] = []
        async with aclosing(self.classify(sources, keys=True)) as files:
            async for part in files:
                answers += [answer for answer in part if not answer.is_padding]
        good = [answer for answer in answers if not answer.error]
        failed = [answer for answer in answers if answer.error]
        if failed and not good and not cut["fields"]:
            raise CellsError(f"none of the {len(failed)} image(s) could be used; the first: {failed[0].reason}")
        notes += await self._seen_in_training(good)
        if failed:
            notes.append(f"{len(failed)} image(s) could not be used and belong to no sample.")
        probabilities = np.array([[answer.row[f"p_{c}"] for c in self.model.classes] for answer in good], np.float64)
        rejected = [answer.row["rejected"] for answer in good]
        known = calibration.reference

        def count() -> Sample:
            return count_sample(name, probabilities, rejected, known.confusion, self.model.classes, reference=known)

        return Counted(await asyncio.to_thread(count), notes, failed, cut["fields"])

    async def _seen_in_training(self, answers: Sequence[Answer]) -> list[str]:
        if self._trained_on is None or not answers:
            return []
        seen = await asyncio.shield(asyncio.wrap_future(self._trained_on))
        return seen_among([answer.key for answer in answers], seen, calibration=True)

    async def _classify_file(self, upload: Upload, keys: bool) -> list[Answer]:
        """All images of one file, a part at a time."""
        if upload.path is None:
            return [Answer(upload.name, error=upload.error)]
        answers: list[Answer] = []
        start, there = 0, 1
        while start < there:
            try:
                there, cells = await self.decoders.read(upload, start, start + PART, keys=keys)
            except ImageError as error:
                return [*answers, Answer(upload.name, error=str(error))]
            answers += await self._classify_cells(cells)
            start += PART
        return answers

    async def _classify_cells(self, cells: Sequence[Cell]) -> list[Answer]:
        good = [cell for cell in cells if cell.crop is not None]
        rows = iter(())
        if good:
            crops = np.stack([cell.crop for cell in good])  # (B, C, S, S)
            probabilities, _, features = await self.network.run(crops)
            seen = pd.DataFrame([cell.seen for cell in good])

            def tell() -> list[dict[str, Any]]:
                told = self.model.rows(probabilities, features, crops, seen, COVERAGE)
                return [{name: _as_written(value) for name, value in row.items()} for row in told]

            rows = iter(await asyncio.to_thread(tell))
        return [
            Answer(cell.path, error=cell.error) if cell.error else Answer(cell.path, next(rows), key=cell.key)
            for cell in cells
        ]


def _as_written(value: Any) -> Any:
    """Probabilities with the six decimals that tables have."""
    return round(value, 6) if type(value) is float else value
