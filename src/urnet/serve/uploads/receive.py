"""What was sent: put aside under names of our own, decoded by processes that are bounded and can be ended."""

import asyncio
import io
import json
import multiprocessing
import queue
import re
import shutil
import threading
import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from urnet.bundle.crops import FIELD_MEASURES
from urnet.bundle.model import Model
from urnet.errors import ImageError
from urnet.fields.cropping.settings import SETTINGS_NAME
from urnet.images.read import TIFF_STARTS, read_first_bytes
from urnet.predict import PADDING
from urnet.serve.settings import Settings
from urnet.serve.uploads.storage import UploadFolder, Usage
from urnet.serve.uploads.worker import PADDING_MARK, run_worker

START_TIMEOUT_S = 60.0
"""Time for a decoding process to start, in seconds."""

POLL_INTERVAL_S = 0.1
"""Interval at which a thread looks whether somebody still waits for its process, in seconds."""

GRACE_PERIOD_S = 0.5
"""Time that a process has to finish when nobody waits any more: a new process takes longer to start. In seconds."""

MAX_NAME_LENGTH = 200
_SUFFIXES = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg", b"BM": ".bmp", **dict.fromkeys(TIFF_STARTS, ".tif")}


@dataclass(frozen=True)
class Upload:
    """One file that was sent.

    Attributes:
        name: what the client calls it, only ever shown.
        path: where it lies, under a name of ours; none where it was refused.
        error: why it was.
        pixel_um: µm per px, where who sent it said so; of fields of view.
        usage: decoding time of all files of its request or sample.
        size: of the file, in bytes.
    """

    name: str
    path: Path | None
    error: str = ""
    pixel_um: float | None = None
    usage: Usage = field(default_factory=Usage)
    size: int = 0


@dataclass(frozen=True)
class DecodedCell:
    """One image of what was sent.

    Attributes:
        path: its address, with the client's name of the file: `stack.tif#p001`.
        crop: (C, S, S) raw counts; none where it cannot be used.
        error: why it cannot.
        seen: `edge` and `touching`, where it was cut out of a field.
        key: what it shares with its copies (`copy_key`), where that was asked for.
    """

    path: str
    crop: np.ndarray | None
    error: str
    seen: dict[str, str]
    key: str = ""


def store_uploads(
    folder: UploadFolder, files: Iterable[tuple[str, BinaryIO]], *, pixel_um: float | None = None
) -> list[Upload]:
    """Write files into a folder of ours; what is no image by its first bytes is refused.

    Args:
        folder: the folder.
        files: what the client calls each, and its content.
        pixel_um: µm per px of all of them, where the client says so.

    Raises:
        StorageFullError: there is no room for them.
    """
    with folder.writing():
        return [store_upload(folder, number, given, content, pixel_um) for number, (given, content) in enumerate(files)]


def display_name(name: str) -> str:
    """A client's file name as it may be shown: without folders, control characters and excess length."""
    last = name.replace("\\", "/").rpartition("/")[2]
    clean = "".join("_" if unicodedata.category(letter)[0] == "C" else letter for letter in last)
    return clean[:MAX_NAME_LENGTH] or "unnamed"


def store_upload(
    folder: UploadFolder, number: int, given: str, content: BinaryIO, pixel_um: float | None = None
) -> Upload:
    """Put one file aside; what is no image by its first bytes is refused.

    Args:
        folder: where.
        number: of the file, which becomes its name.
        given: what the client calls it.
        content: of the file.
        pixel_um: µm per px, where the client says so.

    Raises:
        StorageFullError: there is no room for it.
        OSError: it cannot be written; nothing of it is left.
    """
    name = display_name(given)
    path, size = folder.files / f"{number:06d}", content.seek(0, io.SEEK_END)
    folder.reserve(size)
    content.seek(0)
    try:
        with path.open("wb") as file:
            shutil.copyfileobj(content, file)
    except OSError:
        path.unlink(missing_ok=True)
        folder.reserve(-size)
        raise
    try:
        start = read_first_bytes(path)
    except ImageError as error:
        path.unlink()
        return Upload(name, None, str(error).replace(str(path), name), pixel_um, folder.usage)
    suffix = next(suffix for first, suffix in _SUFFIXES.items() if start.startswith(first))
    return Upload(name, path.rename(path.with_suffix(suffix)), "", pixel_um, folder.usage, size)


