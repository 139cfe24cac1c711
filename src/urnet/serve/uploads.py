"""What was sent: put aside under names of our own, decoded by processes that are bounded and can be ended."""

import asyncio
import io
import json
import multiprocessing
import queue
import re
import shutil
import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from urnet.bundle import SEEN, Model
from urnet.errors import ImageError
from urnet.fields.cropping import SETTINGS_NAME
from urnet.images.read import TIFF_STARTS, first_bytes
from urnet.predict import PADDING
from urnet.serve.decoding import PADDING_MARK, work
from urnet.serve.scratch import Aside
from urnet.serve.settings import Settings

STARTING = 60.0
"""Seconds for a decoding process to start."""

LONGEST_NAME = 200
_SUFFIXES = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg", b"BM": ".bmp", **dict.fromkeys(TIFF_STARTS, ".tif")}


@dataclass(frozen=True)
class Upload:
    """One file that was sent.

    Attributes:
        name: what the client calls it, only ever shown.
        path: where it lies, under a name of ours; none where it was refused.
        error: why it was.
        pixel_um: µm per px, where who sent it said so; of fields of view.
    """

    name: str
    path: Path | None
    error: str = ""
    pixel_um: float | None = None


@dataclass(frozen=True)
class Cell:
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


def put_aside(aside: Aside, files: Iterable[tuple[str, BinaryIO]], *, pixel_um: float | None = None) -> list[Upload]:
    """Write files into a folder of ours; what is no image by its first bytes is refused.

    Args:
        aside: the folder.
        files: what the client calls each, and its content.
        pixel_um: µm per px of all of them, where the client says so.

    Raises:
        FullError: there is no room for them.
    """
    return [put(aside, number, given, content, pixel_um) for number, (given, content) in enumerate(files)]


def shown(name: str) -> str:
    """A client's file name as it may be shown: without folders, control characters and excess length."""
    last = name.replace("\\", "/").rpartition("/")[2]
    clean = "".join("_" if unicodedata.category(letter)[0] == "C" else letter for letter in last)
    return clean[:LONGEST_NAME] or "unnamed"


def put(aside: Aside, number: int, given: str, content: BinaryIO, pixel_um: float | None = None) -> Upload:
    """Put one file aside; what is no image by its first bytes is refused.

    Args:
        aside: where.
        number: of the file, which becomes its name.
        given: what the client calls it.
        content: of the file.
        pixel_um: µm per px, where the client says so.

    Raises:
        FullError: there is no room for it.
    """
    name = shown(given)
    path = aside.files / f"{number:06d}"
    aside.take(content.seek(0, io.SEEK_END))
    content.seek(0)
    with path.open("wb") as file:
        shutil.copyfileobj(content, file)
    try:
        start = first_bytes(path)
    except ImageError as error:
        path.unlink()
        return Upload(name, None, str(error).replace(str(path), name), pixel_um)
    suffix = next(suffix for first, suffix in _SUFFIXES.items() if start.startswith(first))
    return Upload(name, path.rename(path.with_suffix(suffix)), pixel_um=pixel_um)


