"""Search folders for files: with links, without loops, and with warnings about what is left out."""

import logging
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from urnet.errors import CellsError, list_first

logger = logging.getLogger(__name__)


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
