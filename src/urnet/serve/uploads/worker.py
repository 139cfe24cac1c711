"""The process that decodes what was sent: nothing of the model but its configuration, and bounded memory.

It takes orders as JSON over a pipe and answers with JSON and bytes, so that even a decoder that was taken over has no
pickle to send. Torch is never loaded here.
"""

import json
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
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
from urnet.fields.cropping.settings import CropSettings, PixelSizeError
from urnet.fields.field_or_crop import is_larger_than_crops
from urnet.fields.table import TABLE_NAME as FIELD_TABLE
from urnet.files.csv_tables import write_csv
from urnet.files.outputs import staging_folder
from urnet.images.read import survey_pages
from urnet.prefetch import decode_cells
from urnet.serve.uploads.storage import DISK_FULL, is_disk_full

PADDING_MARK = "padding"

FIELDS = "fields"
"""Folder among the cells that were cut out of fields, with a small picture of each field."""


def run_worker(connection: Connection, config: ModelConfig, cropping: str | None, limits: dict[str, int]) -> None:
    """Answer orders until the pipe is closed.

    Args:
        connection: the pipe.
        config: of the model whose crops the images become.
        cropping: `crop.json` of the model, where it was trained on crops of fields.
        limits: `pixels` of one crop, montage or page, of one `field`, of one `file` with all its pages; `images` of one
            file; bytes of `memory`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server says when it is over
    decoder = _Decoder(config, None if cropping is None else CropSettings.load(Path(cropping)), limits)
    _limit_memory(limits["memory"])
    with suppress(EOFError, ConnectionError):  # the server has gone
        connection.send_bytes(b"{}")

        def report_file(name: str) -> None:
            connection.send_bytes(json.dumps({"at": name}).encode())

        while True:
            order = json.loads(connection.recv_bytes())
            for part in _answer(decoder, order, report_file):
                connection.send_bytes(part)


def _answer(decoder: "_Decoder", order: dict[str, Any], report_file: Callable[[str], None]) -> Iterator[bytes]:
    """JSON, and after it the crops that it names; at which file cutting is, is said at once."""
    crops: list[np.ndarray] = []
    try:
        if order["do"] == "cut":
            unreadable = _UnreadableFiles(report_file, order["fatal"])
            told = decoder.extract_cells(Path(order["folder"]), Path(order["out"]), order["pixels"], unreadable)
        else:
            told, crops = decoder.read(Path(order["path"]), order["start"], order["stop"], order["keys"])
    except Exception as error:
        told = {"error": _reason(error, order.get("path", "a file"))}
    yield json.dumps(told | {"crops": [[str(crop.dtype), *crop.shape] for crop in crops]}).encode()
    for crop in crops:
        yield np.ascontiguousarray(crop).tobytes()


def _reason(error: Exception, name: str) -> str:
    """Why a file cannot be read, for whoever sent it."""
    if isinstance(error, PixelSizeError):
        return f"{error.problem}; give it with the files (pixel_size_um), or save the fields with it, as OME-TIFF"
    if isinstance(error, UrnetError):
        return str(error)
    if is_disk_full(error):
        return DISK_FULL
    if isinstance(error, MemoryError):
        return f"{name}: decoding it takes more memory than the server allows"
    return f"{name}: cannot be decoded ({type(error).__name__})"


class _UnreadableFiles:
    """Files that cannot be used, and why; whatever goes wrong with one of them leaves the others as they are.

    Args:
        report_file: is told at which file the work is, so that somebody knows if this process dies of it.
        reasons: of those at which processes died, by their names.
    """

    def __init__(self, report_file: Callable[[str], None], reasons: dict[str, str]):
        self.report_file, self.reasons = report_file, dict(reasons)

    @contextmanager
    def __call__(self, path: Path) -> Iterator[None]:
        self.report_file(path.name)
        try:
            yield
        except Exception as error:
            if is_disk_full(error):
                raise
            self.reasons[path.name] = _reason(error, str(path))

    def readable(self, files: Iterable[Path]) -> list[Path]:
        """The files that are not unreadable."""
        return [path for path in files if path.name not in self.reasons]


class _Decoder:
    def __init__(self, config: ModelConfig, cropping: CropSettings | None, limits: dict[str, int]):
        self.config, self.cropping, self.limits = config, cropping, limits
        self.open = lru_cache(maxsize=4)(self._open)

    def resize_crop(self, crop: np.ndarray) -> np.ndarray:
        """One raw crop as `Model.resize_crop` makes it."""
        return resize_crop(self.config, self.cropping, crop)

    def read(self, path: Path, start: int, stop: int, keys: bool) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Some cells of a file or of a cells folder: what is known of each, and the crops of those that are usable."""
        cells, padding = self.open(path)
        index = range(start, min(stop, len(cells)))
        rows, crops = [], []
        for i in index:
            about = cells.table.iloc[i]
            row = {"path": about["path"], "error": "", **{name: str(about.get(name, "")) for name in FIELD_MEASURES}}
            if i in padding:
                row["error"] = PADDING_MARK
            else:
                read = decode_cells(self, cells, [i])[0]
                row["error"] = read.error
                if read.crop is not None:
                    crops.append(read.crop)
                    row |= {"key": hash_any_orientation(cells.read(i))} if keys else {}
            rows.append(row)
        return {"cells": len(cells), "rows": rows}, crops

    def extract_cells(
        self, folder: Path, out: Path, pixels: dict[str, float], unreadable: _UnreadableFiles
    ) -> dict[str, Any]:
        """Cut fields into cells, where these files are fields; those that cannot be read are left out, and told."""
        if self.cropping is None or self.config.tile is not None:
            return {"fields": False}
        files = sorted(folder.iterdir())
        larger = None
        for path in unreadable.readable(files):
            with unreadable(path):
                self._check_size(path, self.limits["field"])
                larger = is_larger_than_crops(path, self.cropping) if larger is None else larger
        if not larger:
            return {"fields": False}
        told = {"fields": True, "unreadable": unreadable.reasons, "notes": [], "cells": 0, "seen": [], "places": []}
        if not (left := unreadable.readable(files)):
            return told
        table = folder.with_name(FIELD_TABLE)
        rows = [[path.name, f"{folder.name}/{path.name}", str(pixels.get(path.name, ""))] for path in left]
        write_csv(table, ("field", "brightfield", "pixel_size_um"), rows)
        for left_behind in (staging_folder(out), out):  # by a process that died
            shutil.rmtree(left_behind, ignore_errors=True)
        try:
            cropped = crop_fields(
                table, out, self.cropping, for_prediction=True, guard=lambda row: unreadable(row.brightfield)
            )
        except ImageError:
            if unreadable.readable(files):
                raise
            return told
        (out / FIELDS).mkdir()
        seen = []
        for number, one in enumerate(cropped.fields):
            picture = f"{FIELDS}/{number:06d}.png"
            _write_grey_png(out / picture, one.preview)
            seen.append({"name": one.row.field, "picture": picture, "height": one.info.height, "width": one.info.width})
        places = cropped.table[["field", "x", "y"]].to_numpy().tolist()
        return told | {"notes": cropped.notes, "cells": len(cropped.table), "seen": seen, "places": places}

    def _open(self, path: Path) -> tuple[Cells, set[int]]:
        if path.is_file():
            self._check_size(path, self.limits["pixels"])
        cells = find_images([path], self.config.tile, self.config.image, contained=True)
        if path.is_file() and len(cells) > self.limits["images"]:
            raise ImageError(f"{path}: more than the {self.limits['images']} images that the server allows in one file")
        return cells, find_padding_tiles(cells)

    def _check_size(self, path: Path, pixels: int) -> None:
        """Refuse a file with too many pages, or too many pixels in one of them or in all together, by its headers.

        Raises:
            ImageError: it has, or its headers are damaged.
        """
        survey, pages, most = survey_pages(path), self.limits["images"], self.limits["file"]
        if survey.pages > pages:
            raise ImageError(
                f"{path}: more than the {pages} pages that the server allows in one file; send it in parts",
                code="images.too_many",
            )
        if survey.largest_pixels > pixels:
            where = f" in the largest of {survey.pages} pages" if survey.pages > 1 else ""
            raise ImageError(
                f"{path}: {survey.largest_pixels:,} px{where}, more than the {pixels:,} px that the server allows; cut "
                "it into crops first",
                code="images.too_large",
            )
        if survey.total_pixels > most:
            raise ImageError(
                f"{path}: {survey.total_pixels:,} px in {survey.pages} pages, more than the {most:,} px of one file "
                "that the server allows; send it in parts",
                code="images.too_large",
            )


def _write_grey_png(path: Path, pixels: np.ndarray) -> None:
    """Pixels of any range as a PNG of 8 bits."""
    from PIL import Image

    low, high = np.percentile(pixels, (0.1, 99.9))
    scaled = (pixels - low) / max(high - low, 1e-9)
    Image.fromarray(np.rint(255 * scaled.clip(0, 1)).astype(np.uint8)).save(path)


def _limit_memory(more: int) -> None:
    """Let this process take so many bytes beyond what it has; only Linux can hold it to that."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        has = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (has + more, has + more))
