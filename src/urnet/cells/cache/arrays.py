"""Cached pixels of a table as one array, at the size and colour of a network's input.

An entry is an array file that is mapped into memory, with a checksum at its end: a damaged entry is built again. The
folds of a cross-validation and the runs of a benchmark share an entry. Without a usable cache folder, cells are decoded
into memory.
"""

import errno
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import Timeout

from urnet.cells.cache.storage import MIN_FREE_BYTES, evict_entries, fingerprint_images, locate_cell_cache, mark_used
from urnet.cells.pixels import fit_input, load_pixels, survey_images
from urnet.cells.table import Cells
from urnet.errors import CellsError
from urnet.files.atomic import atomic_file
from urnet.files.locks import lock_file, unlock

LOCK_TIMEOUT_S = 600
"""Longest wait for another process that builds the same entry, in seconds. After it, this process builds it too."""

_CHECKSUM_BYTES = 4
"""Length of the checksum at the end of an entry, the CRC-32 of all images, in bytes."""

logger = logging.getLogger(__name__)


def load_cached_pixels(
    cells: Cells,
    size: int,
    channels: int,
    *,
    column: str = "path",
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Load the cells of a table as raw counts from the cache. Build the entry if it is missing.

    Args:
        cells: the table.
        size: edge of the network's input, in pixels.
        channels: 1 or 3.
        column: `path`, or one of `TARGET_COLUMNS` for the paired images.
        progress: called with the number of loaded crops.

    Returns:
        (N, C, S, S), read-only; in the depth of the files, or float32 for several depths.

    Raises:
        ImageError: an image cannot be used.
        CellsError: the cells fit neither on the disk nor into memory (`cells.no_space`).
    """
    try:
        images = _load_entry(cells, size, channels, column, progress)
    except OSError as error:
        logger.warning(
            "decoded cells cannot be stored in %s (%s) and are decoded into memory. Free disk space or allow writing "
            "there, or set URNET_CACHE to another folder",
            locate_cell_cache(),
            getattr(error, "strerror", None) or error,
        )
        images = None
    if images is None:
        try:
            images = load_pixels(cells, size, channels, column=column, progress=progress).images
        except MemoryError:
            raise CellsError(
                f"{len(cells)} cells of {size} px fit neither into memory nor on the disk of {locate_cell_cache()}. "
                "Free disk space, set URNET_CACHE to another folder, or lower input.size",
                code="cells.no_space",
            ) from None
        images.flags.writeable = False
    if progress is not None:
        progress(len(cells))
    return images


def _load_entry(
    cells: Cells, size: int, channels: int, column: str, progress: Callable[[int], None] | None
) -> np.ndarray | None:
    """Load the entry of these cells. Build it if it is missing. Return None if the files change while they are read."""
    folder, key = locate_cell_cache(), fingerprint_images(cells, size, channels, column)
    path, shape = folder / f"{key}.npy", (len(cells), channels, size, size)
    images = _map_entry(path, shape)
    if images is not None:
        return images
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _lock_entry(path.with_suffix(".lock")) as is_alone:
        images = _map_entry(path, shape)  # another process may have built it during the wait
        if images is not None:
            return images
        if is_alone:
            for unfinished in (*folder.glob(f"{key}.*.npy*"), *folder.glob(f".{key}.*.npy*")):
                with suppress(OSError):
                    unfinished.unlink()
        temporary = path.with_suffix(f".{os.getpid()}.npy")
        try:
            _write_entry(temporary, cells, size, channels, column, progress)
            if fingerprint_images(cells, size, channels, column) != key:
                logger.warning("%s: image files change while they are read. Decoded cells are not stored", cells.root)
                return None
            with suppress(PermissionError):  # on Windows, while another process uses the entry
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        evict_entries(path)
    return _map_entry(path, shape)


def _map_entry(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Map an entry into memory and mark it as used. Return None if it is missing or damaged."""
    try:
        images = np.load(path, mmap_mode="r")
        with path.open("rb") as file:
            file.seek(-_CHECKSUM_BYTES, os.SEEK_END)
            checksum = int.from_bytes(file.read(), "little")
            is_complete = file.tell() == images.offset + images.nbytes + _CHECKSUM_BYTES
    except (OSError, ValueError, EOFError):
        return None
    if images.shape != shape or not is_complete or zlib.crc32(images) != checksum:
        return None
    mark_used(path)
    return images


def _write_entry(
    path: Path, cells: Cells, size: int, channels: int, column: str, progress: Callable[[int], None] | None
) -> None:
    """Decode all cells into an array file, one after the other."""
    depths = survey_images(cells, column).depths
    dtype = np.dtype(next(iter(depths)) if len(depths) == 1 else np.float32)
    shape = (len(cells), channels, size, size)
    if shutil.disk_usage(path.parent).free < int(np.prod(shape)) * dtype.itemsize + MIN_FREE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    # A full disk kills a process that writes through a memory map.
    with atomic_file(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        checksum = 0
        for index in range(len(cells)):
            crop = fit_input(cells.read(index, column), size, channels).astype(dtype, copy=False).tobytes()
            checksum = zlib.crc32(crop, checksum)
            file.write(crop)
            if progress is not None:
                progress(index + 1)
        file.write(checksum.to_bytes(_CHECKSUM_BYTES, "little"))


@contextmanager
def _lock_entry(path: Path) -> Iterator[bool]:
    """Lock an entry, so that one process at a time builds it.

    Yields:
        Whether the lock is held. Without it, another process still builds the entry; both results are the same.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        lock = lock_file(path, wait=LOCK_TIMEOUT_S)
    except Timeout:
        yield False
        return
    if lock is None:
        raise OSError(errno.ENOLCK, "no locks on this file system")
    try:
        yield True
    finally:
        unlock(lock)
