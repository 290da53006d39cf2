"""C++ library of the scan, an optional part of an installation."""

import ctypes
from collections.abc import Callable
from ctypes import c_int32, c_int64, c_void_p
from math import ceil
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from uumamba.runtime.errors import UumambaError, require

_INSTRUCTION_SETS = ("plain", "avx2", "avx512")  # numbered as in native/selective_scan.h
# Exponentials below which a second thread costs more than it brings.
_WORK_OF_A_THREAD = 2**16


class Rows(ctypes.Structure):
    """``Rows`` of native/selective_scan.h: a (batch, channel, length) tensor, or no tensor."""

    _fields_ = (("data", c_void_p), ("batch", c_int64), ("channel", c_int64), ("length", c_int64))

    @classmethod
    def describe(cls, tensor: Tensor | None) -> "Rows":
        """Describe a tensor, which must outlive the call."""
        return cls() if tensor is None else cls(tensor.data_ptr(), *tensor.stride())


def address(tensor: Tensor | None) -> int | None:
    """Return the address of the values; None, a null pointer, without a tensor."""
    return None if tensor is None else tensor.data_ptr()


def _load() -> tuple[ctypes.CDLL | None, str]:
    """Return the library, or None and the reason."""
    found = sorted(Path(__file__).parent.glob("_scan_native*.so"))
    if not found:
        return None, "its C++ extension was not built; install uumamba again where a C++ compiler is at hand"
    try:
        # The library names no OpenMP runtime: it finds torch's own, made visible here. A second one would start threads
        # of its own and spin against the first.
        ctypes.CDLL(_find_openmp(), mode=ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return None, f"its library does not load ({error})"
    library.uumamba_exp2.argtypes = [c_void_p, c_int64, c_int64, c_int32, c_int32]
    library.uumamba_exp2.restype = None
    return library, ""


def _find_openmp() -> str:
    """Return the OpenMP runtime of torch's wheel under any of its names, else the system's."""
    package = Path(torch.__file__).parent
    bundled = [*package.glob("lib/libgomp*"), *package.parent.glob("torch.libs/libgomp*")]
    return str(bundled[0]) if bundled else "libgomp.so.1"


_LIBRARY, _PROBLEM = _load()


def unavailable() -> str | None:
    """Return why there is no library; None if there is one."""
    return None if _LIBRARY is not None else _PROBLEM


def instruction_sets() -> tuple[str, ...]:
    """Return the instruction sets that this processor can run, the best last; none without a library.

    Example:
        >>> set(instruction_sets()) <= {"plain", "avx2", "avx512"}
        True
    """
    return () if _LIBRARY is None else _INSTRUCTION_SETS[: _LIBRARY.uumamba_instruction_set() + 1]


def instruction_set_number(instruction_set: str | None) -> int:
    """Return the library's number of an instruction set; of the best one for None.

    Raises:
        UsageError: the library does not have it or this processor cannot run it.
    """
    known = instruction_sets()
    chosen = instruction_set or known[-1]
    require(chosen in known, "instruction_set", got=instruction_set, expected=f"one of {', '.join(known)}")
    return known.index(chosen)


def choose_threads(exponentials: int) -> int:
    """Return torch's number of threads, or fewer for little work."""
    return min(torch.get_num_threads(), ceil(exponentials / _WORK_OF_A_THREAD))


def call(function: str, problem: ctypes.Structure, results: ctypes.Structure) -> None:
    """Run one function of the library.

    Raises:
        MemoryError: the library found no memory for its work.
    """
    run: Callable[..., int] = getattr(_LIBRARY, f"uumamba_{function}")
    if run(ctypes.byref(problem), ctypes.byref(results)):
        raise MemoryError(f"uumamba_{function} found no memory for its work; use a smaller batch or patch")


def exp2_rate(threads: int, *, instruction_set: str | None = None, repeats: int = 20_000) -> float:
    """Measure exponentials per second of the scan's exp2 in the first-level cache: the scan's limit.

    Raises:
        UumambaError: there is no library.
    """
    if _LIBRARY is None:
        raise UumambaError(f"no native scan to measure: {_PROBLEM}")
    count = 1024
    values = torch.full((threads, 2, count), -0.3)
    begin = perf_counter()
    _LIBRARY.uumamba_exp2(values.data_ptr(), count, repeats, threads, instruction_set_number(instruction_set))
    return threads * count * repeats / (perf_counter() - begin)
