"""Reading files of ``torch.save`` without running anything that is in them."""

import pickletools
import struct
import warnings
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from uumamba.runtime.errors import UsageError

# What torch's restricted reader makes of a checkpoint of plain tensors, as it stands in the file.
_HARMLESS = {"collections.OrderedDict", "_codecs.encode", "torch._utils._rebuild_tensor_v2"}
_HARMLESS |= {"torch._utils._rebuild_parameter", "torch.Size", "torch.device"}
_NUMPY_CODES = {"f8": "d", "f4": "f", "f2": "e", "b1": "?", "i8": "q", "i4": "i", "i2": "h", "i1": "b"}
_NUMPY_CODES |= {"u8": "Q", "u4": "I", "u2": "H", "u1": "B"}


def read_checkpoint(path: Path | str) -> Any:
    """Read tensors, numbers, text and plain containers from a file that ``torch.save`` wrote, onto the CPU.

    Nothing in the file is run: torch's restricted reader builds the values, and NumPy's scalars, which nnU-Net leaves
    in its log, become Python numbers here without NumPy being called. Both of torch's formats are read.

    Args:
        path: the file.

    Raises:
        UsageError: there is no such file; it asks for anything else, which the sentence names; or it is damaged.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "checkpoint.pth"
        >>> torch.save({"weight": torch.ones(2), "epoch": 3}, path)
        >>> read_checkpoint(path)
        {'weight': tensor([1., 1.]), 'epoch': 3}
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path} is no file; give a checkpoint such as nnU-Net's checkpoint_final.pth.")
    stand_ins: list[Any] = [(stand_in, name) for name, stand_in in _NUMPY_STAND_INS.items()]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or damaged file can make the reader fail in any way
        raise UsageError(_refusal(path, error)) from error


class _NumpyType:
    """Stands in for ``numpy.dtype``: keeps its code and byte order."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = {"<": "<", ">": ">"}.get(state[1], "=")


def _numpy_scalar(kind: _NumpyType, content: bytes) -> float | int | bool:
    """Stands in for ``numpy.core.multiarray.scalar``."""
    if kind.code not in _NUMPY_CODES:
        raise ValueError(f"a NumPy scalar of type {kind.code!r} is no number")
    number: float | int | bool = struct.unpack(kind.order + _NUMPY_CODES[kind.code], content)[0]
    return number


_NUMPY_STAND_INS: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _NumpyType,
    "numpy.core.multiarray.scalar": _numpy_scalar,  # NumPy 1
    "numpy._core.multiarray.scalar": _numpy_scalar,  # NumPy 2
}


def _refusal(path: Path, error: Exception) -> str:
    wanted = [name for name in _globals_named_in(path) if not _is_harmless(name)]
    if wanted:
        return (
            f"{path} asks for {', '.join(wanted[:5])} when it is opened, and a checkpoint may hold tensors, numbers, "
            "text and plain containers alone; nothing in it was run. Where you trust its source, save its state dict "
            "alone with torch.save and give that."
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].strip()
    return f"{path} cannot be read as a checkpoint of torch.save ({reason}); it may be damaged, so fetch it again."


def _is_harmless(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    in_torch = module == "torch" and (
        attribute.endswith("Storage") or isinstance(getattr(torch, attribute, None), torch.dtype)
    )
    return in_torch or name in _HARMLESS or name in _NUMPY_STAND_INS


def _globals_named_in(path: Path) -> list[str]:
    """What the pickles of a file would import, in order; read from their instructions, which are not followed."""
    found: dict[str, None] = {}
    with suppress(ValueError, EOFError, OSError, RuntimeError, zipfile.BadZipFile):  # the list ends where reading does
        for pickled in _pickles(path):
            for name in _imports(pickled):
                found[name] = None
    return list(found)


def _pickles(path: Path) -> Iterator[IO[bytes]]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                if entry.endswith(".pkl"):
                    with archive.open(entry) as pickled:
                        yield pickled
    else:
        with path.open("rb") as pickled:
            for _ in range(5):  # torch's older format is that many pickles one after the other, then bytes
                yield pickled


def _imports(pickled: IO[bytes]) -> Iterator[str]:
    recent: deque[str] = deque(maxlen=2)
    memo: dict[Any, Any] = {}
    last: Any = None
    for instruction, argument, _ in pickletools.genops(pickled):
        if instruction.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif instruction.name == "STACK_GLOBAL":
            yield ".".join(recent)
        elif instruction.name == "MEMOIZE":
            memo[len(memo)] = last
        elif instruction.name.endswith("PUT"):
            memo[argument] = last
        else:
            last = memo.get(argument) if instruction.name.endswith("GET") else argument
            if isinstance(last, str):
                recent.append(last)
