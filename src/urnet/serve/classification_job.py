"""What one browser has classified: its files, the answers as they come, pictures of each cell, the differential.

It belongs to the browser's session, not to the page that shows it: the work goes on while nobody looks, and a page
that comes back finds it as it is.
"""

import asyncio
import io
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from secrets import token_urlsafe
from typing import BinaryIO, Literal

import numpy as np

from urnet.bundle.model import Model
from urnet.calibration.conformal import split_set
from urnet.counting.report import render_page
from urnet.counting.sample import Sample
from urnet.errors import CellsError, ImageError, RecipeError, UrnetError
from urnet.files.csv_tables import format_csv
from urnet.serve.http.errors import RequestError, describe_error
from urnet.serve.services import PARALLEL_FILES, CellPosition, ImageResult, Services, UploadedCells
from urnet.serve.uploads.receive import Upload, store_upload
from urnet.serve.uploads.storage import UploadFolder
from urnet.version import __version__

PICTURES = 400
"""Pictures that are kept in memory."""

COUNT_SECONDS = 1.0
"""How often the cells that are there are counted while more come."""

AT_ONCE = 4
"""Classifications that run at a time, of all browsers together; others wait for their turn."""

UNFINISHED = "Not all images of this sample were classified when this was written."

Kind = Literal["raw", "enhanced", "heat"]
State = Literal["receiving", "waiting", "cutting", "classifying", "done", "cancelled", "failed", "closed"]
RUNNING: tuple[State, ...] = ("waiting", "cutting", "classifying")


@dataclass(frozen=True)
class Seen:
    """One image and what is said of it.

    Attributes:
        number: in the order in which they came.
        answer: what is said of it.
        source: the file that it is in.
        index: which image of that file.
        name: what people call it.
        place: where in its field it lies; none where it was not cut out of one.
    """

    number: int
    answer: ImageResult
    source: Upload
    index: int
    name: str
    place: CellPosition | None = None

    @property
    def rejected(self) -> str:
        """Why it is no countable cell; "" where it is one, or nobody can tell."""
        return self.answer.row.get("rejected", "")

    @property
    def set(self) -> list[str]:
        """Classes that cannot be ruled out; empty where the model is not calibrated."""
        return split_set(self.answer.row.get("set", ""))