class Decoders:
    """Processes that decode.

    Args:
        model: whose crops the images become.
        settings: the limits.
    """

    def __init__(self, model: Model, settings: Settings):
        cropping = None
        if model.cropping is not None and model.folder is not None:
            cropping = str(model.folder / SETTINGS_NAME)
        limits = {"pixels": settings.max_pixels, "images": settings.max_images, "memory": settings.decode_memory}
        self.settings = settings
        self.threads = ThreadPoolExecutor(settings.decoders, "decode")
        self.idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self.processes = [_Process((model.config, cropping, limits)) for _ in range(settings.decoders)]
        for process in self.processes:
            self.idle.put(process)

    def start(self) -> None:
        """Start all processes, and wait until they are ready."""
        list(self.threads.map(_Process.start, self.processes))

    def stop(self) -> None:
        """End them."""
        self.threads.shutdown(cancel_futures=True)
        for process in self.processes:
            process.end()

    async def read(self, upload: Upload, start: int, stop: int, *, keys: bool = False) -> tuple[int, list[Cell]]:
        """Some images of a file, or cells of a folder that `cut` wrote.

        Args:
            upload: the file or folder.
            start: the first image.
            stop: the one after the last.
            keys: whether to say what each shares with its copies.

        Returns:
            How many images there are in it, and those asked for.

        Raises:
            ImageError: it cannot be read at all.
        """
        seconds = self.settings.decode_seconds
        order = {"do": "read", "path": str(upload.path), "start": start, "stop": stop, "keys": keys}
        told, crops = await self._ask(order | {"seconds": seconds}, seconds)
        _refuse(told, upload)
        left = iter(crops)
        cells = []
        for row in told["rows"]:
            error = PADDING if row["error"] == PADDING_MARK else _renamed(row["error"], upload)
            crop = None if error else next(left)
            seen = {name: row[name] for name in SEEN}
            cells.append(Cell(_renamed(row["path"], upload), crop, error, seen, row.get("key", "")))
        return told["cells"], cells

    async def cut(self, aside: Aside, out: Path, uploads: Sequence[Upload]) -> dict[str, Any]:
        """Cut fields into a new cells folder. One at which a process dies is left out, and another process goes on.

        Args:
            aside: where the files lie.
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
        order = {"do": "cut", "folder": str(aside.files), "out": str(out), "pixels": pixels, "fatal": fatal}
        order["seconds"], until = seconds, time.monotonic() + seconds
        while True:
            told, _ = await self._ask(order, until - time.monotonic(), aside=aside)
            if (name := told.get("died_at")) not in by_name or name in fatal:
                break
            fatal[name] = told["error"]
        _refuse(told, *uploads)
        if told["fields"]:
            told["unreadable"] = {name: _renamed(why, by_name[name]) for name, why in told["unreadable"].items()}
            told["notes"] = [_renamed(note, *uploads) for note in told["notes"]]
        return told

    async def _ask(
        self, order: dict[str, Any], seconds: float, *, aside: Aside | None = None
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        def ask() -> tuple[dict[str, Any], list[np.ndarray]]:
            process = self.idle.get()
            try:
                with aside.writing() if aside is not None else nullcontext():
                    return process.ask(order, seconds)
            finally:
                self.idle.put(process)

        return await asyncio.get_running_loop().run_in_executor(self.threads, ask)


def _refuse(told: Mapping[str, Any], *uploads: Upload) -> None:
    """Raise what went wrong with all that was asked for.

    Raises:
        ImageError: it did.
    """
    if "error" in told:
        error = _renamed(told["error"], *uploads)
        raise ImageError(error.replace("a file", uploads[0].name, 1) if error.startswith("a file:") else error)


def _renamed(text: str, *uploads: Upload) -> str:
    """What was said of files of ours, which lie in one folder, said of the client's: at once, as names may be alike."""
    names = {upload.path.name: upload.name for upload in uploads if upload.path is not None}
    folder = next(upload.path.parent for upload in uploads if upload.path is not None)
    above = "|".join(map(re.escape, (str(folder), folder.as_posix())))
    return re.sub(rf"(?:(?:{above})[\\/])?(\w+(?:\.\w+)*)", lambda ours: names.get(ours[1], ours[0]), text)


def _late(order: dict[str, Any], name: str) -> str:
    """What is said where a process does not answer in time."""
    allowed = f"longer than the {order['seconds']:g} s that the server allows"
    if order["do"] == "read":
        return f"{name}: decoding it takes {allowed}"
    return f"finding the cells of these files takes {allowed} (field_seconds), and was at {name}; send fewer at a time"


class _Process:
    """One decoding process and its pipe; one that takes too long or dies is replaced."""

    def __init__(self, arguments: tuple[Any, ...]):
        self.arguments = arguments
        self.process: Any = None
        self.pipe: Connection | None = None

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, *self.arguments), daemon=True, name="decode")
        self.process.start()
        theirs.close()
        if not self.pipe.poll(STARTING):
            self.end()
            raise ImageError("the process that decodes images does not start; is the machine overloaded?")
        self.pipe.recv_bytes()

    def ask(self, order: dict[str, Any], seconds: float) -> tuple[dict[str, Any], list[np.ndarray]]:
        """What a process answers; where it died, also at which file it was (`died_at`), if it had said so."""
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
                if not self.pipe.poll(max(0.0, until - time.monotonic())):
                    self.end()
                    return {"error": _late(order, told.get("at", name))}, []
                told = json.loads(self.pipe.recv_bytes())
            return told, [self._crop(kind, shape) for kind, *shape in told["crops"]]
        except (EOFError, OSError):
            self.end()
            at = told.get("at")
            error = f"{at or name}: decoding it ended the process that did so; the file is damaged or too large"
            return {"error": error, "died_at": at}, []

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
