"""Atomic output: files and folders appear complete or not at all, and a killed command can be repeated.

While an output is written, its process holds a lock on `.NAME.unfinished.lock` beside it. The system releases the lock
when the process dies, whatever ended it. A staging folder or file beside a lock that nobody holds is therefore a dead
process's and is removed by the next one.
"""

import errno
import json
import logging
import os
import shutil
import time
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from filelock import FileLock, Timeout

from urnet.errors import CellsError, RunError, UrnetError, list_first

logger = logging.getLogger(__name__)

TABLE_SIDECAR = ".part.json"
"""Suffix of the file beside a resumable table that says what its rows belong to."""

_IS_WINDOWS = os.name == "nt"
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


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
        _unlock(lock)
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
        raise RunError(f"{path}: exists already; choose another --out, or remove it yourself")
    rows, sidecar = path.with_name(f"{path.name}.part"), path.with_name(path.name + TABLE_SIDECAR)
    if file and not resumes and rows.is_file() and sidecar.is_file():
        raise RunError(
            f"{rows}: rows of an interrupted prediction that would get the name {path.name}; repeat that command to "
            f"complete it, remove {rows.name} and {sidecar.name}, or choose another --out",
            code="run.interrupted_rows",
        )


@contextmanager
def attribute_errors(path: Path) -> Iterator[None]:
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
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Write a binary file beside its place, and move it there once it is complete.

    Args:
        path: the file; one that is there already is replaced.

    Raises:
        OSError: it cannot be written; what was there before is untouched and the attempt is removed.
    """
    part = staging_file(path)
    with attribute_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if part.is_symlink():  # writing through it would replace the file that it leads to
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
        # torch.save covers a full disk with a RuntimeError about its own bookkeeping.
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


@contextmanager
def new_file(out: Path) -> Iterator[BinaryIO]:
    """Write a file that a user asked for, which must not exist.

    Args:
        out: the file.

    Raises:
        RunError: it exists, or another process is writing it.
        OSError: it cannot be written.
    """
    with lock_output(out):
        refuse_existing(out, file=True)
        with atomic_file(out) as file:
            yield file


@contextmanager
def atomic_folder(out: Path, *, replace_files: bool = False) -> Iterator[Path]:
    """Fill a folder beside its place, and give it its name once it is complete.

    Args:
        out: the folder.
        replace_files: replace files of an existing folder, and leave its other files.

    Raises:
        CellsError: `out` holds something.
        RunError: another process is writing it.
    """
    out = Path(out)
    full, staging = out.resolve(), staging_folder(out)
    if not replace_files:
        _refuse_filled(out)
    with lock_output(out):
        if not replace_files:  # another process may have filled it meanwhile
            _refuse_filled(out)
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


def move(source: Path, place: Path) -> None:
    """Rename a file or folder; where Windows refuses since a scanner has it open, try again for two seconds.

    Raises:
        OSError: it cannot be moved.
    """
    for pause in (0.05, 0.15, 0.3, 0.5, 1.0):
        try:
            source.replace(place)
            return
        except PermissionError:
            if not _IS_WINDOWS:
                raise
            time.sleep(pause)
    source.replace(place)


def _move_into(source: Path, folder: Path) -> None:
    """Move the files of a folder into another one, over those of the same names."""
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        place = folder / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        move(file, place)
    shutil.rmtree(source)


def _owned(full: Path) -> bool:
    """Whether a place lies in what this process has claimed."""
    command = _COMMAND.get()
    places = (*_LOCKED.get(), *(command.places if command is not None else ()))
    return any(full.is_relative_to(place) for place in places)


def lock_file(path: Path, *, wait: float = 0) -> FileLock | None:
    """Lock a file, which is made where it is missing. The system releases the lock when this process ends.

    Args:
        path: the file.
        wait: seconds to wait for another process that holds it.

    Returns:
        The lock, held; none on a file system without working locks, where no file is left.

    Raises:
        Timeout: another process holds it.
        OSError: the file cannot be written.
    """
    # filelock's substitute for missing locks, a file that exists, outlives a killed process.
    lock = FileLock(path, timeout=wait, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return None
    return lock


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


def _unlock(lock: FileLock) -> None:
    """Remove the file while it is held where the system can, so that nobody locks a file that is about to go."""
    with suppress(OSError):
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
    with suppress(OSError):
        if _IS_WINDOWS:
            Path(lock.lock_file).unlink(missing_ok=True)


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
    _unlock(lock)
    return command is not None and known == command.digest


def _refuse_filled(out: Path) -> None:
    if _is_free(out):
        return
    if _completed_before(out):
        raise _done_already(out)
    raise CellsError(f"{out}: exists already and is not an empty folder; nothing is overwritten, give another name")


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


def find_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Find the files of some kinds in a folder and below it, in the same order on every system.

    Links to folders are followed. A folder that is reached twice counts once, where it really lies or by the first
    link in order; a link to a folder that holds the searched one is a loop, and not followed. Hidden files and folders
    are not searched; hidden folders that hold such files are named in a warning.

    Links to files that lead nowhere are among the files: the caller reports them, in the file's own row or with
    `refuse_broken_links`. Pipes, sockets and devices with such a name are left out and named in a warning.

    Args:
        folder: where to search.
        suffixes: endings of the names, in lower case, with their dot.

    Raises:
        CellsError: a folder that cannot be entered, or a link that leads nowhere: what lies there would be missing
            without a word.
    """
    above = _with_those_above(folder)
    search = _Search(seen=set(above))
    search.enter(folder)
    loops = []
    while search.links:
        link = search.links.pop(0)
        if (real := os.path.realpath(link)) in above:
            loops.append(link)
        elif real not in search.seen:
            search.seen.add(real)
            search.enter(link)
    _name_loops(folder, loops)
    _name_hidden(folder, search.hidden, suffixes)
    refuse_broken_links(file for file in search.found if file.suffix.lower() not in suffixes)
    named = sorted(
        (f for f in search.found if f.suffix.lower() in suffixes), key=lambda f: f.relative_to(folder).as_posix()
    )
    chosen = [file for file in named if file.is_file() or _leads_nowhere(file)]
    if special := [file for file in named if file not in set(chosen)]:
        logger.warning("%s: pipes, sockets and devices are no images: %s", folder, _relative(folder, special))
    return chosen


