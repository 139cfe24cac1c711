"""Files: written whole or not at all, so that a killed process leaves the old as it was; and looked for in folders."""

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from urnet.errors import CellsError


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write a binary file beside its place, and move it there once it is complete.

    Args:
        path: the file; one that is there already is replaced.

    Raises:
        OSError: it cannot be written; what was there before is untouched and the attempt is removed.
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        # torch.save covers a full disk with a RuntimeError about its own bookkeeping.
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Fill a folder beside its place, and give it its name once it is complete.

    Args:
        out: the folder; must not exist, or be empty.

    Raises:
        CellsError: `out` holds something, or what another process left or is writing stands in the way.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CellsError(f"{out}: exists already and is not an empty folder; nothing is overwritten, give another name")
    full = out.resolve()
    staging = full.with_name(f".{full.name}.unfinished")
    if staging.exists():
        raise CellsError(
            f"{staging}: left by a run that was killed, or another is writing to {out} now; remove it if none is"
        )
    staging.mkdir(parents=True)
    try:
        yield staging
        if out.exists():
            out.rmdir()
        staging.rename(full)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def files_below(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Files of some kinds in a folder and below it, in the same order on every system; hidden ones are passed over.

    Args:
        folder: where to look.
        suffixes: endings of the names, in lower case, with their dot.

    Raises:
        CellsError: a folder that cannot be entered: what lies in it would be missing without a word.
    """

    def stop(error: OSError) -> None:
        raise CellsError(f"{error.filename}: cannot be searched ({error.strerror}); allow reading it, or move it away")

    found = []
    for place, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    chosen = (file for file in found if file.suffix.lower() in suffixes and file.is_file())
    return sorted(chosen, key=lambda file: file.relative_to(folder).as_posix())
