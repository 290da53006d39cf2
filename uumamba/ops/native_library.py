"""The C++ library of the scan, an optional part of an installation: found, loaded, called with plain structures."""

import ctypes
from collections.abc import Callable
from ctypes import c_int32, c_int64, c_void_p
from math import ceil
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

_INSTRUCTION_SETS = ("plain", "avx2", "avx512")  # numbered as in native/selective_scan.h
# Exponentials below which a second thread costs more than it brings.
_WORK_OF_A_THREAD = 2**16


class Rows(ctypes.Structure):
    """``Rows`` of native/selective_scan.h: a (batch, channel, length) tensor, or none."""

    _fields_ = (("data", c_void_p), ("batch", c_int64), ("channel", c_int64), ("length", c_int64))

    @classmethod
    def of(cls, tensor: Tensor | None) -> "Rows":
        """The tensor must live as long as it is used."""
        return cls() if tensor is None else cls(tensor.data_ptr(), *tensor.stride())


def address(tensor: Tensor | None) -> int | None:
    """Where its values lie; None, a null pointer, without a tensor."""
    return None if tensor is None else tensor.data_ptr()


def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and why there is none."""
    found = sorted(Path(__file__).parent.glob("_scan_native*.so"))
    if not found:
        return None, "its C++ extension was not built; install uumamba again where a C++ compiler is at hand"
    try:
        # The library names no OpenMP runtime: it finds torch's own, made visible here. A second one would start threads
        # of its own and spin against the first.
        ctypes.CDLL(_openmp_of_torch(), mode=ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return None, f"its library does not load ({error})"
    library.uumamba_exp2.argtypes = [c_void_p, c_int64, c_int64, c_int32, c_int32]
    library.uumamba_exp2.restype = None
    return library, ""


def _openmp_of_torch() -> str:
    """The runtime that torch's wheel brings, under whichever name; else the system's."""
    package = Path(torch.__file__).parent
    bundled = [*package.glob("lib/libgomp*"), *package.parent.glob("torch.libs/libgomp*")]
    return str(bundled[0]) if bundled else "libgomp.so.1"


_LIBRARY, _PROBLEM = _load()


def unavailable() -> str | None:
    """Why there is no library, or None when there is."""
    return None if _LIBRARY is not None else _PROBLEM


def instruction_sets() -> tuple[str, ...]:
    """Those that the library has and this processor can run, the best last; none when there is no library.

    Example:
        >>> set(instruction_sets()) <= {"plain", "avx2", "avx512"}
        True
    """
    return () if _LIBRARY is None else _INSTRUCTION_SETS[: _LIBRARY.uumamba_instruction_set() + 1]


def number_of(instruction_set: str | None) -> int:
    """What the library calls an instruction set; the best one when None.

    Raises:
        ValueError: when the library does not have it or this processor cannot run it.
    """
    known = instruction_sets()
    if instruction_set is None:
        return len(known) - 1
    if instruction_set not in known:
        raise ValueError(f"instruction_set should be one of {', '.join(known)}; found {instruction_set!r}")
    return known.index(instruction_set)


def threads_for(exponentials: int) -> int:
    """As many threads as torch uses, and fewer for little work."""
    return min(torch.get_num_threads(), ceil(exponentials / _WORK_OF_A_THREAD))


def call(function: str, problem: ctypes.Structure, results: ctypes.Structure) -> None:
    """Run one function of the library.

    Raises:
        MemoryError: when it found no memory for its work.
    """
    run: Callable[..., int] = getattr(_LIBRARY, f"uumamba_{function}")
    if run(ctypes.byref(problem), ctypes.byref(results)):
        raise MemoryError(f"uumamba_{function} found no memory for its work; use a smaller batch or patch")


def exp2_rate(threads: int, *, instruction_set: str | None = None, repeats: int = 20_000) -> float:
    """Exponentials a second of the scan's own exp2 on values in the first-level cache: the limit to measure it by.

    Raises:
        RuntimeError: when there is no library.
    """
    if _LIBRARY is None:
        raise RuntimeError(f"no native scan to measure: {_PROBLEM}")
    count = 1024
    values = torch.full((threads, 2, count), -0.3)
    begin = perf_counter()
    _LIBRARY.uumamba_exp2(values.data_ptr(), count, repeats, threads, number_of(instruction_set))
    return threads * count * repeats / (perf_counter() - begin)
