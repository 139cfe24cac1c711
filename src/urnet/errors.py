"""What goes wrong on the user's side, in one family, so that the command can print it without a traceback.

Every message says what was found, what the rule is and what to do, and names the file or the key.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def list_first(names: Sequence[str], most: int = 3) -> str:
    """Names in a message: `a, b, c and 2 more`."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class UrnetError(Exception):
    """Base of all errors that a user can mend; the command prints the message and exits 2.

    Attributes:
        code: stable name of the kind of error, such as `images.unreadable`, which tests and API clients match.

    Args:
        message: what was found, the rule, and what to do.
        code: a more exact code than that of the class.
    """

    code = "error"

    def __init__(self, message: str, *, code: str | None = None):
        super().__init__(message)
        if code is not None:
            self.code = code


class ImageError(UrnetError):
    """A file cannot be read as an image, or its pixels cannot be used."""

    code = "images.unusable"


class CellsError(UrnetError):
    """A cells table is incomplete, contradicts itself or is too small for what was asked."""

    code = "cells.invalid"


class LeakError(CellsError):
    """The same cell or donor stands in two parts of a given split."""

    code = "cells.leak"


class RecipeError(UrnetError):
    """A recipe names an unknown key, or gives a key a value outside its range."""

    code = "recipe.invalid"


class WeightsError(UrnetError):
    """Weights are missing, unsafe to load or do not fit the network."""

    code = "weights.unusable"


class RunError(UrnetError):
    """A run folder is missing a part, exists already or belongs to other classes."""

    code = "run.unusable"


class TrainingError(UrnetError):
    """Training stopped: the loss is no number, the disk or the memory is full."""

    code = "training.failed"


class StoreError(UrnetError):
    """Kept labels and corrections cannot be read or written."""

    code = "store.unusable"


@contextmanager
def attribute_errors(path: Path) -> Iterator[None]:
    """Let errors of the system name what the user asked for, and no file that is written beside it meanwhile.

    Args:
        path: what was asked for.

    Raises:
        OSError: as in the context, about `path`; or about the part of it that is a file and should be a folder.
        IsADirectoryError: as in the context: a folder of the user's stands where a file is to be written.
    """
    try:
        yield
    except IsADirectoryError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        file = next((above for above in path.parents if above.is_file()), None)
        number, place = (error.errno, path) if file is None else (errno.ENOTDIR, file)
        raise OSError(number, os.strerror(number), str(place)) from None
