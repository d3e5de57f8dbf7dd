"""Freed memory, kept for the next training step instead of handed back to the system.

On a CPU every step frees and takes the same hundreds of MiB. glibc hands them back, and every page
is zeroed and mapped again; docs/log.md has the time of a step with and without it.
"""

import ctypes

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Tell this process's malloc to keep what is freed; say whether it understands that."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
    return mallopt is not None and bool(mallopt(TRIM_THRESHOLD, -1) and mallopt(MMAP_MAX, 0))
