"""Pool of processes that decode uploaded files, with limits on time and memory."""

import asyncio
import json
import multiprocessing
import queue
import re
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from urnet.bundle.crops import FIELD_MEASURES
from urnet.bundle.model import Model
from urnet.errors import ImageError
from urnet.fields.cropping.settings import SETTINGS_NAME
from urnet.predict import PADDING
from urnet.serve.settings import Settings
from urnet.serve.uploads.receive import Upload
from urnet.serve.uploads.storage import UploadFolder, Usage
from urnet.serve.uploads.worker import PADDING_MARK, run_worker

START_TIMEOUT_S = 60.0
"""Longest time for a decoding process to start, in seconds."""

POLL_INTERVAL_S = 0.1
"""Interval at which a thread checks whether its job was abandoned, in seconds."""

GRACE_PERIOD_S = 0.5
"""Time for a process to finish an abandoned job, in seconds; a new process takes longer to start."""

TIMEOUT_CODE = "images.decoding_timeout"
"""Code of the error that decoding takes longer than the limit."""

CRASH_CODE = "images.decoder_crashed"
"""Code of the error that decoding ended its process."""


@dataclass(frozen=True)
class UploadedCell:
    """One image of an uploaded file.

    Attributes:
        path: address with the client's name of the file: `stack.tif#p001`.
        crop: (C, S, S) raw counts; none for an unusable image.
        error: reason for which the image is unusable.
        code: stable code of the error.
        measures: `edge` and `touching` of a cell that was cropped from a field.
        copy_key: key that copies of the image share, if requested.
    """

    path: str
    crop: np.ndarray | None
    error: str
    code: str
    measures: dict[str, str]
    copy_key: str = ""