def find_folders(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The folders that lie directly in a folder, in order; hidden ones are named where they hold files of some kinds.

    Links to the folder itself or to one above it are left out, and named.

    Raises:
        CellsError: a folder that cannot be entered, or a link that leads nowhere, as in `find_files`.
    """
    entries = sorted(folder / entry.name for entry in _entries(folder))
    _name_hidden(folder, [path for path in entries if _is_hidden(path.name) and path.is_dir()], suffixes)
    shown = [path for path in entries if not _is_hidden(path.name)]
    refuse_broken_links(shown)
    above = _with_those_above(folder)
    loops = [path for path in shown if path.is_dir() and os.path.realpath(path) in above]
    _name_loops(folder, loops)
    return [path for path in shown if path.is_dir() and path not in loops]


@dataclass
class _Search:
    """What was found in some folders: files, links to folders, hidden folders; and the real paths of those entered.

    Real paths and not inodes, which some network drives do not have; they also see through the junctions of Windows.
    """

    seen: set[str]
    found: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)

    def enter(self, folder: Path) -> None:
        """Search a folder and all below it but not what it links to."""
        waiting = [(folder, os.path.realpath(folder))]
        while waiting:
            place, real_place = waiting.pop()
            for entry in _entries(place):
                path = place / entry.name
                if _is_hidden(entry.name):
                    self.hidden += [path] if _is_folder(entry) else []
                elif not _is_folder(entry):
                    self.found.append(path)
                elif (real := os.path.realpath(path)) != str(Path(real_place, entry.name)):
                    self.links.append(path)
                elif real not in self.seen:
                    self.seen.add(real)
                    waiting.append((path, real))
        self.links.sort(key=Path.as_posix)


def _is_hidden(name: str) -> bool:
    """Whether a file or folder is not searched: hidden ones, and the folder that macOS adds to its ZIP archives."""
    return name.startswith(".") or name == "__MACOSX"


def _with_those_above(folder: Path) -> set[str]:
    real = os.path.realpath(folder)
    return {real, *map(str, Path(real).parents)}


def _name_loops(folder: Path, loops: list[Path]) -> None:
    if loops:
        logger.warning("%s: links to a folder above it are not followed: %s", folder, _relative(folder, loops))


def _name_hidden(folder: Path, hidden: list[Path], suffixes: Collection[str]) -> None:
    """Name hidden folders, and how many files of some kinds they hold, in a warning."""
    told = []
    for path in sorted(hidden):
        names = (name for _, _, names in os.walk(path) for name in names)
        if count := sum(Path(name).suffix.lower() in suffixes for name in names):
            told.append(f"{_relative(folder, [path])} ({count} image{'s' * (count > 1)})")
    if told:
        logger.warning("%s: hidden folders are not searched: %s", folder, list_first(told))


def refuse_broken_links(paths: Iterable[Path]) -> None:
    """Refuse links that lead nowhere.

    Raises:
        CellsError: there are such links (`files.link_broken`).
    """
    broken = [path for path in paths if _leads_nowhere(path)]
    if broken:
        others = f" ({len(broken)} such links)" if len(broken) > 1 else ""
        raise CellsError(
            f"{broken[0]}: a link that leads nowhere{others}; what it stands for would be missing: mend or remove it",
            code="files.link_broken",
        )


def _relative(folder: Path, paths: list[Path]) -> str:
    return list_first([path.relative_to(folder).as_posix() for path in paths])


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise CellsError(
            f"{error.filename}: cannot be searched ({error.strerror}); allow reading it, or move it away"
        ) from None


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether it is a folder or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _leads_nowhere(file: Path) -> bool:
    """Whether it is a link to what is not there, or to itself."""
    return file.is_symlink() and not file.exists()


class DiskNames:
    """Spell paths as their folders do, where names are the same text in other Unicode forms (NFC, NFD).

    A table written on one system may be read on another that composes letters differently. Folders are listed once.

    Args:
        root: folder that the paths are relative to.
    """

    def __init__(self, root: Path):
        self.root = root
        self._listed: dict[Path, dict[str, str]] = {}

    def spell(self, path: str) -> str:
        """A path, with forward slashes, as the disk spells it; unchanged where nothing on the disk is called so."""
        if path.isascii() or os.path.lexists(self.root / path):
            return path
        place, parts = self.root, PurePosixPath(path).parts
        for part in parts:
            if not part.isascii() and not os.path.lexists(place / part):
                part = self._listing(place).get(unicodedata.normalize("NFC", part), part)
            place = place / part
        return place.relative_to(self.root).as_posix() if not Path(path).is_absolute() else place.as_posix()

    def _listing(self, folder: Path) -> dict[str, str]:
        if folder not in self._listed:
            try:
                names = [path.name for path in folder.iterdir()]
            except OSError:
                names = []
            self._listed[folder] = {unicodedata.normalize("NFC", name): name for name in names}
        return self._listed[folder]


def is_outside(root: Path, path: str) -> bool:
    """Whether a path leads out of a folder: absolute on any system, with `..`, or through a link."""
    if PureWindowsPath(path).drive or PureWindowsPath(path).root or ".." in PureWindowsPath(path).parts:
        return True
    try:
        return not (root / path).resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # a link to itself, a name with a zero byte
        return True
