"""Files that are written whole or not at all: a killed process or a full disk leaves the old one as it was."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write a binary file beside its place, and move it there once it is complete.

    Args:
        path: the file; one that is there already is replaced.

    Raises:
        OSError: it cannot be written; what was there before is untouched and the attempt is removed.
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        # torch.save covers a full disk with a RuntimeError about its own bookkeeping.
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