class DecoderPool:
    """Processes that decode uploaded files, a piece at a time.

    The request or sample that has used least decoding time is served first, and of those that are new the one with the
    smallest file, so that slow files do not hold up the others. Fields are cut in one piece, and never occupy the last
    process where there are several. A process whose client has left is ended.

    Args:
        model: whose crops the images become.
        settings: the limits.
    """

    def __init__(self, model: Model, settings: Settings):
        cropping = None
        if model.cropping is not None and model.folder is not None:
            cropping = str(model.folder / SETTINGS_NAME)
        limits = {
            "pixels": settings.max_pixels,
            "field": settings.field_pixels,
            "file": settings.file_pixels,
            "images": settings.max_images,
            "memory": settings.decode_memory,
        }
        self.settings = settings
        self.threads = ThreadPoolExecutor(settings.decoders, "decode")
        self.idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self.processes = [_Process((model.config, cropping, limits)) for _ in range(settings.decoders)]
        for process in self.processes:
            self.idle.put(process)
        self._extracting = asyncio.Semaphore(max(1, settings.decoders - 1))
        self._lock = threading.Lock()
        self._waiting: list[_Job] = []
        self._running: dict[_Job, float] = {}  # and since when
        self._mean_seconds = 0.0

    def start(self) -> None:
        """Start all processes, and wait until they are ready."""
        list(self.threads.map(_Process.start, self.processes))

    def stop(self) -> None:
        """End them."""
        self.threads.shutdown(cancel_futures=True)
        for process in self.processes:
            process.end()

    def backlog_seconds(self) -> float:
        """Expected time until all that waits is decoded, in seconds, from measured durations.

        A piece that has taken longer than the mean so far may take all the time that it is allowed.
        """
        now = time.monotonic()
        with self._lock:
            left = sum(not job.abandoned.is_set() for job in self._waiting) * self._mean_seconds
            for job, since in self._running.items():
                if job.abandoned.is_set():
                    continue
                expected = self._mean_seconds if now - since < self._mean_seconds else job.seconds
                left += max(0.0, expected - (now - since))
        return left / len(self.processes)

    async def read(
        self, upload: Upload, start: int, stop: int, *, keys: bool = False, file: Usage | None = None
    ) -> tuple[int, list[DecodedCell]]:
        """Some images of a file, or cells of a folder that `cut` wrote.

        Args:
            upload: the file or folder.
            start: the first image.
            stop: the one after the last.
            keys: whether to say what each shares with its copies.
            file: decoding time of the pieces of this file so far, where all of it is to be decoded.

        Returns:
            How many images there are in it, and those asked for.

        Raises:
            ImageError: it cannot be read at all.
        """
        settings = self.settings
        limits = [("decode_seconds", settings.decode_seconds, 0.0)]
        if file is not None:
            limits += [("sample_seconds", settings.sample_seconds, upload.usage.seconds)]
            if upload.path is None or upload.path.is_file():  # cells cut out of fields are in many files
                limits += [("file_seconds", settings.file_seconds, file.seconds)]
        limit, allowed, used = min(limits, key=lambda one: one[1] - one[2])
        order = {"do": "read", "path": str(upload.path), "start": start, "stop": stop, "keys": keys}
        order |= {"limit": limit, "seconds": allowed}
        told, crops = await self._ask(
            order, max(0.0, allowed - used), [upload.usage, *([file] if file else [])], upload.size
        )
        _raise_error(told, upload)
        left = iter(crops)
        cells = []
        for row in told["rows"]:
            error = PADDING if row["error"] == PADDING_MARK else _with_client_names(row["error"], upload)
            crop = None if error else next(left)
            seen = {name: row[name] for name in FIELD_MEASURES}
            cells.append(DecodedCell(_with_client_names(row["path"], upload), crop, error, seen, row.get("key", "")))
        return told["cells"], cells

    async def extract_cells(self, folder: UploadFolder, out: Path, uploads: Sequence[Upload]) -> dict[str, Any]:
        """Cut fields into a new cells folder. One at which a process dies is left out, and another process goes on.

        Args:
            folder: where the files lie.
            out: the folder, in `aside`.
            uploads: the files.

        Returns:
            `fields`: whether they are any, rather than crops; if so `notes`, the number of `cells`, what is `seen` of
            each field, the `places` of the cells, and why files are `unreadable`, by their names here.

        Raises:
            ImageError: they cannot be cut, or finding their cells takes too long.
        """
        by_name = {upload.path.name: upload for upload in uploads if upload.path is not None}
        pixels = {name: upload.pixel_um for name, upload in by_name.items() if upload.pixel_um is not None}
        fatal: dict[str, str] = {}
        seconds = self.settings.field_seconds
        order = {"do": "cut", "folder": str(folder.files), "out": str(out), "pixels": pixels, "fatal": fatal}
        order |= {"limit": "field_seconds", "seconds": seconds}
        used, size = Usage(), sum(upload.size for upload in uploads)
        while True:
            async with self._extracting:
                left = max(0.0, seconds - used.seconds)
                told, _ = await self._ask(order, left, [folder.usage, used], size, folder=folder)
            if (name := told.get("died_at")) not in by_name or name in fatal:
                break
            fatal[name] = told["error"]
        _raise_error(told, *uploads)
        if told["fields"]:
            told["unreadable"] = {
                name: _with_client_names(why, by_name[name]) for name, why in told["unreadable"].items()
            }
            told["notes"] = [_with_client_names(note, *uploads) for note in told["notes"]]
        return told

    async def _ask(
        self,
        order: dict[str, Any],
        seconds: float,
        usages: Sequence[Usage],
        size: int,
        *,
        folder: UploadFolder | None = None,
    ) -> "_Reply":
        """Let the next free process answer an order; whoever is cancelled while waiting ends the work on it."""
        job = _Job(order, seconds, usages, size, folder)
        with self._lock:
            self._waiting.append(job)
        self.threads.submit(self._run_next)
        try:
            return await asyncio.wrap_future(job.future)
        except asyncio.CancelledError:
            job.abandoned.set()
            raise

    def _run_next(self) -> None:
        """Run the waiting job whose request has used least decoding time; of equals the smallest, then the first."""
        with self._lock:
            now = time.monotonic()
            used = {id(one.usages[0]): one.usages[0].seconds for one in self._waiting}
            for one, since in self._running.items():
                if id(one.usages[0]) in used:
                    used[id(one.usages[0])] += now - since
            job = min(self._waiting, key=lambda one: (used[id(one.usages[0])], one.size))
            self._waiting.remove(job)
        if not job.future.set_running_or_notify_cancel():
            return
        process, begun = self.idle.get(), time.monotonic()
        with self._lock:
            self._running[job] = begun
        try:
            with job.folder.writing() if job.folder is not None else nullcontext():
                result = process.ask(job.order, job.seconds, job.abandoned)
        except BaseException as error:
            job.future.set_exception(error)
        else:
            job.future.set_result(result)
        finally:
            took = time.monotonic() - begun
            with self._lock:
                del self._running[job]
                self._mean_seconds += (took - self._mean_seconds) * (0.1 if self._mean_seconds else 1.0)
                for usage in job.usages:
                    usage.seconds += took
            self.idle.put(process)


