"""The graph that engines run, stored in the bundle as `engine-<digest>.onnx`.

The digest covers model, version and operators. The user's cache records the hash of every graph that this program
exported. A graph that came with a bundle is not used, because no comparison finds edits that show on rare images only.
`engine` compares the graph with the network at each start.
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
    """A model's graph in ONNX, in the bundle; in memory if the model has no folder or the folder is not writable.

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
        """Whether this user's program exported the graph for this model, and it is unchanged."""
        if self.path is None or self.path.is_symlink():
            return False
        with suppress(OSError):
            return _record_of(self.path.read_bytes()).read_text(encoding="ascii") == self.path.stem
        return False

    def export(self) -> Path | bytes:
        """Export the model, and remove graphs of older weights.

        Returns:
            The file, or its content if it cannot be stored.

        Raises:
            RunError: the model cannot be exported.
        """
        content = to_onnx(self.model)
        if self.path is None:
            return content
        if self.path.exists():
            logger.warning(
                "%s: the graph is exported again, because it was not exported here or was changed", self.path
            )
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}")  # another process may export the same graph
        try:
            with atomic_file(temporary) as file:
                file.write(content)
            temporary.replace(self.path)
            with atomic_file(_record_of(content)) as file:
                file.write(self.path.stem.encode("ascii"))
        except OSError as error:
            temporary.unlink(missing_ok=True)
            logger.warning(
                "%s: the graph cannot be stored (%s) and is exported each time; free space, or make it writable",
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
    """Return the file in the cache that records the export of a graph with this content."""
    return locate_user_cache() / "graphs" / hashlib.sha256(content).hexdigest()
