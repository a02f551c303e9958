"""Memory for what arrives: used again while blobs come in, given back to the kernel when none does any more.

glibc gives a freed buffer back at once and asks for it anew a moment later, and every page of it costs a fault then:
64 MiB that arrive cause 15,000 of them so, and 300 otherwise. After 16 streams of as much at once, an agent that gives
nothing back holds 380 MiB for good. Where the C library is another one, nothing here has an effect.
"""

from __future__ import annotations

import ctypes
from typing import Final

ARENAS: Final = 2
KEPT_FREE_BYTES: Final = 32 << 20
"""Free memory that an arena keeps at its end while blobs arrive."""
MAPPED_BYTES: Final = 4 << 20
"""Buffers from this size on are given back at once all the same."""

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8
"""Of glibc's malloc.h."""

_libc = ctypes.CDLL(None)


def keep_freed() -> None:
    """From now on, in this process."""
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, ARENAS)
        mallopt(_MMAP_THRESHOLD, MAPPED_BYTES)
        mallopt(_TRIM_THRESHOLD, KEPT_FREE_BYTES)


def give_back() -> None:
    """All memory that is free now. Takes milliseconds: call it in a thread."""
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)
