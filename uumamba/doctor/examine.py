"""Report of the machine, the scan backends, the speed of its parts, and the limit of training."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from uumamba.doctor.measure_convolution import advice, time_convolutions
from uumamba.doctor.measure_disk import DiskRate, measure_disk
from uumamba.doctor.measure_training import TrainingRate, measure_training, verdict
from uumamba.doctor.stopwatch import REPEATS, median_seconds
from uumamba.ops import automatic_backend, scan_backends, scan_problems, selective_scan
from uumamba.ops.native_library import instruction_sets

# (batch, channels, states, length): a Mamba layer in the middle of a U-Mamba network, small enough for the slowest.
_SHAPE = (1, 128, 16, 2048)


@dataclass(frozen=True)
class BackendExamination:
    """One scan backend on this machine.

    Attributes:
        name: as ``selective_scan`` takes it.
        automatic: whether ``backend="auto"`` selects it, on the fastest device of this machine and in float32.
        problem: reason why it cannot run, or None.
        forward_ms: median time of a forward pass, where it can run.
        both_ms: the same with the backward pass.
    """

    name: str
    automatic: bool
    problem: str | None
    forward_ms: float | None = None
    both_ms: float | None = None


def examine(folder: Path | str = ".") -> None:
    """Print the machine, its scan backends, and the rates that limit training; takes about 15 seconds.

    Args:
        folder: a folder of the disk to measure, with a file that is removed.

    Raises:
        UsageError: nothing can be written there.
    """
    console = Console()
    disk = measure_disk(folder)  # first, since it may raise
    for name, found in machine().items():
        console.print(f"{name:<12} {found}", highlight=False)
    table = Table("", "scan", "forward", "with backward", "why not", title=None, box=SIMPLE)
    for scan in examine_scans():
        times = ("" if ms is None else f"{ms:.1f} ms" for ms in (scan.forward_ms, scan.both_ms))
        table.add_row("auto" if scan.automatic else "", scan.name, *times, scan.problem or "")
    console.print(table)
    batch, channels, states, length = _SHAPE
    console.print(
        f"Medians of {REPEATS} for {channels} channels of {states} states at length {length}, batch {batch}, float32. "
        "Networks use the one marked auto.",
        highlight=False,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rate = measure_training(device)
    console.print(rate_table(rate, disk, folder))
    console.print(advice(time_convolutions(device), device), highlight=False)
    console.print(verdict(rate, disk, cores=_cores()), style="bold", highlight=False)


def rate_table(rate: TrainingRate, disk: DiskRate, folder: Path | str) -> Table:
    """Build a table of the rates of data and training steps, per second."""
    table = Table("", Column("a second", justify="right"), "how it was measured", box=SIMPLE)
    where = Path(folder).resolve().name or str(folder)
    for row in (
        ("disk, written", f"{disk.write_mb_per_s:.0f} MB", f"a file in {where}, synchronised"),
        ("disk, read", f"{disk.read_mb_per_s:.0f} MB", "the same file, not from memory where the system allows"),
        ("patches read", f"{rate.batch_size / rate.read_s:.0f}", "one process, prepared phantom in memory"),
        ("patches augmented", f"{rate.batch_size / rate.augment_s:.0f}", f"in batches on {rate.device}"),
        ("training steps", f"{1 / rate.step_s:.3g}", f"the demo's {rate.what}"),
    ):
        table.add_row(*row)
    return table


def machine() -> dict[str, str]:
    """Describe versions and hardware, a line each.

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
    """Time every scan backend that can run; takes a few seconds."""
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

    return 1e3 * median_seconds(torch.no_grad()(both)), 1e3 * median_seconds(both)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
