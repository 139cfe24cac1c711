"""Atomic output: files and folders appear complete or not at all."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from urnet.errors import attribute_errors
from urnet.files.locks import IS_WINDOWS
from urnet.files.outputs import lock_output, refuse_existing, staging_file, staging_folder


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary binary file, and give it its name when it is complete.

    Args:
        path: the file; an existing one is replaced.

    Raises:
        OSError: the file cannot be written. An existing file is unchanged, and the temporary one is removed.
    """
    part = staging_file(path)
    with attribute_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if part.is_symlink():  # writing through a link would replace its target
            part.unlink()
        file = part.open("wb")
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        move(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        # torch.save replaces the error of a full disk by a RuntimeError.
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


@contextmanager
def new_file(out: Path) -> Iterator[BinaryIO]:
    """Open a file for the output of a command. It must not exist.

    Args:
        out: the file.

    Raises:
        RunError: the file exists, or another process writes it.
        OSError: the file cannot be written.
    """
    with lock_output(out):
        refuse_existing(out, file=True)
        with atomic_file(out) as file:
            yield file


@contextmanager
def atomic_folder(out: Path, *, replace_files: bool = False) -> Iterator[Path]:
    """Open a temporary folder, and give it its name when it is complete.

    Args:
        out: the folder.
        replace_files: replace files of an existing folder, and leave its other files.

    Raises:
        RunError: `out` is a file or a folder with content, or another process is writing it.
    """
    out = Path(out)
    full, staging = out.resolve(), staging_folder(out)
    if not replace_files:
        refuse_existing(out)
    with lock_output(out):
        if not replace_files:  # another process may have filled it in the meantime
            refuse_existing(out)
        with attribute_errors(out):
            staging.mkdir(parents=True)
        try:
            yield staging
            if replace_files:
                _move_into(staging, full)
            else:
                if full.exists():
                    full.rmdir()
                move(staging, full)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def move(source: Path, place: Path) -> None:
    """Rename a file or folder. On Windows, repeat for two seconds while a scanner has it open.

    Raises:
        OSError: it cannot be renamed.
    """
    for pause in (0.05, 0.15, 0.3, 0.5, 1.0):
        try:
            source.replace(place)
            return
        except PermissionError:
            if not IS_WINDOWS:
                raise
            time.sleep(pause)
    source.replace(place)


def _move_into(source: Path, folder: Path) -> None:
    """Move the files of a folder into another folder, and replace files of the same names."""
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        place = folder / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        move(file, place)
    shutil.rmtree(source)