class DecoderPool:
    """Processes that decode uploaded files, a few images at a time.

    The request or sample with the least decoding time so far is served first; among new ones, the one with the
    smallest file. Slow files therefore do not delay the others. Cropping of fields runs as one job, and leaves one
    process free where there are several. A process whose client has disconnected is ended.

    Args:
        model: model whose crops the images become.
        settings: limits of the server.
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
        self._queue: list[_Job] = []
        self._running: dict[_Job, float] = {}  # with the time of its start
        self._mean_seconds = 0.0

    def start(self) -> None:
        """Start all processes, and wait until they are ready."""
        list(self.threads.map(_Process.start, self.processes))

    def stop(self) -> None:
        """End all processes."""
        self.threads.shutdown(cancel_futures=True)
        for process in self.processes:
            process.end()

    def backlog_seconds(self) -> float:
        """Estimate the time until all jobs are done, in seconds, from measured durations.

        A job that has taken longer than the mean may take all the time that it is allowed.
        """
        now = time.monotonic()
        with self._lock:
            left = sum(not job.abandoned.is_set() for job in self._queue) * self._mean_seconds
            for job, since in self._running.items():
                if job.abandoned.is_set():
                    continue
                expected = self._mean_seconds if now - since < self._mean_seconds else job.seconds
                left += max(0.0, expected - (now - since))
        return left / len(self.processes)

    async def read(
        self, upload: Upload, start: int, stop: int, *, copy_keys: bool = False, file_usage: Usage | None = None
    ) -> tuple[int, list[UploadedCell]]:
        """Read some images of a file, or cells of a folder that `extract_cells` wrote.

        Args:
            upload: the file or folder.
            start: first image.
            stop: image after the last.
            copy_keys: compute the key that copies of each image share.
            file_usage: decoding time of this file so far, where all of it is decoded.

        Returns:
            The number of images in the file, and the requested ones.

        Raises:
            ImageError: the file cannot be read at all.
        """
        settings = self.settings
        limits = [("decode_seconds", settings.decode_seconds, 0.0)]
        if file_usage is not None:
            limits += [("sample_seconds", settings.sample_seconds, upload.usage.seconds)]
            if upload.path is None or upload.path.is_file():  # cells cropped from fields are in many files
                limits += [("file_seconds", settings.file_seconds, file_usage.seconds)]
        limit, allowed, used = min(limits, key=lambda one: one[1] - one[2])
        order = {"do": "read", "path": str(upload.path), "start": start, "stop": stop, "copy_keys": copy_keys}
        order |= {"limit": limit, "seconds": allowed}
        usages = [upload.usage, *([file_usage] if file_usage else [])]
        reply, crops = await self._ask(order, max(0.0, allowed - used), usages, upload.size)
        _raise_error(reply, upload)
        left = iter(crops)
        cells = []
        for row in reply["rows"]:
            error = PADDING if row["error"] == PADDING_MARK else _with_client_names(row["error"], upload)
            crop = None if error else next(left)
            measures = {name: row[name] for name in FIELD_MEASURES}
            path = _with_client_names(row["path"], upload)
            cells.append(UploadedCell(path, crop, error, row["code"], measures, row.get("copy_key", "")))
        return reply["cells"], cells

    async def extract_cells(self, folder: UploadFolder, out: Path, uploads: Sequence[Upload]) -> dict[str, Any]:
        """Crop fields into a new cells folder. A field at which a process dies is left out, and another one continues.

        Args:
            folder: folder of the files.
            out: the new folder, in `folder`.
            uploads: the files.

        Returns:
            `fields`: whether the files are fields, not crops. If so: `notes`, the number of `cells`, `seen` with each
            field, the `places` of the cells, and `unreadable` with error and code of each file, by stored name.

        Raises:
            ImageError: the fields cannot be cropped, or cropping takes too long.
        """
        by_name = {upload.path.name: upload for upload in uploads if upload.path is not None}
        pixels = {name: upload.pixel_um for name, upload in by_name.items() if upload.pixel_um is not None}
        fatal: dict[str, tuple[str, str]] = {}
        seconds = self.settings.field_seconds
        order: dict[str, Any] = {
            "do": "crop",
            "folder": str(folder.files),
            "out": str(out),
            "pixels": pixels,
            "fatal": fatal,
        }
        order |= {"limit": "field_seconds", "seconds": seconds}
        used, size = Usage(), sum(upload.size for upload in uploads)
        while True:
            async with self._extracting:
                left = max(0.0, seconds - used.seconds)
                reply, _ = await self._ask(order, left, [folder.usage, used], size, folder=folder)
            if (name := reply.get("died_at")) not in by_name or name in fatal:
                break
            fatal[name] = (reply["error"], reply["code"])
        _raise_error(reply, *uploads)
        if reply["fields"]:
            reply["unreadable"] = {
                name: (_with_client_names(error, by_name[name]), code)
                for name, (error, code) in reply["unreadable"].items()
            }
            reply["notes"] = [_with_client_names(note, *uploads) for note in reply["notes"]]
        return reply

    async def _ask(
        self,
        order: dict[str, Any],
        seconds: float,
        usages: Sequence[Usage],
        size: int,
        *,
        folder: UploadFolder | None = None,
    ) -> "_Reply":
        """Let the next free process carry out an order; cancelling the wait ends the work on it."""
        job = _Job(order, seconds, usages, size, folder)
        with self._lock:
            self._queue.append(job)
        self.threads.submit(self._run_next)
        try:
            return await asyncio.wrap_future(job.future)
        except asyncio.CancelledError:
            job.abandoned.set()
            raise

    def _run_next(self) -> None:
        """Run the job whose request has the least decoding time; among equals the smallest, then the first."""
        with self._lock:
            now = time.monotonic()
            used = {id(one.usages[0]): one.usages[0].seconds for one in self._queue}
            for one, since in self._running.items():
                if id(one.usages[0]) in used:
                    used[id(one.usages[0])] += now - since
            job = min(self._queue, key=lambda one: (used[id(one.usages[0])], one.size))
            self._queue.remove(job)
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


def _raise_error(reply: Mapping[str, Any], *uploads: Upload) -> None:
    """Raise the error of an order that failed as a whole.

    Raises:
        ImageError: the order failed.
    """
    if "error" in reply:
        error = _with_client_names(reply["error"], *uploads)
        named = error.replace("a file", uploads[0].name, 1) if error.startswith("a file:") else error
        raise ImageError(named, code=reply["code"])


def _with_client_names(text: str, *uploads: Upload) -> str:
    """Replace stored names in a message by the client's names, all at once, since names may be alike."""
    names = {upload.path.name: upload.name for upload in uploads if upload.path is not None}
    folder = next(upload.path.parent for upload in uploads if upload.path is not None)
    above = "|".join(map(re.escape, (str(folder), folder.as_posix())))
    return re.sub(rf"(?:(?:{above})[\\/])?(\w+(?:\.\w+)*)", lambda match: names.get(match[1], match[0]), text)