def _raise_error(told: Mapping[str, Any], *uploads: Upload) -> None:
    """Raise what went wrong with all that was asked for.

    Raises:
        ImageError: it did.
    """
    if "error" in told:
        error = _with_client_names(told["error"], *uploads)
        raise ImageError(error.replace("a file", uploads[0].name, 1) if error.startswith("a file:") else error)


def _with_client_names(text: str, *uploads: Upload) -> str:
    """What was said of files of ours, which lie in one folder, said of the client's: at once, as names may be alike."""
    names = {upload.path.name: upload.name for upload in uploads if upload.path is not None}
    folder = next(upload.path.parent for upload in uploads if upload.path is not None)
    above = "|".join(map(re.escape, (str(folder), folder.as_posix())))
    return re.sub(rf"(?:(?:{above})[\\/])?(\w+(?:\.\w+)*)", lambda ours: names.get(ours[1], ours[0]), text)


def _timeout_message(order: dict[str, Any], name: str) -> str:
    """Message for a process that does not answer in time."""
    allowed = f"longer than the {order['seconds']:g} s that the server allows ({order['limit']})"
    if order["do"] == "read":
        return f"{name}: decoding it takes {allowed}"
    return f"finding the cells of these files takes {allowed}, and was at {name}; send fewer at a time"


