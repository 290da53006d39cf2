"""Choice of a command's device."""

import re

from uumamba.runtime.errors import UsageError


def resolve_device(name: str) -> str:
    """Resolve ``--device`` to a device that this machine has.

    Torch is imported only where its devices have to be counted.

    Args:
        name: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"`` for CUDA if available, else the CPU.

    Raises:
        UsageError: an unknown name, or a device that torch does not find.

    Example:
        >>> resolve_device("cpu")
        'cpu'
    """
    if name == "cpu":
        return name
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    known = re.fullmatch(r"cuda(?::(\d+))?", name)
    if known is None:
        raise UsageError("--device", got=name, expected="cpu, cuda, cuda:1 or auto", fix="choose one of these devices")
    if int(known[1] or 0) >= count:
        raise UsageError(
            "--device",
            got=name,
            expected=f"cpu or a CUDA device up to cuda:{count - 1}" if count else "cpu, as torch finds no CUDA device",
            fix="use --device auto",
        )
    return name


def resolve_devices(names: str) -> str:
    """Resolve a comma-separated list of devices, as ``"cuda:0,cuda:1"``."""
    return ",".join(resolve_device(name.strip()) for name in names.split(","))
