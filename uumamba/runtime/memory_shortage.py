"""Memory of the process, and out-of-memory errors of CPUs and accelerators."""

import gc
import resource
from pathlib import Path

import torch

from uumamba.runtime.errors import UumambaError

NO_MEMORY = (
    "out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
    "could not create a primitive",
)
"""Message parts of RuntimeErrors that mean out of memory; the last entry is oneDNN's."""


class OutOfMemoryError(UumambaError):
    """Work that exceeds the memory and cannot be split further."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out.

    Example:
        >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory.")), is_out_of_memory(RuntimeError("shapes"))
        (True, False)
    """
    is_unnamed = isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    return is_unnamed or isinstance(error, torch.OutOfMemoryError | MemoryError)


def summarize_error(error: BaseException) -> str:
    r"""Return the first line of an error's message.

    An error without a message gives its type.

    Example:
        >>> summarize_error(MemoryError()), summarize_error(RuntimeError("no room\nand much more"))
        ('MemoryError', 'no room')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def free_memory(device: torch.device) -> None:
    """Free unreferenced tensors and CUDA's cache.

    Call it outside the ``except`` block: the error's stack frames keep tensors alive.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measure_resident_bytes() -> int:
    """Return the size of this process in memory.

    On systems without ``/proc`` it is the largest size so far.

    Example:
        >>> measure_resident_bytes() > 10_000_000
        True
    """
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
