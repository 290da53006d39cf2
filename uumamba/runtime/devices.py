"""Choice of the device that a verb computes on."""

import re

from uumamba.runtime.errors import UsageError


def resolve_device(name: str) -> str:
    """Return the device that ``--device`` stands for, if this machine has it.

    Torch is imported only where its devices have to be counted.

    Args:
        name: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"`` for CUDA where there is any.

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
        raise UsageError("--device", got=name, expected="cpu, cuda, cuda:1 or auto")
    if int(known[1] or 0) >= count:
        found = f"one of the {count} CUDA devices that torch finds" if count else "cpu: torch finds no CUDA device"
        raise UsageError("--device", got=name, expected=found)
    return name


def resolve_devices(names: str) -> str:
    """Resolve a comma-separated list of devices, as ``"cuda:0,cuda:1"``."""
    return ",".join(resolve_device(name.strip()) for name in names.split(","))
