"""What this machine has, which scan backend will run on it and why the others will not, and how fast each is."""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median
from time import perf_counter

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor

from uumamba.ops import automatic_backend, scan_backends, scan_problems, selective_scan
from uumamba.ops.native_library import instruction_sets

# (batch, channels, states, length): a Mamba layer in the middle of a U-Mamba network, small enough for the slowest.
_SHAPE = (1, 128, 16, 2048)
_REPEATS = 5


@dataclass(frozen=True)
class BackendExamination:
    """One scan backend on this machine.

    Attributes:
        name: as ``selective_scan`` takes it.
        automatic: whether ``backend="auto"`` takes it, on the fastest device of this machine and in float32.
        problem: why it cannot run, or None.
        forward_ms: median time of a forward pass, where it can run.
        both_ms: the same with the backward pass.
    """

    name: str
    automatic: bool
    problem: str | None
    forward_ms: float | None = None
    both_ms: float | None = None


def examine() -> None:
    """Print the machine and the scan backends on the terminal."""
    console = Console()
    for name, found in machine().items():
        console.print(f"{name:<12} {found}", highlight=False)
    batch, channels, states, length = _SHAPE
    table = Table("", "scan", "forward", "with backward", "why not", title=None, box=SIMPLE)
    for scan in examine_scans():
        times = ("" if ms is None else f"{ms:.1f} ms" for ms in (scan.forward_ms, scan.both_ms))
        table.add_row("auto" if scan.automatic else "", scan.name, *times, scan.problem or "")
    console.print(table)
    console.print(
        f"Medians of {_REPEATS} for {channels} channels of {states} states at length {length}, batch {batch}, float32. "
        "A network takes the one marked auto.",
        highlight=False,
    )


def machine() -> dict[str, str]:
    """Versions and hardware, a line each.

    Example:
        >>> "torch" in machine()
        True
    """
    cuda = torch.cuda.is_available()
    return {
        "uumamba": version("uumamba"),
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "processor": f"{_cores()} cores, {torch.backends.cpu.get_cpu_capability()} (native scan: "
        f"{', '.join(instruction_sets()) or 'absent'})",
        "accelerator": f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if cuda else "none found by torch",
    }


def examine_scans() -> list[BackendExamination]:
    """Every scan backend, timed where it can run; a few seconds in all."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = automatic_backend(device, torch.float32)
    problems = scan_problems()
    found = []
    for name in (*scan_backends(), *problems):
        times = (None, None) if name in problems else _times(name, "cpu" if name == "native" else device)
        found.append(BackendExamination(name, name == chosen, problems.get(name), *times))
    return found


def _times(name: str, device: str) -> tuple[float, float]:
    batch, channels, states, length = _SHAPE
    draw = torch.Generator().manual_seed(0)
    u, delta = (torch.randn(batch, channels, length, generator=draw) for _ in range(2))
    B, C = (torch.randn(batch, states, length, generator=draw) for _ in range(2))
    A = -torch.ones(channels, states)
    u, delta, A, B, C = (tensor.to(device).requires_grad_() for tensor in (u, delta, A, B, C))

    def both() -> None:
        y = selective_scan(u, delta, A, B, C, delta_softplus=True, backend=name)
        assert isinstance(y, Tensor)
        if y.requires_grad:
            torch.autograd.grad(y.sum(), (u, delta, A, B, C))

    forward = torch.no_grad()(both)

    return _median_ms(forward), _median_ms(both)


def _median_ms(work: Callable[[], None]) -> float:
    work()
    times = []
    for _ in range(_REPEATS):
        begin = perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(perf_counter() - begin)
    return 1e3 * median(times)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
