"""Process that decodes uploaded files, with bounded memory and without the networks.

It receives orders as JSON over a pipe and replies with JSON and bytes. There is no pickle, so a decoder that an
attacker takes over cannot make the server run code. Torch is never loaded here.
"""

import json
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from urnet.bundle.config import ModelConfig
from urnet.bundle.crops import FIELD_MEASURES, resize_crop
from urnet.cells.copies import find_padding_tiles, hash_any_orientation
from urnet.cells.read import find_images
from urnet.cells.table import Cells
from urnet.errors import ImageError, UrnetError
from urnet.fields.cropping.crop import crop_fields
from urnet.fields.cropping.pixel_size import PixelSizeError
from urnet.fields.cropping.settings import CropSettings
from urnet.fields.field_or_crop import is_larger_than_crops
from urnet.fields.io.pool import FieldPool
from urnet.fields.table import TABLE_NAME as FIELD_TABLE
from urnet.files.csv_tables import write_csv
from urnet.files.outputs import staging_folder
from urnet.images.read import survey_pages
from urnet.prefetch import decode_cells
from urnet.serve.uploads.storage import DISK_FULL, is_disk_full

PADDING_MARK = "padding"
"""Error of a tile that only fills up a montage."""

FIELDS = "fields"
"""Folder among the cells that were cropped from fields, with a preview of each field."""

MEMORY_CODE = "images.memory_limit"
"""Code of the error that decoding takes more memory than allowed."""


