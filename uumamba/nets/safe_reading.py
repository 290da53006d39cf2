"""Reader of files of ``torch.save`` that runs nothing in them."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uumamba.runtime.errors import UsageError, require


def read_checkpoint(path: Path | str) -> Any:
    """Read tensors, numbers, text and plain containers from a file that ``torch.save`` wrote, onto the CPU.

    Nothing in the file is run: torch's restricted reader (``weights_only=True``) builds the values. NumPy's scalars,
    which nnU-Net leaves in its log, become Python numbers. Both of torch's formats are read.

    Args:
        path: the file.

    Raises:
        UsageError: the file is missing, damaged, or asks for any other object, which ``got`` names.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "checkpoint.pth"
        >>> torch.save({"weight": torch.ones(2), "epoch": 3}, path)
        >>> read_checkpoint(path)
        {'weight': tensor([1., 1.]), 'epoch': 3}
    """
    path = Path(path)
    fix = "give a checkpoint such as nnU-Net's checkpoint_final.pth"
    require(path.is_file(), str(path), got="no file", expected="a checkpoint", fix=fix)
    stand_ins: list[Any] = [
        (_NumpyType, "numpy.dtype"),
        (_read_numpy_scalar, "numpy.core.multiarray.scalar"),  # NumPy 1
        (_read_numpy_scalar, "numpy._core.multiarray.scalar"),  # NumPy 2
    ]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or damaged file can make the reader fail in any way
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = next((line for line in lines if "WeightsUnpickler error" in line), lines[0])
        raise UsageError(
            str(path),
            got=reason.strip().partition(" was not an allowed global")[0],
            expected="a torch.save file of tensors, numbers, text and plain containers only; nothing in it was run",
            fix="fetch a damaged file again; of a file that you trust, save the state dict alone",
        ) from error


class _NumpyType:
    """Stand-in for ``numpy.dtype`` that keeps its code and byte order."""

    def __init__(self, code: str, *_: object) -> None:
        self.type = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.type = self.type.newbyteorder(state[1])


def _read_numpy_scalar(kind: _NumpyType, content: bytes) -> Any:
    """Return a NumPy scalar as a Python number; stand-in for ``numpy.core.multiarray.scalar``."""
    return np.frombuffer(content, kind.type)[0].item()
