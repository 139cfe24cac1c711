"""Paths in tables and bundles: their spelling on disk, and whether they leave a folder."""

import os
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath


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
