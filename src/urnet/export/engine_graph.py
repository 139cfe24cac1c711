"""The graph that engines run, stored in the bundle as `engine-<digest>.onnx`.

The name says of which model, version and operators it is. The user's cache records the hash of every graph that this
program exported. A graph that came with a bundle is not used: no comparison finds edits that show on rare images only.
`engine` compares the graph with the network each time that it starts.
"""

import hashlib
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from urnet.cells.cache.storage import locate_user_cache
from urnet.export.onnx_format import OPSET, to_onnx
from urnet.files.atomic import atomic_file
from urnet.version import __version__

if TYPE_CHECKING:
    from urnet.bundle.model import Model

logger = logging.getLogger(__name__)


class CachedGraph:
    """A model's graph in ONNX, in its bundle's folder; in memory where the model has none, or nothing can be written.

    Args:
        model: the model.
    """

    def __init__(self, model: "Model"):
        self.model = model
        self.path: Path | None = None
        if model.folder is not None:
            digest = hashlib.sha256(f"{model.digest()} {__version__} {OPSET}".encode()).hexdigest()[:16]
            self.path = model.folder / f"engine-{digest}.onnx"

    @property
    def is_valid(self) -> bool:
        """Whether this user's program exported it for this model, and its content is unchanged."""
        if self.path is None or self.path.is_symlink():
            return False
        with suppress(OSError):
            return _record_of(self.path.read_bytes()).read_text(encoding="ascii") == self.path.stem
        return False

    def export(self) -> Path | bytes:
        """Export the model; the file, or its content where it cannot be kept. Graphs of older weights go.

        Raises:
            RunError: the model cannot be exported.
        """
        content = to_onnx(self.model)
        if self.path is None:
            return content
        if self.path.exists():
            logger.warning("%s: is made anew, since it was not exported here or has been changed", self.path)
        mine = self.path.with_name(f"{self.path.name}.{os.getpid()}")  # another process may be making the same
        try:
            with atomic_file(mine) as file:
                file.write(content)
            mine.replace(self.path)
            with atomic_file(_record_of(content)) as file:
                file.write(self.path.stem.encode("ascii"))
        except OSError as error:
            mine.unlink(missing_ok=True)
            logger.warning(
                "%s: the graph cannot be kept (%s) and is made again each time; make room or allow writing there",
                self.path.parent,
                error.strerror or error,
            )
            self.path = None
            return content
        folder, pattern = self.path.parent, "engine-????????????????.*"
        for old in (*folder.glob(pattern), *folder.glob(f".{pattern}.unfinished.part")):
            if old.stem != self.path.stem:
                with suppress(OSError):
                    old.unlink()
        return self.path


def _record_of(content: bytes) -> Path:
    """The file that says of which model a graph with this content was exported."""
    return locate_user_cache() / "graphs" / hashlib.sha256(content).hexdigest()