def _timeout_message(order: dict[str, Any], name: str) -> str:
    allowed = f"longer than the {order['seconds']:g} s that the server allows ({order['limit']})"
    if order["do"] == "read":
        return f"{name}: decoding it takes {allowed}"
    return f"detecting the cells of these files takes {allowed}, and was at {name}; send fewer at a time"


_Reply = tuple[dict[str, Any], list[np.ndarray]]


@dataclass(eq=False)
class _Job:
    """An order for a decoding process.

    Attributes:
        order: message to the process.
        seconds: allowed time.
        usages: decoding times that the job adds to; the first is that of its request or sample.
        size: size of the files, in bytes.
        folder: folder that the process writes to, if any.
        abandoned: set when the result is no longer needed.
        future: the reply.
    """

    order: dict[str, Any]
    seconds: float
    usages: Sequence[Usage]
    size: int
    folder: UploadFolder | None
    abandoned: threading.Event = field(default_factory=threading.Event)
    future: "Future[_Reply]" = field(default_factory=Future)


class _Process:
    """One decoding process and its pipe; replaced when it takes too long, dies, or its job is abandoned."""

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
            raise ImageError(
                f"the process that decodes images did not start within {START_TIMEOUT_S:g} s; close other programs",
                code="server.decoder_not_started",
            )
        self.pipe.recv_bytes()

    def ask(self, order: dict[str, Any], seconds: float, abandoned: threading.Event) -> _Reply:
        """Send an order and receive the reply.

        Args:
            order: message to the process.
            seconds: allowed time.
            abandoned: set when the result is no longer needed.

        Returns:
            The reply and its crops. If the process died or was ended: `error`, `code`, and `died_at`, the file that
            the process reported last.
        """
        name = order.get("path", "a file")
        reply: dict[str, Any] = {}
        try:
            if self.pipe is None or not self.process.is_alive():
                self.end()
                self.start()
            assert self.pipe is not None
            self.pipe.send_bytes(json.dumps(order).encode())
            until = time.monotonic() + seconds
            while not reply or "at" in reply:
                if not self._has_reply(until, abandoned):
                    self.end()
                    return {"error": _timeout_message(order, reply.get("at", name)), "code": TIMEOUT_CODE}, []
                reply = json.loads(self.pipe.recv_bytes())
            return reply, [self._receive_crop(kind, shape) for kind, *shape in reply["crops"]]
        except (EOFError, OSError):
            self.end()
            at = reply.get("at")
            error = f"{at or name}: the decoding process ended unexpectedly; the file is damaged or too large"
            return {"error": error, "code": CRASH_CODE, "died_at": at}, []

    def _has_reply(self, until: float, abandoned: threading.Event) -> bool:
        """Wait for a reply as long as it is in time and needed."""
        assert self.pipe is not None
        while not self.pipe.poll(min(POLL_INTERVAL_S, max(0.0, until - time.monotonic()))):
            if abandoned.is_set():
                until = min(until, time.monotonic() + GRACE_PERIOD_S)
                abandoned = threading.Event()
            if time.monotonic() >= until:
                return False
        return True

    def _receive_crop(self, kind: str, shape: Sequence[int]) -> np.ndarray:
        assert self.pipe is not None
        return np.frombuffer(self.pipe.recv_bytes(), kind).reshape(shape)

    def end(self) -> None:
        if self.pipe is not None:
            self.pipe.close()
            self.pipe = None
        if self.process is not None:
            self.process.kill()
            self.process.join()
