"""The C library's heap, from which tensors on the CPU, decoded pictures and encoders' buffers come.

glibc by default maps every large block anew and gives it back when it is freed, so that the kernel clears its pages for
every tensor of every step. Linux with glibc only (mallopt(3), malloc_trim(3)); elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_MOST = 2**31 - 1


def keep_freed_memory() -> None:
    """From now on freed memory stays with the process for its next allocation, until `give_back_freed_memory`."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # musl has no mallopt
            libc = ctypes.CDLL(None)
            libc.mallopt(_M_MMAP_MAX, 0)
            libc.mallopt(_M_TRIM_THRESHOLD, _MOST)


def give_back_freed_memory() -> None:
    """Returns whole free pages to the system, also those between small blocks that are still in use."""
    if sys.platform == "linux":
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
