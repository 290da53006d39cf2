"""C++ library of the scan, an optional part of an installation."""

import ctypes
from ctypes import c_int32, c_int64, c_void_p
from math import ceil
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from uumamba.runtime.errors import UsageError, require

_INSTRUCTION_SETS = ("plain", "avx2", "avx512")  # numbered as in native/selective_scan.h
_FUNCTIONS = (
    "instruction_set",
    "scan_forward",
    "scan_backward",
    "convolution_forward",
    "convolution_backward",
    "exp2",
)
# Below this number of exponentials a second thread costs more time than it saves.
_EXPONENTIALS_PER_THREAD = 2**16


class Rows(ctypes.Structure):
    """``Rows`` of native/selective_scan.h: a (batch, channel, length) tensor, or no tensor."""

    _fields_ = (("data", c_void_p), ("batch", c_int64), ("channel", c_int64), ("length", c_int64))

    @classmethod
    def describe(cls, tensor: Tensor | None) -> "Rows":
        """Describe a tensor, which must outlive the call."""
        return cls() if tensor is None else cls(tensor.data_ptr(), *tensor.stride())


def get_pointer(tensor: Tensor | None) -> int | None:
    """Return the address of a tensor's values, None (null) without a tensor."""
    return None if tensor is None else tensor.data_ptr()


def _load() -> tuple[ctypes.CDLL | None, str]:
    """Return the library, or None and the reason."""
    found = sorted(Path(__file__).parent.glob("_scan_native*.so"))
    if not found:
        return None, "its C++ extension is not built; install a C++ compiler, then install uumamba again"
    try:
        # The library does not link an OpenMP runtime: it uses torch's own, made visible here. A second runtime would
        # start its own threads, which would compete with torch's.
        ctypes.CDLL(_find_openmp(), mode=ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return None, f"its C++ library cannot be loaded ({error})"
    absent = [name for name in _FUNCTIONS if not hasattr(library, f"uumamba_{name}")]
    if absent:
        return None, f"its C++ library is of another version, without {absent[0]}; install uumamba again"
    library.uumamba_exp2.argtypes = [c_void_p, c_int64, c_int64, c_int32, c_int32]
    library.uumamba_exp2.restype = None
    return library, ""


def _find_openmp() -> str:
    """Return the OpenMP runtime in torch's wheel, else the system's.

    Wheels give the file different names.
    """
    package = Path(torch.__file__).parent
    bundled = [*package.glob("lib/libgomp*"), *package.parent.glob("torch.libs/libgomp*")]
    return str(bundled[0]) if bundled else "libgomp.so.1"


_LIBRARY, _PROBLEM = _load()


def find_missing_library() -> str | None:
    """Return why the library cannot be used; None if it can."""
    return None if _LIBRARY is not None else _PROBLEM


def instruction_sets() -> tuple[str, ...]:
    """Return the instruction sets of this processor, the best last.

    The result is empty without a library.

    Example:
        >>> set(instruction_sets()) <= {"plain", "avx2", "avx512"}
        True
    """
    return () if _LIBRARY is None else _INSTRUCTION_SETS[: _LIBRARY.uumamba_instruction_set() + 1]


def choose_instruction_set(name: str | None) -> int:
    """Return the library's number of an instruction set, by default the best.

    Raises:
        UsageError: the library or this processor does not have the instruction set.
    """
    known = instruction_sets()
    chosen = name or known[-1]
    require(chosen in known, "instruction_set", got=name, expected=f"one of {', '.join(known)}")
    return known.index(chosen)


def choose_threads(exponentials: int) -> int:
    """Return torch's number of threads, or fewer for little work."""
    return min(torch.get_num_threads(), ceil(exponentials / _EXPONENTIALS_PER_THREAD))


def call_library(function: str, problem: ctypes.Structure, results: ctypes.Structure) -> None:
    """Run one function of the library.

    Raises:
        MemoryError: the library could not allocate its working memory.
    """
    if getattr(_LIBRARY, f"uumamba_{function}")(ctypes.byref(problem), ctypes.byref(results)):
        raise MemoryError(f"uumamba_{function} could not allocate memory; use a smaller batch or patch")


def measure_exp2_rate(threads: int, *, repeats: int = 20_000) -> float:
    """Measure how many exponentials the scan's exp2 computes per second.

    All values are in the first-level cache, so the result is the upper limit of the scan's speed.

    Raises:
        UsageError: there is no library.
    """
    if _LIBRARY is None:
        raise UsageError("backend", got=f"native ({_PROBLEM})", expected="an installed C++ library")
    count = 1024
    values = torch.full((threads, 2, count), -0.3)
    begin = perf_counter()
    _LIBRARY.uumamba_exp2(values.data_ptr(), count, repeats, threads, choose_instruction_set(None))
    return threads * count * repeats / (perf_counter() - begin)
