"""Errors that a user can correct; the command line prints them without a traceback.

Each message states what is wrong (with the value and the place), the rule, and the fix.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def list_first(names: Sequence[str], limit: int = 3) -> str:
    """List the first names for a message: `a, b, c and 2 more`."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


class UrnetError(Exception):
    """Base class of all errors that a user can correct. The command line prints the message and exits with code 2.

    Attributes:
        code: stable name of the error, such as `images.unreadable`, for tests and API clients.

    Args:
        message: what is wrong, the rule, and the fix.
        code: a more specific code than that of the class.
    """

    code = "error"

    def __init__(self, message: str, *, code: str | None = None):
        super().__init__(message)
        if code is not None:
            self.code = code


class ImageError(UrnetError):
    """An image file that cannot be read, or pixels that cannot be used."""

    code = "images.unusable"


class CellsError(UrnetError):
    """A cells table that is incomplete, contradictory or too small."""

    code = "cells.invalid"


class LeakError(CellsError):
    """A given split that has the same cell or donor in two parts."""

    code = "cells.leak"


class RecipeError(UrnetError):
    """A recipe with an unknown key, or with a value outside its range."""

    code = "recipe.invalid"


class WeightsError(UrnetError):
    """Weights that are missing, unsafe to load, or of another network."""

    code = "weights.unusable"


class RunError(UrnetError):
    """A run folder that is incomplete, that exists already, or that has other classes."""

    code = "run.unusable"


class TrainingError(UrnetError):
    """A training that stopped: the loss is not a number, or the disk or the memory is full."""

    code = "training.failed"


class StoreError(UrnetError):
    """A database of labels and corrections that cannot be read or written."""

    code = "store.unusable"


@contextmanager
def attribute_errors(path: Path) -> Iterator[None]:
    """Make errors of the operating system name the output of the user, not a temporary file beside it.

    Args:
        path: the output.

    Raises:
        OSError: the error of the context, about `path` or about a part of it that is a file instead of a folder.
        IsADirectoryError: the error of the context, unchanged: a folder of the user has the name of a file.
    """
    try:
        yield
    except IsADirectoryError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        file = next((parent for parent in path.parents if parent.is_file()), None)
        number, place = (error.errno, path) if file is None else (errno.ENOTDIR, file)
        raise OSError(number, os.strerror(number), str(place)) from None
