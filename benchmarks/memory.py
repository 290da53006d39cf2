"""Peak memory of a function call."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch


def measure_peak_mb(work: Callable[[], object], device: str = "cpu") -> float:
    """Measure a call's peak memory, in MiB above the previous use.

    On the CPU the measure is the resident memory of the process, from Linux's high-water mark.
    """
    work()  # the first call loads libraries and fills thread pools and caches
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # freed memory stays resident, and the second call would reuse it
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    held = _read_status_mb("VmRSS")
    work()
    return _read_status_mb("VmHWM") - held


def _read_status_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":")) / 1024
