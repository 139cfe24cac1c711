"""Open each file of fields once, and decode it once, however many steps of a command read it."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from urnet.fields.io.read import Field, FieldInfo, describe_source, open_source
from urnet.fields.io.source import Source

MAX_OPEN_FILES = 64
"""Number of files that stay open at the same time; systems allow a few hundred a process."""

MAX_CACHED_BYTES = 256 * 2**20
"""Bytes of decoded pixels of all open files above which the files that were used longest ago are closed."""

Choice = tuple[str | None, str | None, str | None]
"""Channel, z plane and scene of a field."""


class FieldPool:
    """Open files of fields, which the steps of one command share. Use it in a `with` statement.

    A file that does not fit into the limits is closed, and opened again when a later step needs it.

    Args:
        max_cached_bytes: limit of the decoded pixels, see `MAX_CACHED_BYTES`.
    """

    def __init__(self, max_cached_bytes: int = MAX_CACHED_BYTES):
        self._max_cached_bytes = max_cached_bytes
        self._sources: OrderedDict[Path, Source] = OrderedDict()
        self._fields: dict[Path, dict[Choice, Field]] = {}
        self._in_use: list[Path] = []
        self._infos: dict[tuple[Path, str | None], FieldInfo] = {}

    def describe(self, path: Path, scene: str | None = None) -> FieldInfo:
        """Describe what a file holds. Of the files that hold one image together, only one is opened.

        Raises:
            ImageError: as `urnet.fields.io.read.describe_field`.
        """
        if (path, scene) not in self._infos:
            info = describe_source(self._source(path), scene)
            self._infos |= {(file, scene): info for file in (path, *info.files)}
        return self._infos[path, scene]

    @contextmanager
    def open(
        self, path: Path, *, channel: str | None = None, z: str | None = None, scene: str | None = None
    ) -> Iterator[Field]:
        """Open a field for reading, or take it from the pool; arguments and errors as for `open_field`."""
        source = self._source(path)
        fields = self._fields.setdefault(path, {})
        if (channel, z, scene) not in fields:
            fields[channel, z, scene] = Field(source, channel, z, scene)
        self._in_use.append(path)
        try:
            yield fields[channel, z, scene]
        finally:
            self._in_use.remove(path)

    def close(self) -> None:
        """Close all files."""
        for path in list(self._sources):
            self._close(path)

    def __enter__(self) -> "FieldPool":
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def _source(self, path: Path) -> Source:
        if path not in self._sources:
            self._make_room()
            self._sources[path] = open_source(path)
        self._sources.move_to_end(path)
        return self._sources[path]

    def _make_room(self) -> None:
        """Close the files that were used longest ago, until another one fits."""
        for path in list(self._sources):
            cached = sum(source.cached_bytes for source in self._sources.values())
            if len(self._sources) < MAX_OPEN_FILES and cached <= self._max_cached_bytes:
                return
            if path not in self._in_use:
                self._close(path)

    def _close(self, path: Path) -> None:
        self._fields.pop(path, None)
        self._sources.pop(path).close()
