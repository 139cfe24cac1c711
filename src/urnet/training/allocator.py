"""How the C library hands out memory on Linux: large tensors come and go in every step."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, <malloc.h>


def keep_freed_memory(keep: bool) -> None:
    """Decide what becomes of what tensors leave. glibc's own way lies between; elsewhere nothing is changed.

    Args:
        keep: True: the next step has it, which is faster: Linux would clear every page of it first. False: it goes
            back at once, so that nothing lies idle between smaller blocks.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 2**30 if keep else 2**20)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1 if keep else 2**17)


def give_back_memory() -> None:
    """Return what is free to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
