"""Search of folders: follow links, avoid loops, and warn about folders that are not searched."""

import logging
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from urnet.errors import CellsError, list_first

logger = logging.getLogger(__name__)


def find_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Find files by their suffixes in a folder and below it, in the same order on every system.

    Links to folders are followed, and a folder that is reached twice counts once. A link to a parent of the searched
    folder is a loop and is not followed. Hidden files and folders are not searched; a warning names hidden folders with
    such files.

    Broken links to files are in the result: the caller reports them, or calls `refuse_broken_links`. Pipes, sockets and
    devices are left out, with a warning.

    Args:
        folder: the folder.
        suffixes: suffixes in lower case, with their dot.

    Raises:
        CellsError: a folder cannot be read, or a link is broken and may lead to a folder with files.
    """
    above = _with_parents(folder)
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
    _warn_about_loops(folder, loops)
    _warn_about_hidden(folder, search.hidden, suffixes)
    refuse_broken_links(file for file in search.found if file.suffix.lower() not in suffixes)
    named = sorted(
        (f for f in search.found if f.suffix.lower() in suffixes), key=lambda f: f.relative_to(folder).as_posix()
    )
    chosen = [file for file in named if file.is_file() or _is_broken_link(file)]
    if special := [file for file in named if file not in set(chosen)]:
        logger.warning("%s: pipes, sockets and devices are not images: %s", folder, _relative(folder, special))
    return chosen


def find_folders(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Find the folders directly in a folder, in order.

    Hidden folders are left out, with a warning where they have files with the suffixes. Links to the folder itself or
    to a parent are left out, with a warning.

    Raises:
        CellsError: the folder cannot be read, or a link is broken.
    """
    entries = sorted(folder / entry.name for entry in _entries(folder))
    _warn_about_hidden(folder, [path for path in entries if _is_hidden(path.name) and path.is_dir()], suffixes)
    shown = [path for path in entries if not _is_hidden(path.name)]
    refuse_broken_links(shown)
    above = _with_parents(folder)
    loops = [path for path in shown if path.is_dir() and os.path.realpath(path) in above]
    _warn_about_loops(folder, loops)
    return [path for path in shown if path.is_dir() and path not in loops]


@dataclass
class _Search:
    """State of a search: files, links to folders, hidden folders, and the real paths of the searched folders.

    Real paths identify folders, since some network drives have no inodes; they also resolve junctions of Windows.
    """

    seen: set[str]
    found: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)

    def enter(self, folder: Path) -> None:
        """Search a folder and the folders below it, but not the targets of links."""
        pending = [(folder, os.path.realpath(folder))]
        while pending:
            place, real_place = pending.pop()
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
                    pending.append((path, real))
        self.links.sort(key=Path.as_posix)


def _is_hidden(name: str) -> bool:
    """Return whether a file or folder is not searched: it is hidden, or macOS added it to a ZIP archive."""
    return name.startswith(".") or name == "__MACOSX"


def _with_parents(folder: Path) -> set[str]:
    real = os.path.realpath(folder)
    return {real, *map(str, Path(real).parents)}


def _warn_about_loops(folder: Path, loops: list[Path]) -> None:
    if loops:
        logger.warning("%s: links to a folder above it are not followed: %s", folder, _relative(folder, loops))


def _warn_about_hidden(folder: Path, hidden: list[Path], suffixes: Collection[str]) -> None:
    """Warn about hidden folders with files that have the suffixes."""
    descriptions = []
    for path in sorted(hidden):
        names = (name for _, _, names in os.walk(path) for name in names)
        if count := sum(Path(name).suffix.lower() in suffixes for name in names):
            descriptions.append(f"{_relative(folder, [path])} ({count} image{'s' * (count > 1)})")
    if descriptions:
        logger.warning("%s: hidden folders are not searched: %s", folder, list_first(descriptions))


def refuse_broken_links(paths: Iterable[Path]) -> None:
    """Refuse broken links.

    Raises:
        CellsError: a link is broken (`files.link_broken`).
    """
    broken = [path for path in paths if _is_broken_link(path)]
    if broken:
        others = f" ({len(broken)} such links)" if len(broken) > 1 else ""
        raise CellsError(
            f"{broken[0]}: a broken link{others}, whose target would be missing. Repair or remove it",
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
            f"{error.filename}: the folder cannot be read ({error.strerror}). Change its permissions, or move it away",
            code="files.folder_unreadable",
        ) from None


def _is_folder(entry: os.DirEntry) -> bool:
    """Return whether an entry is a folder or a link to one; a link to itself is neither."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_broken_link(file: Path) -> bool:
    """Return whether a file is a link to nothing or to itself."""
    return file.is_symlink() and not file.exists()
