"""Settings of the C library's memory allocator."""

import ctypes
import platform

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of glibc's malloc.h
_LARGEST_REUSED = 32 * 2**20  # glibc's limit; larger blocks go back to the kernel at once
_MOST_FREE = 256 * 2**20


def reuse_freed_memory() -> bool:
    """Let the process reuse freed blocks of up to 32 MiB.

    By default glibc returns feature maps to the kernel after every layer, and new pages are cleared at their first use:
    a ninth of a prediction's CPU time. At most 256 MiB at the end of the heap stay with the process.

    It applies to the complete process, so only the command line calls it.

    Returns:
        False without glibc, where nothing changes.

    Example:
        >>> reuse_freed_memory() == (platform.libc_ver()[0] == "glibc")
        True
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    change = ctypes.CDLL(None).mallopt
    return bool(change(_MMAP_THRESHOLD, _LARGEST_REUSED) and change(_TRIM_THRESHOLD, _MOST_FREE))
