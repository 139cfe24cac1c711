"""A background job that classifies and counts the files of one sample.

The job belongs to the session of a browser, not to a page: it continues while the page is closed.
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
from urnet.serve.results import CellPosition, ImageResult, UploadedCells
from urnet.serve.services import PARALLEL_FILES, Services
from urnet.serve.uploads.receive import Upload, store_upload
from urnet.serve.uploads.storage import UploadFolder
from urnet.version import __version__

MAX_PICTURES = 400
"""Maximum number of pictures of one sample in memory."""

COUNT_INTERVAL_S = 1.0
"""Time between two estimates of the differential while cells are classified, in seconds."""

MAX_JOBS = 4
"""Maximum number of jobs that run at a time, over all browsers. Other jobs wait."""

INCOMPLETE = "The classification of this sample was not complete when this report was written."

PictureKind = Literal["raw", "enhanced", "heat"]
State = Literal["receiving", "waiting", "cropping", "classifying", "done", "cancelled", "failed", "closed"]
RUNNING: tuple[State, ...] = ("waiting", "cropping", "classifying")


@dataclass(frozen=True)
class ClassifiedImage:
    """One image of a sample and its prediction.

    Attributes:
        number: index in the order of classification.
        answer: the prediction, or the reason why there is none.
        source: the file that contains the image.
        index: index of the image in that file.
        name: name for users.
        place: position in the field of view; none if the image was not cropped from a field.
    """

    number: int
    answer: ImageResult
    source: Upload
    index: int
    name: str
    place: CellPosition | None = None

    @property
    def is_usable(self) -> bool:
        """Whether the image has a prediction."""
        return not self.answer.error

    @property
    def predicted(self) -> str:
        """The predicted class."""
        return self.answer.row["predicted"]

    @property
    def probability(self) -> float:
        """The probability of the predicted class."""
        return self.answer.row[f"p_{self.predicted}"]

    @property
    def rejected(self) -> str:
        """Reason why the image is no countable cell; empty if it is one, or if the model is not calibrated."""
        return self.answer.row.get("rejected", "")

    @property
    def prediction_set(self) -> list[str]:
        """Classes that cannot be ruled out; empty if the model is not calibrated."""
        return split_set(self.answer.row.get("set", ""))


class ClassificationJob:
    """Classification of one sample: uploaded files, predictions, pictures of the cells, and the differential.

    Args:
        services: the services that crop, classify and count.
        slots: limits the number of jobs that run at a time.
        sample: name of the sample.
        pixel_um: pixel size of the fields of view, in µm; overrides the value in the files.

    Attributes:
        key: identifier in URLs.
        state: present step.
        error: why the job failed.
        uploads: the uploaded files.
        images: the classified images.
        differential: the estimate over these images, at most `COUNT_INTERVAL_S` old; none if the model is not
            calibrated.
        is_partial: whether readable fields are counted although other fields cannot be read.
        is_saved: whether the predictions are in the database.
        save_message: result of saving the predictions for review; empty before that.
        version: number that grows with each change.
    """

    def __init__(
        self, services: Services, slots: asyncio.Semaphore, sample: str = "sample", pixel_um: float | None = None
    ):
        self.services, self.slots, self.name, self.pixel_um = services, slots, sample, pixel_um
        self.key = token_urlsafe(12)
        self.state: State = "receiving"
        self.error = self.save_message = ""
        self.uploads: list[Upload] = []
        self.images: list[ClassifiedImage] = []
        self.notes: list[str] = []
        self.differential: Sample | None = None
        self.cropped = UploadedCells([])
        self.is_partial = self.is_saved = False
        self.files_done = self.version = 0
        self._bytes = 0
        self._cells_of_field: Counter[int] = Counter()
        self._folder = UploadFolder(services.storage)
        self._task: asyncio.Task[None] | None = None
        self._saving: asyncio.Task[None] | None = None
        self._counted_at = -COUNT_INTERVAL_S
        self._pictures: OrderedDict[tuple[int, PictureKind], asyncio.Task[np.ndarray | None]] = OrderedDict()

    def close(self) -> None:
        """Stop the job and delete its files in the background."""
        for task in (self._task, self._saving):
            if task is not None:
                task.cancel()
        self.state = "closed"
        asyncio.get_running_loop().run_in_executor(None, self._folder.close)

    def add(self, files: Sequence[tuple[str, BinaryIO]]) -> None:
        """Store uploaded files.

        Args:
            files: the client's name and the content of each file.

        Raises:
            RequestError: the sample exceeds a limit, or the job has started.
            StorageFullError: the storage for uploads is full.
        """
        settings = self.services.settings
        if self.state != "receiving":
            raise RequestError(HTTPStatus.CONFLICT, "the upload of this sample is complete; start a new sample")
        if len(self.uploads) + len(files) > settings.sample_files:
            raise RequestError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"a sample may have {settings.sample_files:,} files at most; split it into several samples",
            )
        for name, content in files:
            if self.state != "receiving":  # closed by another request meanwhile
                raise RequestError(HTTPStatus.CONFLICT, "this sample was replaced by a new one; start again")
            self._bytes += content.seek(0, io.SEEK_END)
            content.seek(0)
            if self._bytes > settings.sample_bytes:
                raise RequestError(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"a sample may have {settings.sample_bytes:,} bytes at most; split it into several samples",
                )
            self.uploads.append(store_upload(self._folder, len(self.uploads), name, content, self.pixel_um))
        self.version += 1

    def start(self) -> None:
        """Start to classify the uploaded files."""
        if self.state == "receiving" and self.uploads:
            self._enter("waiting")
            self._task = asyncio.create_task(self._run())

    def count_partial(self) -> None:
        """Count the readable fields although other fields cannot be read, as the user decided."""
        self.is_partial = True
        self.version += 1
        if not self.is_running:
            self._task = asyncio.create_task(self._count_or_fail())

    def cancel(self) -> None:
        """Stop the job; the results so far stay."""
        if self._task is not None and self.is_running:
            self._task.cancel()
            self._task = asyncio.create_task(self._count_or_fail())
            self._enter("cancelled")

    @property
    def is_running(self) -> bool:
        """Whether images are still to be classified."""
        return self.state in RUNNING

    @property
    def is_busy(self) -> bool:
        """Whether any task is in progress, counting and saving included."""
        return any(task is not None and not task.done() for task in (self._task, self._saving))

    @property
    def can_count(self) -> bool:
        """Whether the model is calibrated, so that counts can be corrected."""
        return self.services.model.calibration is not None

    @property
    def needs_decision(self) -> bool:
        """Whether the user must decide if the readable fields are counted without the others."""
        return bool(self.cropped.fields and self.cropped.unreadable) and not self.is_partial

    @property
    def progress(self) -> tuple[int, int]:
        """Number of classified images or files, and their total; 0, 0 while the total is unknown."""
        if self.state != "classifying":
            return 0, 0
        if self.cropped.positions:
            return len(self.images) - len(self.cropped.unreadable), len(self.cropped.positions)
        return self.files_done, len(self.cropped.sources)

    def counts(self) -> Counter[str]:
        """Count the predictions of each class, without rejected images."""
        return Counter(image.predicted for image in self.images if image.is_usable and not image.rejected)

    def to_csv(self) -> str:
        """Return the predictions in the format of `urnet predict`, with positions if they come from fields."""
        columns = ["path", "predicted", *self.services.model.prediction_columns, "engine", "error"]
        columns += ["field", "x", "y"] if self.cropped.fields else []
        rows = []
        for image in self.images:
            row = {key: f"{value:.6f}" if type(value) is float else value for key, value in image.answer.row.items()}
            row |= {"path": image.answer.path, "error": image.answer.error}
            row["engine"] = self.services.engine if image.is_usable else ""
            if image.place is not None:
                field = self.cropped.fields[image.place.field]
                row |= {"field": field.name, "x": image.place.x, "y": image.place.y}
            rows.append(row)
        return format_csv(columns, rows)

    def report(self) -> str | None:
        """Return the report of `urnet differential` for this sample; none if there is no estimate."""
        if self.differential is None:
            return None
        config = self.services.model.config
        about = {
            "run": self.services.run.name,
            "source": f"files uploaded to the web application: {len(self.uploads)}",
            "model": f"{config.name}, seed {config.seed}",
            "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            "simulated": "",
            "notes": self.notes,
            "version": __version__,
        }
        return render_page(self.differential, about)

    @property
    def can_save(self) -> bool:
        """Whether the predictions can be saved for review."""
        return self.services.store is not None and not (self.is_saved or self.is_saving or self.needs_decision)

    @property
    def is_saving(self) -> bool:
        """Whether the predictions are being saved for review."""
        return self._saving is not None and not self._saving.done()

    def save_for_review(self) -> None:
        """Save predictions and images in the database for review; after a failure, try again."""
        if self.can_save:
            self.save_message = "Saving predictions for review"
            self.version += 1
            self._saving = asyncio.create_task(self._save())

    async def _save(self) -> None:
        store = self.services.store
        assert store is not None
        try:
            rows = []
            for image in [image for image in self.images if image.is_usable]:
                content, suffix = await self._read_file(image)
                digest = await asyncio.to_thread(store.reviews.add_image, content, suffix)
                rows.append({**image.answer.row, "path": image.name, "image": digest})
            await asyncio.to_thread(store.reviews.add_predictions, self.name, rows, model=self.services.digest)
            self.is_saved, self.save_message = True, f"{len(rows):,} predictions saved for review"
        except Exception as error:  # nothing awaits this task
            reason = describe_error(error, f"saving sample {self.key} of the page for review")
            self.save_message = f"Not saved for review: {reason}"
        finally:
            asyncio.get_running_loop().call_soon(self._notify)  # after the task has ended

    async def _read_file(self, image: ClassifiedImage) -> tuple[bytes, str]:
        """Return an image as a file, with its suffix: the uploaded file, or the crop in raw counts as TIFF."""
        path = image.source.path
        assert path is not None
        if path.is_file() and "#" not in image.answer.path:
            return await asyncio.to_thread(path.read_bytes), path.suffix
        _, cells = await self.services.decoders.read(image.source, image.index, image.index + 1)
        assert cells[0].crop is not None
        return await asyncio.to_thread(_to_tiff, cells[0].crop), ".tif"

    async def picture(self, number: int, kind: PictureKind) -> np.ndarray | None:
        """Return a picture of an image, in [0, 1]; none if the image is unusable or has no such picture.

        Args:
            number: number of the image.
            kind: `raw` or `enhanced`, (C, S, S), the input and output of the enhancer; `heat`, (S, S), Grad-CAM of
                the predicted class.

        Raises:
            ImageError: the image can no longer be read.
        """
        image = self.images[number]
        if not image.is_usable:
            return None
        task = self._pictures.get((number, kind))
        if task is None:  # concurrent requests wait for the same task
            task = self._pictures[number, kind] = asyncio.create_task(self._make_picture(image, kind))
        self._pictures.move_to_end((number, kind))
        while len(self._pictures) > MAX_PICTURES:
            self._pictures.popitem(last=False)
        try:
            return await asyncio.shield(task)
        except UrnetError:
            self._pictures.pop((number, kind), None)
            raise

    async def _make_picture(self, image: ClassifiedImage, kind: PictureKind) -> np.ndarray | None:
        _, cells = await self.services.decoders.read(image.source, image.index, image.index + 1)
        crop = cells[0].crop
        if crop is None:
            raise ImageError(cells[0].error, code=cells[0].code)
        model, crops = self.services.model, crop[None]
        if kind == "enhanced":
            _, enhanced, _ = await self.services.network.run(crops)
            return np.clip(enhanced[0], 0, 1)
        raw = model.config.scaling.apply(crops)
        if kind == "raw":
            return raw[0]
        return await self.services.network.call(_grad_cam, model, raw, model.classes.index(image.predicted))

    async def enhancement_correlation(self, number: int) -> float | None:
        """Return the correlation between the raw and the enhanced pixels; none if one of them is uniform.

        Raises:
            ImageError: the image can no longer be read.
        """
        raw, enhanced = await self.picture(number, "raw"), await self.picture(number, "enhanced")
        if raw is None or enhanced is None or raw.std() == 0 or enhanced.std() == 0:
            return None
        return float(np.corrcoef(raw.ravel(), enhanced.ravel())[0, 1])

    async def _run(self) -> None:
        try:
            async with self.slots:
                if self.can_count:
                    self._enter("cropping")
                    self.cropped = await self.services.extract_cells(self._folder, self.uploads)
                else:
                    self.cropped = UploadedCells(self.uploads)
                self.notes = [*self.cropped.notes, INCOMPLETE]
                for failed in self.cropped.unreadable:
                    self._collect(Upload(failed.path, None, failed.error), 0, [failed])
                self._enter("classifying")
                await self._classify(self.cropped.sources)
                await self._count()
                classified = self.images[len(self.cropped.unreadable) :]
                self.notes = [
                    *self.cropped.notes,
                    *await self.services.collect_notes([image.answer for image in classified]),
                ]
                if self.differential is None:  # `count_partial` may have been called meanwhile
                    await self._count()
                self._enter("done")
        except Exception as error:  # nothing awaits this task
            self._fail(error)

    async def _classify(self, sources: Sequence[Upload]) -> None:
        """Classify all images of some files, or of the folder with the crops of fields."""
        if len(sources) > PARALLEL_FILES:  # several files at a time
            async with aclosing(self.services.classify(sources, copy_keys=True)) as files:
                async for answers in files:
                    self._collect(sources[self.files_done], 0, answers)
                    self.files_done += 1
                    await self._count_sometimes()
            return
        for source in sources:
            index = 0
            async with aclosing(self.services.classify_file(source, copy_keys=True)) as parts:
                async for answers in parts:
                    self._collect(source, index, answers)
                    index += len(answers)
                    await self._count_sometimes()
            self.files_done += 1

    def _collect(self, source: Upload, first: int, answers: Sequence[ImageResult]) -> None:
        """Append the answers for the images of a file, from the given index on."""
        limit = self.services.settings.sample_images
        if len(self.images) + len(answers) > limit:
            raise CellsError(
                f"a sample may have {limit:,} images at most; split it into several samples", code="cells.too_many"
            )
        for index, answer in enumerate(answers, first):
            if answer.is_padding:
                continue
            place, name = None, answer.path
            if source.path is not None and source.path.is_dir() and index < len(self.cropped.positions):
                place = self.cropped.positions[index]
                self._cells_of_field[place.field] += 1
                name = f"{self.cropped.fields[place.field].name}, cell {self._cells_of_field[place.field]}"
            self.images.append(ClassifiedImage(len(self.images), answer, source, index, name, place))
        self.version += 1

    async def _count_sometimes(self) -> None:
        if time.monotonic() - self._counted_at >= COUNT_INTERVAL_S:
            await self._count()

    async def _count(self) -> None:
        usable = [image.answer for image in self.images if image.is_usable]
        if usable and self.can_count and not self.needs_decision:
            self.differential = await asyncio.to_thread(self.services.count_results, self.name, usable)
            self._counted_at = time.monotonic()
            self.version += 1

    async def _count_or_fail(self) -> None:
        try:
            await self._count()
        except Exception as error:  # nothing awaits this task
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.error = describe_error(error, f"sample {self.key} of the page")
        self._enter("failed")

    def _enter(self, state: State) -> None:
        self.state = state
        self._notify()

    def _notify(self) -> None:
        """Let pages know that something has changed."""
        self.version += 1


def _to_tiff(crop: np.ndarray) -> bytes:
    """Encode a crop (C, S, S) as TIFF, with its own data type."""
    import tifffile

    file, colour = io.BytesIO(), crop.shape[0] == 3
    pixels = np.moveaxis(crop, 0, -1) if colour else crop[0]
    tifffile.imwrite(file, pixels, photometric="rgb" if colour else "minisblack")
    return file.getvalue()


def _grad_cam(model: Model, inputs: np.ndarray, predicted: int) -> np.ndarray | None:
    """Compute Grad-CAM of a class in one image, (S, S); none if the classifier has no feature maps."""
    import torch

    from urnet.nets.gradcam import grad_cam

    try:
        return grad_cam(model.joint, torch.from_numpy(inputs), torch.tensor([predicted]))[0]
    except (RecipeError, ValueError):
        return None
