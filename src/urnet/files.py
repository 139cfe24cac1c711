"""Files: written whole or not at all, so that a killed process leaves the old as it was; and looked for in folders."""

import errno
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from urnet.errors import CellsError


@contextmanager
def blamed_on(path: Path) -> Iterator[None]:
    """Let errors of the system name what the user asked for, and no file that is written beside it meanwhile.

    Args:
        path: what was asked for.

    Raises:
        OSError: as in the context, about `path`; or about the part of it that is a file and should be a folder.
        IsADirectoryError: as in the context: a folder of the user's stands where a file is to be written.
    """
    try:
        yield
    except IsADirectoryError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        file = next((above for above in path.parents if above.is_file()), None)
        number, place = (error.errno, path) if file is None else (errno.ENOTDIR, file)
        raise OSError(number, os.strerror(number), str(place)) from None


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write a binary file beside its place, and move it there once it is complete.

    Args:
        path: the file; one that is there already is replaced.

    Raises:
        OSError: it cannot be written; what was there before is untouched and the attempt is removed.
    """
    part = path.with_name(path.name + ".part")
    with blamed_on(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("wb")
    try:
        with file:
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
    full, staging = out.resolve(), staging_of(out)
    with blamed_on(out):
        left = staging.exists()
        if not left:
            staging.mkdir(parents=True)
    if left:
        raise CellsError(
            f"{staging}: left by a run that was killed, or another is writing to {out} now; remove it if none is"
        )
    try:
        yield staging
        if out.exists():
            out.rmdir()
        staging.rename(full)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def staging_of(out: Path) -> Path:
    """Where `whole_folder` fills a folder."""
    full = out.resolve()
    return full.with_name(f".{full.name}.unfinished")


def files_below(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Files of some kinds in a folder and below it, in the same order on every system; hidden ones are passed over.

    Links that lead nowhere are among them: whoever reads them says so, where a count would lack them without a word.

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
    chosen = (file for file in found if file.suffix.lower() in suffixes and (file.is_file() or _leads_nowhere(file)))
    return sorted(chosen, key=lambda file: file.relative_to(folder).as_posix())


def _leads_nowhere(file: Path) -> bool:
    """Whether it is a link to what is not there, or to itself."""
    return file.is_symlink() and not file.exists()