_Reply = tuple[dict[str, Any], list[np.ndarray]]


@dataclass(eq=False)
class _Job:
    """An order for a decoding process.

    Attributes:
        order: sent to the process.
        seconds: allowed time.
        usages: charged with the time that it takes; the first is that of its request or sample.
        size: of the files, in bytes.
        folder: folder into which the process writes, if any.
        abandoned: set when nobody waits for the answer.
        future: the answer.
    """

    order: dict[str, Any]
    seconds: float
    usages: Sequence[Usage]
    size: int
    folder: UploadFolder | None
    abandoned: threading.Event = field(default_factory=threading.Event)
    future: "Future[_Reply]" = field(default_factory=Future)


class _Process:
    """One decoding process and its pipe; one that takes too long, dies or works for nobody is replaced."""

    def __init__(self, arguments: tuple[Any, ...]):
        self.arguments = arguments
        self.process: Any = None
        self.pipe: Connection | None = None

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=run_worker, args=(theirs, *self.arguments), daemon=True, name="decode")
        self.process.start()
        theirs.close()
        if not self.pipe.poll(START_TIMEOUT_S):
            self.end()
            raise ImageError("the process that decodes images does not start; is the machine overloaded?")
        self.pipe.recv_bytes()

    def ask(self, order: dict[str, Any], seconds: float, abandoned: threading.Event) -> _Reply:
        """Send an order and receive the answer.

        Args:
            order: what to do.
            seconds: allowed time.
            abandoned: set when nobody waits for the answer any more.

        Returns:
            The answer and its crops. Where the process died or was ended, `error`, and `died_at`: the file that it had
            named last.
        """
        name = order.get("path", "a file")
        told: dict[str, Any] = {}
        try:
            if self.pipe is None or not self.process.is_alive():
                self.end()
                self.start()
            assert self.pipe is not None
            self.pipe.send_bytes(json.dumps(order).encode())
            until = time.monotonic() + seconds
            while not told or "at" in told:
                if not self._answers(until, abandoned):
                    self.end()
                    return {"error": _timeout_message(order, told.get("at", name))}, []
                told = json.loads(self.pipe.recv_bytes())
            return told, [self._crop(kind, shape) for kind, *shape in told["crops"]]
        except (EOFError, OSError):
            self.end()
            at = told.get("at")
            error = f"{at or name}: decoding it ended the process that did so; the file is damaged or too large"
            return {"error": error, "died_at": at}, []

    def _answers(self, until: float, abandoned: threading.Event) -> bool:
        """Whether there is an answer in time, and while somebody waits for it."""
        assert self.pipe is not None
        while not self.pipe.poll(min(POLL_INTERVAL_S, max(0.0, until - time.monotonic()))):
            if abandoned.is_set():
                until = min(until, time.monotonic() + GRACE_PERIOD_S)
                abandoned = threading.Event()
            if time.monotonic() >= until:
                return False
        return True

    def _crop(self, kind: str, shape: Sequence[int]) -> np.ndarray:
        assert self.pipe is not None
        return np.frombuffer(self.pipe.recv_bytes(), kind).reshape(shape)

    def end(self) -> None:
        if self.pipe is not None:
            self.pipe.close()
            self.pipe = None
        if self.process is not None:
            self.process.kill()
            self.process.join()
