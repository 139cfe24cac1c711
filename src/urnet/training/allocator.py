"""How the C library hands out memory on Linux: large tensors come and go in every step."""

import ctypes
import sys

_MMAP_THRESHOLD = -3  # of mallopt, <malloc.h>


def return_large_blocks() -> None:
    """From now on what a large tensor leaves goes back to the system at once, and lies not idle between smaller ones.

    That lowers the peak and costs time, since every page is cleared again. glibc's own way lies between; other systems
    are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 2**20)
