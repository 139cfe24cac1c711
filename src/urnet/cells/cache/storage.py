"""Storage of the cell cache: its folder, the names of its entries, and the eviction of old ones.

An entry is one file in the user's cache folder (`URNET_CACHE` moves the folder). Its name is a fingerprint of all that
decides the pixels: paths, sizes and times of the image files, size and colour of the stored crops, versions of the
decoders. Two tables that name the same files share an entry, so a run folder's table uses the entry of the original.
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
"""Size limit of the cache, in bytes. Beyond it, the least recently used entries are removed."""

MIN_FREE_BYTES = 10**9
"""Free disk space that the cache leaves, in bytes."""

MAX_UNFINISHED_AGE_S = 24 * 3600
"""Age from which an unfinished file counts as abandoned, in seconds."""

DECODER_VERSION = 2
"""Version of our decoding. Increase it when `urnet.images.read` or `urnet.cells.pixels` give other pixels."""

SUFFIXES = (".npy", ".crops")
"""File name suffixes of the entries of `arrays` and `crops`."""


def locate_user_cache() -> Path:
    """Return the user's cache folder of this program."""
    chosen = os.environ.get("URNET_CACHE")
    return Path(chosen) if chosen else user_cache_path("urnet", appauthor=False)


def locate_cell_cache() -> Path:
    """Return the folder of decoded cells in the user's cache."""
    return locate_user_cache() / "decoded"


def fingerprint_images(cells: Cells, size: int | None, channels: int | None, column: str) -> str:
    """Compute the fingerprint of a table's images, 32 hexadecimal digits.

    Args:
        cells: the table.
        size: edge of the stored crops, in pixels; None for crops as they are in their files.
        channels: number of channels of the stored crops; None for crops as they are in their files.
        column: `path`, or one of `TARGET_COLUMNS`.
    """
    decoders = [str(DECODER_VERSION), *map(version, ("pillow", "tifffile", "imagecodecs"))]
    content = sha256("\0".join((*decoders, str(size), str(channels), column)).encode())
    previous, stamp = "", ""
    root = cells.root.resolve()
    for path, tile in zip(cells.table[column], cells.table.get("tile", [""] * len(cells)), strict=True):
        file = resolve_address(cells.root, path).file
        if file != previous:  # tiles of one montage follow each other
            previous, stamp = file, _read_stamp(cells.root / file)
        address = os.path.normpath(root / path)
        content.update("\0".join(("", address, tile, stamp)).encode("utf-8", "surrogateescape"))
    return content.hexdigest()[:32]


def mark_used(entry: Path) -> None:
    """Set the time of last use of an entry, unless the cache is read-only."""
    with suppress(OSError):
        os.utime(entry)


def evict_entries(newest: Path) -> None:
    """Remove abandoned files, and the least recently used entries beyond `MAX_BYTES`.

    Args:
        newest: entry that is never removed.
    """
    entries = []
    for file in newest.parent.iterdir():
        with suppress(OSError):  # another process removed it, or uses it on Windows
            status = file.stat()
            if file.suffix in SUFFIXES and "." not in file.stem:
                entries.append((file == newest, status.st_mtime, status.st_size, file))
            elif time.time() - status.st_mtime > MAX_UNFINISHED_AGE_S:
                file.unlink()
    total = 0
    for _, _, size, file in sorted(entries, reverse=True):  # the newest entry, then by time of last use
        total += size
        if total > MAX_BYTES and file != newest:
            with suppress(OSError):
                file.unlink()


def _read_stamp(file: Path) -> str:
    """Return size, modification time and change time of a file, or "" without one.

    The change time tells two unpacked files of equal size and modification time apart after they were swapped.
    """
    try:
        status = file.stat()
    except (OSError, ValueError):  # reading it raises the error; ValueError: a name with a zero byte
        return ""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
