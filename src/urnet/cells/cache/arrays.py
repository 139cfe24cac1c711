"""Decoded cells kept on disk: what `load_pixels` makes of a table, built once and mapped into memory.

An entry of the cache is one array file, with a checksum behind the array: what the disk has damaged is decoded again,
and not trained on. Folds of a cross-validation and runs of a benchmark share it. Where nothing can
be kept, cells are decoded into memory.
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
from urnet.files.locks import lock_file

_CHECKSUM_BYTES = 4
"""Bytes of an entry's checksum, the CRC-32 of all its images."""

LOCK_TIMEOUT_S = 600
"""Seconds to wait for another process that decodes the same cells, before doing it as well."""

logger = logging.getLogger(__name__)


def load_cached_pixels(
    cells: Cells,
    size: int,
    channels: int,
    *,
    column: str = "path",
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """The cells of a table as raw counts, from the cache or into it.

    Args:
        cells: the table.
        size: edge of the network's input in pixels.
        channels: 1 or 3.
        column: `path`, or one of `PAIRED` for the paired images.
        progress: called with the number of crops that are there.

    Returns:
        (N, C, S, S) in the files' own depth, float32 where they have several; read only.

    Raises:
        ImageError: an image cannot be used.
        CellsError: nothing can be kept on disk, and they do not fit into memory.
    """
    try:
        images = _load_entry(cells, size, channels, column, progress)
    except OSError as error:
        logger.warning(
            "decoded cells cannot be kept in %s (%s) and are decoded into memory; make room or allow writing there, or "
            "name another folder in URNET_CACHE",
            locate_cell_cache(),
            getattr(error, "strerror", None) or error,
        )
        images = None
    if images is None:
        try:
            images = load_pixels(cells, size, channels, column=column, progress=progress).images
        except MemoryError:
            raise CellsError(
                f"{len(cells)} cells of {size} px fit neither into memory nor on the disk of {locate_cell_cache()}; "
                "free space there, name another folder in URNET_CACHE, or lower input.size"
            ) from None
        images.flags.writeable = False
    if progress is not None:
        progress(len(cells))
    return images


def _load_entry(
    cells: Cells, size: int, channels: int, column: str, progress: Callable[[int], None] | None
) -> np.ndarray | None:
    """The entry of these cells, built where it is missing; none where their files change meanwhile."""
    folder, key = locate_cell_cache(), fingerprint_images(cells, size, channels, column)
    path, shape = folder / f"{key}.npy", (len(cells), channels, size, size)
    images = _map_entry(path, shape)
    if images is not None:
        return images
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _lock_entry(path.with_suffix(".lock")) as alone:
        images = _map_entry(path, shape)  # made while we waited
        if images is not None:
            return images
        if alone:
            for left in (*folder.glob(f"{key}.*.npy*"), *folder.glob(f".{key}.*.npy*")):  # by a killed process
                with suppress(OSError):
                    left.unlink()
        mine = path.with_suffix(f".{os.getpid()}.npy")
        try:
            _write_entry(mine, cells, size, channels, column, progress)
            if fingerprint_images(cells, size, channels, column) != key:
                logger.warning("%s: files change while they are read; decoded cells are not kept", cells.root)
                return None
            with suppress(PermissionError):  # Windows, where another process has the same in use
                mine.replace(path)
        finally:
            mine.unlink(missing_ok=True)
        evict_entries(path)
    return _map_entry(path, shape)


def _map_entry(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """An entry, noted as used; none where it is missing or damaged."""
    try:
        images = np.load(path, mmap_mode="r")
        with path.open("rb") as file:
            file.seek(-_CHECKSUM_BYTES, os.SEEK_END)
            checksum = int.from_bytes(file.read(), "little")
            whole = file.tell() == images.offset + images.nbytes + _CHECKSUM_BYTES
    except (OSError, ValueError, EOFError):
        return None
    if images.shape != shape or not whole or zlib.crc32(images) != checksum:
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
    # Not written through a map, where a full disk kills the process.
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
    """Wait for whoever builds the same entry, so that it is decoded once; two at once would do no harm.

    Yields:
        Whether nobody else builds it.

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
        with suppress(OSError):
            path.unlink(missing_ok=True)
        lock.release()
