"""The folder in which decoded cells are kept: where it is, by what an entry is found again, and what goes.

It is the user's cache folder (`URNET_CACHE` moves it). An entry is one file, named by a fingerprint of all that decides
the pixels: addresses, sizes and times of the files, size and colour that they are kept at, versions of the decoders.
A run's table, which names the same files from another folder, finds the same entry.
"""

import os
import time
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from platformdirs import user_cache_path

from urnet.cells.table import Cells
from urnet.images.montage import resolve_address

MAX_BYTES = 20 * 10**9
"""Bytes that are kept; beyond it, entries that were not used for longest go, but never the one that is asked for."""

MIN_FREE_BYTES = 10**9
"""Bytes of the disk that are left free."""

MAX_UNFINISHED_AGE_S = 24 * 3600
"""Seconds after which a file that was begun and not completed is nobody's."""

DECODER_VERSION = 2
"""Counted up when `urnet.images.read` or `urnet.cells.pixels` come to give other pixels."""

SUFFIXES = (".npy", ".crops")
"""Of entries: cells as a network takes them (`arrays`), and as they are in their files (`crops`)."""


def locate_user_cache() -> Path:
    """The user's cache folder of this program."""
    named = os.environ.get("URNET_CACHE")
    return Path(named) if named else user_cache_path("urnet", appauthor=False)


def locate_cell_cache() -> Path:
    """The folder of decoded cells in the user's cache."""
    return locate_user_cache() / "decoded"


def fingerprint_images(cells: Cells, size: int | None, channels: int | None, column: str) -> str:
    """What tells these pixels from all others.

    Args:
        cells: the table.
        size: edge that the cells are kept at; none for crops as they are in their files.
        channels: that they are kept in; likewise.
        column: `path`, or one of `PAIRED`.
    """
    about = [
        str(DECODER_VERSION),
        *map(version, ("pillow", "tifffile", "imagecodecs")),
        str(size),
        str(channels),
        column,
    ]
    content, last, stamp = sha256("\0".join(about).encode()), "", ""
    root = cells.root.resolve()
    for path, tile in zip(cells.table[column], cells.table.get("tile", [""] * len(cells)), strict=True):
        file = resolve_address(cells.root, path).file
        if file != last:  # the tiles of a montage follow each other
            last, stamp = file, _read_stamp(cells.root / file)
        address = os.path.normpath(root / path)
        content.update("\0".join(("", address, tile, stamp)).encode("utf-8", "surrogateescape"))
    return content.hexdigest()[:32]


def mark_used(entry: Path) -> None:
    """Note that an entry is in use; of a cache that may only be read, nothing."""
    with suppress(OSError):
        os.utime(entry)


def evict_entries(wanted: Path) -> None:
    """Remove what a killed process left, and what was not used for longest beyond the limit."""
    found = []
    for file in wanted.parent.iterdir():
        with suppress(OSError):  # removed by another process, or on Windows in use there
            about = file.stat()
            if file.suffix in SUFFIXES and "." not in file.stem:
                found.append((file == wanted, about.st_mtime, about.st_size, file))
            elif time.time() - about.st_mtime > MAX_UNFINISHED_AGE_S:
                file.unlink()
    total = 0
    for _, _, size, file in sorted(found, reverse=True):  # the wanted one, then the last used
        total += size
        if total > MAX_BYTES and file != wanted:
            with suppress(OSError):
                file.unlink()


def _read_stamp(file: Path) -> str:
    """Its size and times; of two that came out of one archive and changed places, only when they did so differs."""
    try:
        about = file.stat()
    except (OSError, ValueError):  # it is named when it is read; ValueError: a name with a zero byte
        return ""
    return f"{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}"