def run_worker(connection: Connection, config: ModelConfig, cropping: str | None, limits: dict[str, int]) -> None:
    """Carry out orders until the pipe is closed.

    Args:
        connection: the pipe.
        config: configuration of the model whose crops the images become.
        cropping: `crop.json` of a model that was trained on crops of fields.
        limits: `pixels` of one crop, montage or page, of one `field`, of one `file` with all its pages; `images` of one
            file; bytes of `memory`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends its processes
    decoder = _Decoder(config, None if cropping is None else CropSettings.load(Path(cropping)), limits)
    _limit_memory(limits["memory"])
    with suppress(EOFError, ConnectionError):  # the server has ended
        connection.send_bytes(b"{}")

        def report_file(name: str) -> None:
            connection.send_bytes(json.dumps({"at": name}).encode())

        while True:
            order = json.loads(connection.recv_bytes())
            for part in _carry_out(decoder, order, report_file):
                connection.send_bytes(part)


def _carry_out(decoder: "_Decoder", order: dict[str, Any], report_file: Callable[[str], None]) -> Iterator[bytes]:
    """Carry out an order; yield the reply as JSON, then its crops. Cropping reports each file at once."""
    crops: list[np.ndarray] = []
    try:
        if order["do"] == "crop":
            unreadable = _UnreadableFiles(report_file, order["fatal"])
            reply = decoder.extract_cells(Path(order["folder"]), Path(order["out"]), order["pixels"], unreadable)
        else:
            reply, crops = decoder.read(Path(order["path"]), order["start"], order["stop"], order["copy_keys"])
    except Exception as error:
        message, code = _describe(error, order.get("path", "a file"))
        reply = {"error": message, "code": code}
    yield json.dumps(reply | {"crops": [[str(crop.dtype), *crop.shape] for crop in crops]}).encode()
    for crop in crops:
        yield np.ascontiguousarray(crop).tobytes()


def _describe(error: Exception, name: str) -> tuple[str, str]:
    """Return the message and the code of an error, for the client."""
    if isinstance(error, PixelSizeError):
        advice = "give it with the files (pixel_size_um), or save the fields with it, as OME-TIFF"
        return f"{error.problem}; {advice}", error.code
    if isinstance(error, UrnetError) and error.code == "images.companion_missing":
        problem = str(error).partition("; ")[0]
        return f"{problem}; send all files of the set in one request", error.code
    if isinstance(error, UrnetError):
        return str(error), error.code
    if is_disk_full(error):
        return DISK_FULL, "server.disk_full"
    if isinstance(error, MemoryError):
        return f"{name}: decoding it takes more memory than the server allows", MEMORY_CODE
    return f"{name}: cannot be decoded ({type(error).__name__})", "images.undecodable"


class _UnreadableFiles:
    """Files that cannot be read, with error and code; an error in one file does not affect the others.

    Args:
        report_file: called with each file before it is read, so that the server knows at which file a process died.
        errors: message and code of the files at which processes died, by name.
    """

    def __init__(self, report_file: Callable[[str], None], errors: Mapping[str, Sequence[str]]):
        self.report_file, self.errors = report_file, {name: tuple(error) for name, error in errors.items()}

    @contextmanager
    def __call__(self, path: Path) -> Iterator[None]:
        self.report_file(path.name)
        try:
            yield
        except Exception as error:
            if is_disk_full(error):
                raise
            self.errors[path.name] = _describe(error, str(path))

    def exclude_from(self, files: Iterable[Path]) -> list[Path]:
        """Return the files without the unreadable ones."""
        return [path for path in files if path.name not in self.errors]


class _Decoder:
    def __init__(self, config: ModelConfig, cropping: CropSettings | None, limits: dict[str, int]):
        self.config, self.cropping, self.limits = config, cropping, limits
        self.open = lru_cache(maxsize=4)(self._open)

    def resize_crop(self, crop: np.ndarray) -> np.ndarray:
        """Bring a raw crop to the size of the network, as `Model.resize_crop` does."""
        return resize_crop(self.config, self.cropping, crop)

    def read(self, path: Path, start: int, stop: int, copy_keys: bool) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Read some cells of a file or of a cells folder: a row for each, and the crops of the usable ones."""
        cells, padding = self.open(path)
        rows, crops = [], []
        for number in range(start, min(stop, len(cells))):
            cell = cells.table.iloc[number]
            row = {"path": cell["path"], "error": "", "code": ""}
            row |= {name: str(cell.get(name, "")) for name in FIELD_MEASURES}
            if number in padding:
                row["error"] = PADDING_MARK
            else:
                decoded = decode_cells(self, cells, [number])[0]
                row |= {"error": decoded.error, "code": decoded.code}
                if decoded.crop is not None:
                    crops.append(decoded.crop)
                    row |= {"copy_key": hash_any_orientation(cells.read(number))} if copy_keys else {}
            rows.append(row)
        return {"cells": len(cells), "rows": rows}, crops

    def extract_cells(
        self, folder: Path, out: Path, pixels: dict[str, float], unreadable: _UnreadableFiles
    ) -> dict[str, Any]:
        """Crop the cells of fields, if the files are fields; unreadable ones are left out and listed."""
        if self.cropping is None or self.config.tile is not None:
            return {"fields": False}
        with FieldPool(self.limits["memory"] // 4) as pool:
            return self._extract_cells(self.cropping, folder, out, pixels, unreadable, pool)

    def _extract_cells(
        self,
        settings: CropSettings,
        folder: Path,
        out: Path,
        pixels: dict[str, float],
        unreadable: _UnreadableFiles,
        pool: FieldPool,
    ) -> dict[str, Any]:
        files = sorted(folder.iterdir())
        are_fields = None
        for path in unreadable.exclude_from(files):
            with unreadable(path):
                self._check_size(path, self.limits["field"])
                are_fields = is_larger_than_crops(path, settings, pool) if are_fields is None else are_fields
        if not are_fields:
            return {"fields": False}
        reply = {"fields": True, "unreadable": unreadable.errors, "notes": [], "cells": 0, "seen": [], "places": []}
        if not (readable := unreadable.exclude_from(files)):
            return reply
        table = folder.with_name(FIELD_TABLE)
        rows = [[path.name, f"{folder.name}/{path.name}", str(pixels.get(path.name, ""))] for path in readable]
        write_csv(table, ("field", "brightfield", "pixel_size_um"), rows)
        for old in (staging_folder(out), out):  # from a process that died
            shutil.rmtree(old, ignore_errors=True)
        try:
            cropped = crop_fields(
                table, out, settings, for_prediction=True, guard=lambda row: unreadable(row.brightfield), pool=pool
            )
        except ImageError:
            if unreadable.exclude_from(files):
                raise
            return reply
        (out / FIELDS).mkdir()
        seen = []
        for number, one in enumerate(cropped.fields):
            preview = f"{FIELDS}/{number:06d}.png"
            _write_grey_png(out / preview, one.preview)
            seen.append({"name": one.row.field, "preview": preview, "height": one.info.height, "width": one.info.width})
        places = cropped.table[["field", "x", "y"]].to_numpy().tolist()
        return reply | {"notes": cropped.notes, "cells": len(cropped.table), "seen": seen, "places": places}

    def _open(self, path: Path) -> tuple[Cells, set[int]]:
        if path.is_file():
            self._check_size(path, self.limits["pixels"])
        cells = find_images([path], self.config.tile, self.config.image, contained=True)
        limit = self.limits["images"]
        if path.is_file() and len(cells) > limit:
            raise ImageError(
                f"{path}: more than the {limit} images that the server allows in one file; send it in parts",
                code="images.too_many",
            )
        return cells, find_padding_tiles(cells)

    def _check_size(self, path: Path, pixels: int) -> None:
        """Check the numbers of pages and pixels that the headers of a file state.

        Raises:
            ImageError: the file has too many pages, too many pixels in one page or in all, or damaged headers.
        """
        survey, pages, file_pixels = survey_pages(path), self.limits["images"], self.limits["file"]
        if survey.pages > pages:
            raise ImageError(
                f"{path}: more than the {pages} pages that the server allows in one file; send it in parts",
                code="images.too_many",
            )
        if survey.largest_pixels > pixels:
            where = f" in the largest of {survey.pages} pages" if survey.pages > 1 else ""
            raise ImageError(
                f"{path}: {survey.largest_pixels:,} px{where}, more than the {pixels:,} px that the server allows; "
                "crop it first",
                code="images.too_large",
            )
        if survey.total_pixels > file_pixels:
            raise ImageError(
                f"{path}: {survey.total_pixels:,} px in {survey.pages} pages, more than the {file_pixels:,} px that "
                "the server allows in one file; send it in parts",
                code="images.too_large",
            )


def _write_grey_png(path: Path, pixels: np.ndarray) -> None:
    """Write pixels of any range as an 8-bit PNG."""
    from PIL import Image

    low, high = np.percentile(pixels, (0.1, 99.9))
    scaled = (pixels - low) / max(high - low, 1e-9)
    Image.fromarray(np.rint(255 * scaled.clip(0, 1)).astype(np.uint8)).save(path)


def _limit_memory(more: int) -> None:
    """Limit the memory that this process takes beyond what it has, in bytes; only Linux enforces the limit."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))
