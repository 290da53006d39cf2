"""Safe reader of ``torch.save`` files: no code in the file runs."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uumamba.runtime.errors import UsageError, require


def read_weights_file(path: Path | str) -> Any:
    """Read a ``torch.save`` file of plain data onto the CPU.

    Plain data are tensors, numbers, text and containers of them. No code in the file runs: torch's restricted reader
    (``weights_only=True``) builds the values. NumPy scalars, which nnU-Net stores in its log, become Python numbers.
    Both formats of torch are supported.

    Args:
        path: the file.

    Raises:
        UsageError: the file is missing or damaged, or it contains another object, which ``got`` names.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "checkpoint.pth"
        >>> torch.save({"weight": torch.ones(2), "epoch": 3}, path)
        >>> read_weights_file(path)
        {'weight': tensor([1., 1.]), 'epoch': 3}
    """
    path = Path(path)
    require(
        path.is_file(),
        str(path),
        got="no file",
        expected="a checkpoint file",
        fix="give the path of a checkpoint, such as nnU-Net's checkpoint_final.pth",
    )
    replacements: list[Any] = [
        (_NumpyType, "numpy.dtype"),
        (_read_numpy_scalar, "numpy.core.multiarray.scalar"),  # NumPy 1
        (_read_numpy_scalar, "numpy._core.multiarray.scalar"),  # NumPy 2
    ]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(replacements):
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a malicious or damaged file can raise any error
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = next((line for line in lines if "WeightsUnpickler error" in line), lines[0])
        raise UsageError(
            str(path),
            got=reason.strip().partition(" was not an allowed global")[0],
            expected="a torch.save file with only tensors, numbers, text and plain containers",
            fix="download a damaged file again, or save only the state dict of a trusted file",
        ) from error


class _NumpyType:
    """Replacement for ``numpy.dtype`` with its code and byte order."""

    def __init__(self, code: str, *_: object) -> None:
        self.type = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.type = self.type.newbyteorder(state[1])


def _read_numpy_scalar(kind: _NumpyType, content: bytes) -> Any:
    """Replacement for ``numpy.core.multiarray.scalar`` that returns a Python number."""
    return np.frombuffer(content, kind.type)[0].item()
