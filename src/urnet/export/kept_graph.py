"""The graph that engines run, stored in the bundle as `engine-<digest>.onnx`.

The name says of which model, version and operators it is. Its content is not trusted: `engine` compares the graph with
the network each time that it starts.
"""

import hashlib
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from urnet import __version__
from urnet.export.as_onnx import OPSET, to_onnx
from urnet.files import whole_file

if TYPE_CHECKING:
    from urnet.bundle import Model

logger = logging.getLogger(__name__)


class KeptGraph:
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
    def is_there(self) -> bool:
        """Whether it was made before."""
        return self.path is not None and self.path.is_file() and not self.path.is_symlink()

    def make(self) -> Path | bytes:
        """Export the model; the file, or its content where it cannot be kept. Graphs of older weights go.

        Raises:
            RunError: the model cannot be exported.
        """
        content = to_onnx(self.model)
        if self.path is None:
            return content
        mine = self.path.with_name(f"{self.path.name}.{os.getpid()}")  # another process may be making the same
        try:
            with whole_file(mine) as file:
                file.write(content)
            mine.replace(self.path)
        except OSError as error:
            mine.unlink(missing_ok=True)
            logger.warning(
                "%s: the graph cannot be kept (%s) and is made again each time; make room or allow writing there",
                self.path.parent,
                error.strerror or error,
            )
            self.path = None
            return content
        for old in self.path.parent.glob("engine-????????????????.*"):
            if old.stem != self.path.stem:
                with suppress(OSError):
                    old.unlink()
        return self.path
