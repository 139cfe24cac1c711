"""Outputs of commands: locked while they are written, and repaired after a killed process.

A process that writes an output holds a lock on `.NAME.unfinished.lock` beside it. The system releases the lock when
the process ends, also when it is killed. A staging folder or file beside a free lock therefore belongs to a dead
process, and the next process removes it.
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
"""Suffix of the file beside a resumable table that describes its rows."""

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class OutputCompleteError(UrnetError):
    """An output that the same command had completed before it was killed."""

    code = "files.done_already"


@dataclass(frozen=True)
class OutputLock:
    """An output that this process may write.

    Attributes:
        interrupted: a killed process had begun the output.
        same_command: that process ran the same command.
    """

    interrupted: bool = False
    same_command: bool = False


@dataclass(frozen=True)
class _Command:
    """The running command: its digest, its outputs, and the locks to release when it ends."""

    digest: str
    cleanup: ExitStack
    outputs: list[Path]


_COMMAND: ContextVar[_Command | None] = ContextVar("command", default=None)
_LOCKED: ContextVar[tuple[Path, ...]] = ContextVar("locked", default=())


@contextmanager
def command_scope(digest: str) -> Iterator[None]:
    """Assign all outputs in this context to one command, so that the repeated command recognises them.

    Locks are held until the command ends. A command that is killed before its end recognises its complete outputs when
    it is repeated.

    Args:
        digest: digest of the command and its inputs.
    """
    with ExitStack() as ends:
        token = _COMMAND.set(_Command(digest, ends, []))
        try:
            yield
        finally:
            _COMMAND.reset(token)


@contextmanager
def lock_output(out: Path, *, in_place: bool = False) -> Iterator[OutputLock]:
    """Lock an output against other processes, and remove the staging files of a killed process.

    Outputs within a locked folder need no lock of their own.

    Args:
        out: a file or folder.
        in_place: the folder is filled under its own name, and a repeated command continues it.

    Raises:
        RunError: another process writes the output, or an unknown folder has the name of the staging folder.
        OSError: the parent folder cannot be written.
    """
    full = Path(out).resolve()
    command, locked = _COMMAND.get(), _LOCKED.get()
    if _is_locked_here(full):
        _remove_staging(full, abandoned=True)
        yield OutputLock()
        return
    try:
        lock, interrupted = _lock(out, full)
    except OSError as error:
        if in_place and error.errno in _FORBIDDEN and full.is_dir():  # such as a mounted folder
            yield OutputLock()
            return
        raise
    if lock is None:  # without locks, a staging folder may belong to a running process
        _remove_staging(full, abandoned=False)
        yield OutputLock()
        return
    record = full.with_name(f".{full.name}.unfinished.json")
    same = command is not None and _read(record) == command.digest
    is_recorded = same or _is_free(full)

    def release() -> None:
        unlock(lock)
        if is_recorded:
            record.unlink(missing_ok=True)

    with ExitStack() as ends:
        ends.callback(release)
        _remove_staging(full, abandoned=interrupted)
        if is_recorded and command is not None:
            _write(record, command.digest)
        token = _LOCKED.set((*locked, full, staging_folder(full)))
        try:
            yield OutputLock(interrupted, same)
        finally:
            _LOCKED.reset(token)
            if command is not None:
                command.outputs.append(full)
                command.cleanup.push(ends.pop_all())


def refuse_existing(path: Path, *, file: bool = False, resumes: bool = False) -> None:
    """Refuse to overwrite files of the user.

    Args:
        path: the output.
        file: the output is a file; an empty folder of its name is refused, too.
        resumes: the caller continues an interrupted prediction.

    Raises:
        RunError: the path exists and is not an empty folder, or an interrupted prediction has rows for this file.
        OutputCompleteError: the same command had written the output before it was killed.
    """
    path = Path(path)
    if path.exists() and (file or not path.is_dir() or any(path.iterdir())):
        if _completed_before(path):
            raise _output_complete(path)
        raise RunError(f"{path}: exists already; choose another --out, or remove it", code="run.exists")
    rows, sidecar = path.with_name(f"{path.name}.part"), path.with_name(path.name + TABLE_SIDECAR)
    if file and not resumes and rows.is_file() and sidecar.is_file():
        raise RunError(
            f"{rows}: rows of an interrupted prediction of {path.name}. Repeat that command to complete "
            f"it, remove {rows.name} and {sidecar.name}, or choose another --out",
            code="run.interrupted_rows",
        )


def staging_folder(out: Path) -> Path:
    """Return the path of the folder that `atomic_folder` fills before it is renamed."""
    full = out.resolve()
    return full.with_name(f".{full.name}.unfinished")


def staging_file(out: Path) -> Path:
    """Return the path of the file that `atomic_file` writes before it is renamed."""
    return out.with_name(f".{out.name}.unfinished.part")


def unfinished_files(out: Path) -> list[Path]:
    """List the staging files that a killed process may have left, including that of version 0.1.0."""
    return [staging_file(out), out.with_name(f"{out.name}.part")]


def _is_locked_here(full: Path) -> bool:
    """Return whether a path lies in an output that this process has locked."""
    command = _COMMAND.get()
    outputs = (*_LOCKED.get(), *(command.outputs if command is not None else ()))
    return any(full.is_relative_to(output) for output in outputs)


def _lock(out: Path, full: Path) -> tuple[FileLock | None, bool]:
    """Lock an output with `lock_file`, and find out whether a killed process left the lock file."""
    path = full.with_name(f".{full.name}.unfinished.lock")
    with attribute_errors(out):
        path.parent.mkdir(parents=True, exist_ok=True)
        interrupted = path.exists()
        try:
            lock = lock_file(path)
        except Timeout:
            if not path.exists():  # Windows reports a held lock and a read-only folder alike
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path)) from None
            raise RunError(
                f"{out}: another process is writing it. Wait until it ends, or choose another --out", code="run.busy"
            ) from None
    return lock, interrupted


def _remove_staging(full: Path, *, abandoned: bool) -> None:
    """Remove the staging folder and file of an abandoned output; refuse a folder of unknown origin."""
    staging = staging_folder(full)
    if abandoned:
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
            f"{staging}: this folder blocks the output, and its origin is unknown. Remove it if no program uses it",
            code="run.staging",
        ) from None


def _completed_before(path: Path) -> bool:
    """Return whether the same command had completed an output before it was killed. Its temporary files are removed."""
    full = path.resolve()
    record = full.with_name(f".{full.name}.unfinished.json")
    if _is_locked_here(full) or not (record.exists() or full.with_name(f".{full.name}.unfinished.lock").exists()):
        return False
    try:
        lock, _ = _lock(path, full)
    except (OSError, RunError):
        return False
    if lock is None:
        return False
    command, digest = _COMMAND.get(), _read(record)
    with suppress(OSError):
        staging_file(full).unlink(missing_ok=True)
        if full.is_file() and not full.with_name(f"{full.name}.part").exists():
            full.with_name(full.name + TABLE_SIDECAR).unlink(missing_ok=True)
        record.unlink(missing_ok=True)
    unlock(lock)
    return command is not None and digest == command.digest


def _output_complete(out: Path) -> OutputCompleteError:
    return OutputCompleteError(f"{out}: complete already. The same command had written it before it was killed")


def _is_free(path: Path) -> bool:
    """Return whether a path does not exist, or is an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _read(record: Path) -> str | None:
    try:
        return str(json.loads(record.read_text(encoding="utf-8"))["command"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(record: Path, digest: str) -> None:
    with suppress(OSError):  # without the record, a repeated command is refused
        record.write_text(json.dumps({"command": digest}) + "\n", encoding="utf-8")
