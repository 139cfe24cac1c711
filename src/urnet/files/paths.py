"""Paths in tables and bundles: their spelling on disk, and whether they leave a folder."""

import os
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath


class DiskNames:
    """Spelling of paths on the disk, where a name has the same letters in another Unicode form (NFC, NFD).

    A table from one system may be read on another system that composes letters differently. Folders are listed once.

    Args:
        root: folder that the paths are relative to.
    """

    def __init__(self, root: Path):
        self.root = root
        self._listed: dict[Path, dict[str, str]] = {}

    def spell(self, path: str) -> str:
        """Return a path with forward slashes as it is spelled on the disk; unchanged where it does not exist."""
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
    """Return whether a path leaves a folder: it is absolute on any system, has `..`, or goes through a link."""
    if PureWindowsPath(path).drive or PureWindowsPath(path).root or ".." in PureWindowsPath(path).parts:
        return True
    try:
        return not (root / path).resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # a link to itself, or a name with a zero byte
        return True
