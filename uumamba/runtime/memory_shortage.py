"""Memory that ran out, on a processor or an accelerator: how torch says so, and what gives some back."""

import gc

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
"""What the messages of errors hold that torch raises as a plain RuntimeError; the last is oneDNN's without memory."""


class OutOfMemoryError(UumambaError):
    """What was to be computed does not fit into memory, and cannot be made to fit."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out.

    Example:
        >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory.")), is_out_of_memory(RuntimeError("shapes"))
        (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def reason_of(error: BaseException) -> str:
    r"""The first line of what an error says, or what kind it is.

    Example:
        >>> reason_of(MemoryError()), reason_of(RuntimeError("no room\nand much more"))
        ('MemoryError', 'no room')
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def free_memory(device: torch.device) -> None:
    """Give back what nobody holds any more; called when the error is gone, and with it the frames that held tensors."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