class ClassificationJob:
    """Files of one sample on their way from the browser to the differential.

    Args:
        services: what classifies.
        turn: lets so many work at once.
        sample: name of the sample.
        pixel_um: µm per px of its fields of view, where their files do not say it or are wrong.

    Attributes:
        key: names it in addresses.
        state: how far it is.
        error: why it failed.
        uploads: the files.
        seen: their images.
        counted: the differential of those; while more come, it may lack the latest. None without a calibrated model.
        partial: whether fields that can be read are to be counted without those that cannot.
        reviewing: what became of keeping the predictions for review; "" where nobody asked for it.
        in_review: whether they are kept.
        changes: grows whenever something has changed.
    """

    def __init__(
        self, services: Services, turn: asyncio.Semaphore, sample: str = "sample", pixel_um: float | None = None
    ):
        self.services, self.turn, self.name, self.pixel_um = services, turn, sample, pixel_um
        self.key = token_urlsafe(12)
        self.state: State = "receiving"
        self.error = self.reviewing = ""
        self.uploads: list[Upload] = []
        self.seen: list[Seen] = []
        self.notes: list[str] = []
        self.counted: Sample | None = None
        self.cut = UploadedCells([])
        self.partial = self.in_review = False
        self.files_done = self.changes = 0
        self._bytes = 0
        self._of_field: Counter[int] = Counter()
        self._folder = UploadFolder(services.storage)
        self._task: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._counted_at = -COUNT_SECONDS
        self._pictures: OrderedDict[tuple[int, Kind], asyncio.Task[np.ndarray | None]] = OrderedDict()

    def close(self) -> None:
        """Stop, and delete the files; not waited for."""
        for task in (self._task, self._keeping):
            if task is not None:
                task.cancel()
        self.state = "closed"
        asyncio.get_running_loop().run_in_executor(None, self._folder.close)

    def add(self, files: Sequence[tuple[str, BinaryIO]]) -> None:
        """Take some files.

        Args:
            files: what the client calls each, and its content.

        Raises:
            RequestError: that would be too many or too much, or the work has begun.
            StorageFullError: the server holds as much as it may.
        """
        settings = self.services.settings
        if self.state != "receiving":
            raise RequestError(HTTPStatus.CONFLICT, "this sample has all its files; begin a new one")
        if len(self.uploads) + len(files) > settings.sample_files:
            raise RequestError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"more than the {settings.sample_files:,} files that one sample may have; send them as several samples",
            )
        for name, content in files:
            if self.state != "receiving":  # another sample was begun meanwhile
                raise RequestError(HTTPStatus.CONFLICT, "this sample was given up; begin a new one")
            self._bytes += content.seek(0, io.SEEK_END)
            content.seek(0)
            if self._bytes > settings.sample_bytes:
                raise RequestError(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"more than the {settings.sample_bytes:,} bytes that one sample may have; send several samples",
                )
            self.uploads.append(store_upload(self._folder, len(self.uploads), name, content, self.pixel_um))
        self.changes += 1

    def start(self) -> None:
        """Begin to classify."""
        if self.state == "receiving" and self.uploads:
            self._go("waiting")
            self._task = asyncio.create_task(self._work())

    def count_readable(self) -> None:
        """Count the fields that can be read without those that cannot; whoever sent them wants it so."""
        self.partial = True
        self.changes += 1
        if not self.is_running:
            self._task = asyncio.create_task(self._count_or_fail())

    def cancel(self) -> None:
        """Stop; what is there stays."""
        if self._task is not None and self.is_running:
            self._task.cancel()
            self._task = asyncio.create_task(self._count_or_fail())
            self._go("cancelled")

    @property
    def is_running(self) -> bool:
        """Whether more is to come."""
        return self.state in RUNNING

    @property
    def is_busy(self) -> bool:
        """Whether work goes on, a count or the keeping for review too."""
        return any(task is not None and not task.done() for task in (self._task, self._keeping))

    @property
    def can_count(self) -> bool:
        """Whether counts can be corrected."""
        return self.services.model.calibration is not None

    @property
    def is_undecided(self) -> bool:
        """Whether nothing is counted until a person says that it is to be counted without what cannot be read."""
        return bool(self.cut.fields and self.cut.unreadable) and not self.partial

    def raw_counts(self) -> Counter[str]:
        """How many images were called what, rejected ones left out."""
        called = (one.answer.row["predicted"] for one in self.seen if not one.answer.error and not one.rejected)
        return Counter(called)

    def to_csv(self) -> str:
        """The answers as `urnet predict` writes them; of cells of fields also where they lie."""
        columns = ["path", "predicted", *self.services.model.prediction_columns, "engine", "error"]
        columns += ["field", "x", "y"] if self.cut.fields else []
        rows = []
        for one in self.seen:
            row = {key: f"{value:.6f}" if type(value) is float else value for key, value in one.answer.row.items()}
            row |= {"path": one.answer.path, "error": one.answer.error}
            row["engine"] = "" if one.answer.error else self.services.engine
            if one.place is not None:
                row |= {"field": self.cut.fields[one.place.field].name, "x": one.place.x, "y": one.place.y}
            rows.append(row)
        return format_csv(columns, rows)

    def report(self) -> str | None:
        """The sample's page, as `urnet differential` writes it; none where nothing can be counted."""
        sample = self.counted
        if sample is None:
            return None
        config = self.services.model.config
        files = f"{len(self.uploads)} file(s) sent to the web application"
        about = {
            "run": self.services.run.name,
            "source": files,
            "model": f"{config.name}, seed {config.seed}",
            "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            "simulated": "",
            "notes": self.notes,
            "version": __version__,
        }
        return render_page(sample, about)

    @property
    def can_keep(self) -> bool:
        """Whether predictions can be kept for review: they are not yet, and there is a database."""
        return self.services.store is not None and not (self.in_review or self.is_keeping or self.is_undecided)

    @property
    def is_keeping(self) -> bool:
        """Whether predictions are being kept for review."""
        return self._keeping is not None and not self._keeping.done()

    def keep(self) -> None:
        """Keep predictions and images in the database, for people to review; where that failed, once more."""
        if self.can_keep:
            self.reviewing = "keeping what was classified for review"
            self.changes += 1
            self._keeping = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        store = self.services.store
        assert store is not None
        try:
            rows = []
            for one in [one for one in self.seen if not one.answer.error]:
                content, suffix = await self._file_of(one)
                digest = await asyncio.to_thread(store.reviews.add_image, content, suffix)
                rows.append({**one.answer.row, "path": one.name, "image": digest})
            await asyncio.to_thread(store.reviews.add_predictions, self.name, rows, model=self.services.digest)
            self.in_review, self.reviewing = True, f"{len(rows):,} predictions kept for review"
        except Exception as error:  # nobody awaits this task
            why = describe_error(error, f"keeping sample {self.key} of the page for review")
            self.reviewing = f"not kept for review: {why}"
        finally:
            asyncio.get_running_loop().call_soon(self._changed)  # when the task is done

    async def _file_of(self, one: Seen) -> tuple[bytes, str]:
        """An image as a file: the one that was sent, or the crop out of a larger one, in raw counts; its suffix."""
        path = one.source.path
        assert path is not None
        if path.is_file() and "#" not in one.answer.path:
            return await asyncio.to_thread(path.read_bytes), path.suffix
        _, cells = await self.services.decoders.read(one.source, one.index, one.index + 1)
        assert cells[0].crop is not None
        return await asyncio.to_thread(_tiff, cells[0].crop), ".tif"

    async def picture(self, number: int, kind: Kind) -> np.ndarray | None:
        """What can be shown of an image, in [0, 1]; none where it cannot be used or there is no such picture.

        Args:
            number: of the image.
            kind: `raw` and `enhanced` are (C, S, S), as the network gets and makes them; `heat` is (S, S), Grad-CAM of
                the predicted class.

        Raises:
            ImageError: it can no longer be read.
        """
        one = self.seen[number]
        if one.answer.error:
            return None
        found = self._pictures.get((number, kind))
        if found is None:  # a task, so that two who ask at once wait for the same one
            found = self._pictures[number, kind] = asyncio.create_task(self._make_picture(one, kind))
        self._pictures.move_to_end((number, kind))
        while len(self._pictures) > PICTURES:
            self._pictures.popitem(last=False)
        try:
            return await asyncio.shield(found)
        except UrnetError:
            self._pictures.pop((number, kind), None)
            raise

    async def _make_picture(self, one: Seen, kind: Kind) -> np.ndarray | None:
        _, cells = await self.services.decoders.read(one.source, one.index, one.index + 1)
        crop = cells[0].crop
        if crop is None:
            raise ImageError(cells[0].error)
        model, crops = self.services.model, crop[None]
        if kind == "enhanced":
            _, enhanced, _ = await self.services.network.run(crops)
            return np.clip(enhanced[0], 0, 1)
        raw = model.config.scaling.apply(crops)
        if kind == "raw":
            return raw[0]
        predicted = model.classes.index(one.answer.row["predicted"])
        return await self.services.network.call(_grad_cam, model, raw, predicted)

    async def _work(self) -> None:
        try:
            async with self.turn:
                if self.can_count:
                    self._go("cutting")
                    self.cut = await self.services.extract_cells(self._folder, self.uploads)
                else:
                    self.cut = UploadedCells(self.uploads)
                self.notes = [*self.cut.notes, UNFINISHED]
                for lost in self.cut.unreadable:
                    self._take(Upload(lost.path, None, lost.error), 0, [lost])
                self._go("classifying")
                await self._classify(self.cut.sources)
                await self._count()
                classified = self.seen[len(self.cut.unreadable) :]
                self.notes = [*self.cut.notes, *await self.services.collect_notes([one.answer for one in classified])]
                if self.counted is None:  # `count_readable` may have been called since
                    await self._count()
                self._go("done")
        except Exception as error:  # nobody awaits this task
            self._fail(error)

    async def _classify(self, sources: Sequence[Upload]) -> None:
        """All images of files, or of the folder of cells."""
        if len(sources) > PARALLEL_FILES:  # several side by side
            async with aclosing(self.services.classify(sources, copy_keys=True)) as files:
                async for answers in files:
                    self._take(sources[self.files_done], 0, answers)
                    self.files_done += 1
                    await self._count_at_times()
            return
        for source in sources:
            index = 0
            async with aclosing(self.services.classify_file(source, copy_keys=True)) as parts:
                async for answers in parts:
                    self._take(source, index, answers)
                    index += len(answers)
                    await self._count_at_times()
            self.files_done += 1

    def _take(self, source: Upload, first: int, answers: Sequence[ImageResult]) -> None:
        most = self.services.settings.sample_images
        if len(self.seen) + len(answers) > most:
            raise CellsError(f"more than the {most:,} images that one sample may have; send several samples")
        for index, answer in enumerate(answers, first):
            if answer.is_padding:
                continue
            place, name = None, answer.path
            if source.path is not None and source.path.is_dir() and index < len(self.cut.positions):
                place = self.cut.positions[index]
                self._of_field[place.field] += 1
                name = f"{self.cut.fields[place.field].name}, cell {self._of_field[place.field]}"
            self.seen.append(Seen(len(self.seen), answer, source, index, name, place))
        self.changes += 1

    async def _count_at_times(self) -> None:
        if time.monotonic() - self._counted_at >= COUNT_SECONDS:
            await self._count()

    async def _count(self) -> None:
        good = [one.answer for one in self.seen if not one.answer.error]
        if good and self.can_count and not self.is_undecided:
            self.counted = await asyncio.to_thread(self.services.count_results, self.name, good)
            self._counted_at = time.monotonic()
            self.changes += 1

    async def _count_or_fail(self) -> None:
        try:
            await self._count()
        except Exception as error:  # nobody awaits this task
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.error = describe_error(error, f"sample {self.key} of the page")
        self._go("failed")

    def _go(self, state: State) -> None:
        self.state = state
        self._changed()

    def _changed(self) -> None:
        self.changes += 1


def _tiff(crop: np.ndarray) -> bytes:
    """A crop (C, S, S) as TIFF at its own depth."""
    import tifffile

    file, colour = io.BytesIO(), crop.shape[0] == 3
    pixels = np.moveaxis(crop, 0, -1) if colour else crop[0]
    tifffile.imwrite(file, pixels, photometric="rgb" if colour else "minisblack")
    return file.getvalue()


def _grad_cam(model: Model, inputs: np.ndarray, predicted: int) -> np.ndarray | None:
    """Grad-CAM of a class in one image, (S, S); none where the classifier has no feature maps."""
    import torch

    from urnet.nets.gradcam import grad_cam

    try:
        return grad_cam(model.joint, torch.from_numpy(inputs), torch.tensor([predicted]))[0]
    except (RecipeError, ValueError):
        return None
