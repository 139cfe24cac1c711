"""Outputs of commands: locked while they are written, and repaired after a killed process.

While an output is written, its process holds a lock on `.NAME.unfinished.lock` beside it. The system releases the lock
when the process dies, whatever ended it. A staging folder or file beside a lock that nobody holds is therefore a dead
process's and is removed by the next one.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from urnet.errors import RunError, UrnetError, attribute_errors
from urnet.files.locks import lock_file, unlock

TABLE_SIDECAR = ".part.json"
"""Suffix of the file beside a resumable table that says what its rows belong to."""


_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class OutputCompleteError(UrnetError):
    """The same command had completed this output when it was killed."""

    code = "files.done_already"


@dataclass(frozen=True)
class OutputLock:
    """An output that this process may write.

    Attributes:
        left: whether a killed process had begun it.
        same: whether that process ran the same command.
    """

    interrupted: bool = False
    same_command: bool = False


@dataclass(frozen=True)
class _Command:
    """A command, its digest, and what is released when it ends."""

    digest: str
    ends: ExitStack
    places: list[Path]


_COMMAND: ContextVar[_Command | None] = ContextVar("command", default=None)


_LOCKED: ContextVar[tuple[Path, ...]] = ContextVar("locked", default=())


@contextmanager
def command_scope(digest: str) -> Iterator[None]:
    """Mark all outputs within as those of one command, so that a repeated command recognises them.

    Their locks are held until the command ends: killed before that, it finds its complete output when it is repeated.

    Args:
        digest: equal for equal commands over equal inputs.
    """
    with ExitStack() as ends:
        token = _COMMAND.set(_Command(digest, ends, []))
        try:
            yield
        finally:
            _COMMAND.reset(token)


@contextmanager
def lock_output(out: Path, *, in_place: bool = False) -> Iterator[OutputLock]:
    """Lock an output against other processes, and remove what a killed one left of it.

    Within a claimed folder nothing more is locked: all of it belongs to this process.

    Args:
        out: a file or folder.
        in_place: the folder grows under its own name, and a repeated command continues it.

    Raises:
        RunError: another process is writing it, or a folder of unknown origin is at the place of the staging folder.
        OSError: its parent folder cannot be written.
    """
    full = Path(out).resolve()
    command, claims = _COMMAND.get(), _LOCKED.get()
    if _owned(full):
        _remove_staging(full, ours=True)
        yield OutputLock()
        return
    try:
        lock, left = _lock(out, full)
    except OSError as error:
        if in_place and error.errno in _FORBIDDEN and full.is_dir():  # such as a mounted folder
            yield OutputLock()
            return
        raise
    if lock is None:  # nobody knows whether what is left there is dead
        _remove_staging(full, ours=False)
        yield OutputLock()
        return
    record = full.with_name(f".{full.name}.unfinished.json")
    same = command is not None and _read(record) == command.digest
    mine = same or _is_free(full)

    def release() -> None:
        unlock(lock)
        if mine:
            record.unlink(missing_ok=True)

    with ExitStack() as ends:
        ends.callback(release)
        _remove_staging(full, ours=left)
        if mine and command is not None:
            _write(record, command.digest)
        token = _LOCKED.set((*claims, full, staging_folder(full)))
        try:
            yield OutputLock(left, same)
        finally:
            _LOCKED.reset(token)
            if command is not None:
                command.places.append(full)
                command.ends.push(ends.pop_all())


def refuse_existing(path: Path, *, file: bool = False, resumes: bool = False) -> None:
    """Refuse to overwrite anything of the user's.

    Args:
        path: what is to be written.
        file: whether that is a file; an empty folder is in its way.
        resumes: whether the caller continues an interrupted prediction.

    Raises:
        RunError: the path exists, and is not an empty folder that can be filled; or an interrupted prediction has rows
            for a file of this name.
        OutputCompleteError: it exists because the same command wrote it, and was killed afterwards.
    """
    path = Path(path)
    if path.exists() and (file or not path.is_dir() or any(path.iterdir())):
        if _completed_before(path):
            raise _done_already(path)
        raise RunError(f"{path}: exists already; choose another --out, or remove it yourself", code="run.exists")
    rows, sidecar = path.with_name(f"{path.name}.part"), path.with_name(path.name + TABLE_SIDECAR)
    if file and not resumes and rows.is_file() and sidecar.is_file():
        raise RunError(
            f"{rows}: rows of an interrupted prediction that would get the name {path.name}; repeat that command to "
            f"complete it, remove {rows.name} and {sidecar.name}, or choose another --out",
            code="run.interrupted_rows",
        )


def staging_folder(out: Path) -> Path:
    """Where `atomic_folder` fills a folder."""
    full = out.resolve()
    return full.with_name(f".{full.name}.unfinished")


def staging_file(out: Path) -> Path:
    """Where `atomic_file` writes a file."""
    return out.with_name(f".{out.name}.unfinished.part")


def unfinished_files(out: Path) -> list[Path]:
    """Unfinished files of an output that a killed process may have left: named as now, and as version 0.1.0 did."""
    return [staging_file(out), out.with_name(f"{out.name}.part")]


def _owned(full: Path) -> bool:
    """Whether a place lies in what this process has claimed."""
    command = _COMMAND.get()
    places = (*_LOCKED.get(), *(command.places if command is not None else ()))
    return any(full.is_relative_to(place) for place in places)


def _lock(out: Path, full: Path) -> tuple[FileLock | None, bool]:
    """Hold the lock of an output, as `lock_file`; and whether a killed process left its file."""
    path = full.with_name(f".{full.name}.unfinished.lock")
    with attribute_errors(out):
        path.parent.mkdir(parents=True, exist_ok=True)
        left = path.exists()
        try:
            lock = lock_file(path)
        except Timeout:
            if not path.exists():  # Windows does not tell a lock that is held from a folder that is read-only
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path)) from None
            raise RunError(
                f"{out}: another process is writing it now; wait for it, or choose another --out", code="run.busy"
            ) from None
    return lock, left


def _remove_staging(full: Path, *, ours: bool) -> None:
    staging = staging_folder(full)
    if ours:
        shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError):
            staging_file(full).unlink(missing_ok=True)
        return
    if not staging.is_dir():
        return
    try:
        staging.rmdir()
    except OSError:
        raise RunError(
            f"{staging}: in the way of the output; it is unknown what wrote it. Remove it if nothing writes there now",
            code="run.staging",
        ) from None


def _completed_before(path: Path) -> bool:
    """Whether the same command completed an output and was killed then; what it left beside the output is removed."""
    full = path.resolve()
    record = full.with_name(f".{full.name}.unfinished.json")
    if _owned(full) or not (record.exists() or full.with_name(f".{full.name}.unfinished.lock").exists()):
        return False
    try:
        lock, _ = _lock(path, full)
    except (OSError, RunError):
        return False
    if lock is None:
        return False
    command, known = _COMMAND.get(), _read(record)
    with suppress(OSError):
        staging_file(full).unlink(missing_ok=True)
        if full.is_file() and not full.with_name(f"{full.name}.part").exists():
            full.with_name(full.name + TABLE_SIDECAR).unlink(missing_ok=True)
        record.unlink(missing_ok=True)
    unlock(lock)
    return command is not None and known == command.digest


def _done_already(out: Path) -> OutputCompleteError:
    return OutputCompleteError(f"{out}: complete already; the same command wrote it before it was killed")


def _is_free(path: Path) -> bool:
    """Whether nothing is there, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _read(record: Path) -> str | None:
    try:
        return str(json.loads(record.read_text(encoding="utf-8"))["command"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(record: Path, digest: str) -> None:
    with suppress(OSError):  # without it, a repeated command is refused as any other
        record.write_text(json.dumps({"command": digest}) + "\n", encoding="utf-8")
