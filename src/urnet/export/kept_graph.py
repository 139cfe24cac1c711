"""The graph that engines run, kept beside the bundle: `engine-<digest>.onnx`, and `.json` on who is trusted."""

import hashlib
import json
import logging
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from urnet import __version__
from urnet.export.as_onnx import OPSET, to_onnx
from urnet.export.parity import Parity
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
        return self.path is not None and self.path.is_file()

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

    def is_trusted(self, engine: str) -> bool:
        """Whether an engine was found to say what PyTorch says, of this very file and on this machine."""
        if not self.is_there:
            return False
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads(self._record.read_text(encoding="utf-8"))
            return record["sha256"] == self._hash() and _here(engine) in record["parity"]
        return False

    def trust(self, engine: str, parity: Parity) -> None:
        """Remember that an engine was compared with PyTorch, and how far it was off."""
        if not self.is_there:
            return
        digest, known = self._hash(), {}
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads(self._record.read_text(encoding="utf-8"))
            known = dict(record["parity"]) if record["sha256"] == digest else {}
        record = {"sha256": digest, "parity": known | {_here(engine): str(parity)}}
        with suppress(OSError), whole_file(self._record) as file:
            file.write(json.dumps(record, indent=2).encode())

    @property
    def _record(self) -> Path:
        assert self.path is not None
        return self.path.with_suffix(".json")

    def _hash(self) -> str:
        assert self.path is not None
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _here(engine: str) -> str:
    return f"{engine} on {platform.node()}"
