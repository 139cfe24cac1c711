"""Store uploaded files under names of the server's own."""

import io
import shutil
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from urnet.errors import ImageError
from urnet.images.read import TIFF_STARTS, read_first_bytes
from urnet.serve.uploads.storage import UploadFolder, Usage

MAX_NAME_LENGTH = 200
"""Longest file name that is shown, in characters."""

_SUFFIXES = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg", b"BM": ".bmp", **dict.fromkeys(TIFF_STARTS, ".tif")}


@dataclass(frozen=True)
class Upload:
    """An uploaded file.

    Attributes:
        name: the client's name of the file, for display only.
        path: the stored file, under a name of the server's own; none for a refused file.
        error: reason for the refusal.
        code: stable code of the error.
        pixel_um: pixel size of a field of view in µm, if the client gives it.
        usage: decoding time of all files of the same request or sample.
        size: size of the file, in bytes.
    """

    name: str
    path: Path | None
    error: str = ""
    code: str = ""
    pixel_um: float | None = None
    usage: Usage = field(default_factory=Usage)
    size: int = 0


def store_uploads(
    folder: UploadFolder, files: Iterable[tuple[str, BinaryIO]], *, pixel_um: float | None = None
) -> list[Upload]:
    """Store files in a folder; refuse those whose first bytes are not those of an image.

    Args:
        folder: target folder.
        files: the client's name of each file, and its content.
        pixel_um: pixel size of all files in µm, if the client gives it.

    Raises:
        StorageFullError: the storage has no room for the files.
    """
    with folder.writing():
        return [store_upload(folder, number, name, content, pixel_um) for number, (name, content) in enumerate(files)]


def display_name(name: str) -> str:
    """Make a client's file name safe to show: without folders, control characters and excess length."""
    last = name.replace("\\", "/").rpartition("/")[2]
    clean = "".join("_" if unicodedata.category(letter)[0] == "C" else letter for letter in last)
    return clean[:MAX_NAME_LENGTH] or "unnamed"


def store_upload(
    folder: UploadFolder, number: int, given: str, content: BinaryIO, pixel_um: float | None = None
) -> Upload:
    """Store one file; refuse it if its first bytes are not those of an image.

    Args:
        folder: target folder.
        number: number of the file, which becomes its name.
        given: the client's name of the file.
        content: content of the file.
        pixel_um: pixel size in µm, if the client gives it.

    Raises:
        StorageFullError: the storage has no room for the file.
        OSError: the file cannot be written; nothing of it stays.
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
        return Upload(name, None, str(error).replace(str(path), name), error.code, pixel_um, folder.usage)
    suffix = next(suffix for first, suffix in _SUFFIXES.items() if start.startswith(first))
    stored = path.rename(path.with_suffix(suffix))
    return Upload(name, stored, pixel_um=pixel_um, usage=folder.usage, size=size)
