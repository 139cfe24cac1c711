"""How glibc hands out memory on Linux: large tensors come and go in every step. Other systems are left as they are."""

import ctypes
import sys
from collections.abc import Callable

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of mallopt, <malloc.h>
_LARGEST = 32 * 2**20
"""Bytes up to which glibc, left to itself, comes to keep blocks; it does not go further."""


def keep_large_blocks() -> None:
    """From now on what a large tensor leaves is kept for the next one.

    The system clears each page that it hands out, which takes several times as long as adding two maps of that size.
    More lies idle between the kept blocks, so that the peak is somewhat higher.
    """
    _set(_MMAP_MAX, 0)
    _set(_TRIM_THRESHOLD, -1)


def return_large_blocks() -> None:
    """From now on what a large tensor leaves goes back to the system at once: the peak is lower, the step longer."""
    _set(_MMAP_THRESHOLD, 2**20)


def as_usual() -> None:
    """End both, and give back what is kept."""
    _set(_MMAP_MAX, 65_536)
    _set(_MMAP_THRESHOLD, _LARGEST)
    _set(_TRIM_THRESHOLD, 2 * _LARGEST)
    trim = _of_the_library("malloc_trim")
    if trim is not None:
        trim(0)


def _set(parameter: int, value: int) -> None:
    mallopt = _of_the_library("mallopt")
    if mallopt is not None:
        mallopt(parameter, value)


def _of_the_library(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
