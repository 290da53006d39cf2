"""Report of the machine, its scan backends and the limit of training."""

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.table import Column, Table
from torch import Tensor

from uumamba.doctor.measure_convolution import advice, time_convolutions
from uumamba.doctor.measure_disk import DiskRate, measure_disk
from uumamba.doctor.measure_training import TrainingRate, measure_training, verdict
from uumamba.doctor.stopwatch import REPEATS, median_seconds
from uumamba.ops import automatic_backend, scan_backends, scan_problems, selective_scan
from uumamba.ops.native_library import instruction_sets
from uumamba.pipelines.run_layout import count_cores, describe_accelerator
from uumamba.runtime.terminal import make_console

# (batch, channels, states, length): a Mamba layer in the middle of a U-Mamba network, small enough for any backend.
_SHAPE = (1, 128, 16, 2048)


@dataclass(frozen=True)
class BackendExamination:
    """One scan backend on this machine.

    Attributes:
        name: ``backend`` of ``selective_scan``.
        automatic: whether ``backend="auto"`` selects this backend, on the fastest device of this machine in float32.
        problem: reason why the backend cannot run, or None.
        forward_ms: median time of a forward pass, if the backend can run.
        both_ms: median time of forward and backward pass together.
    """

    name: str
    automatic: bool
    problem: str | None
    forward_ms: float | None = None
    both_ms: float | None = None


def examine(folder: Path | str = ".", *, as_json: bool = False) -> None:
    """Print the machine, its scan backends and its limit of training.

    This takes about 15 seconds.

    Args:
        folder: a folder of the disk to measure, where a file is written and removed.
        as_json: print JSON, for a report of a fault.

    Raises:
        UsageError: no file can be written there.
    """
    disk = measure_disk(folder)  # first, since it may raise
    if as_json:
        print(json.dumps(_describe(disk), indent=2))
        return
    console = make_console()
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
        "Networks use the backend marked auto.",
        highlight=False,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rate = measure_training(device)
    console.print(_rate_table(rate, disk, folder))
    console.print(advice(time_convolutions(device), device), highlight=False)
    console.print(verdict(rate, disk, cores=count_cores()), style="bold", highlight=False)


def _describe(disk: DiskRate) -> dict[str, Any]:
    """Describe machine, scans and rates as JSON values.

    Paths and names are left out.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rate = measure_training(device)
    return {
        "machine": machine(),
        "scans": [asdict(scan) for scan in examine_scans()],
        "disk": asdict(disk),
        "training": asdict(rate),
        "convolution_s": time_convolutions(device),
        "verdict": verdict(rate, disk, cores=count_cores()),
    }


def _rate_table(rate: TrainingRate, disk: DiskRate, folder: Path | str) -> Table:
    """Build a table of data rates and training steps per second."""
    table = Table("", Column("per second", justify="right"), "measured with", box=SIMPLE)
    where = Path(folder).resolve().name or str(folder)
    for row in (
        ("disk, written", f"{disk.write_mb_per_s:.0f} MB", f"a file in {where}, synchronised"),
        ("disk, read", f"{disk.read_mb_per_s:.0f} MB", "the same file, without the system's cache where possible"),
        ("patches read", f"{rate.batch_size / rate.read_s:.0f}", "one process, a prepared phantom in memory"),
        ("patches augmented", f"{rate.batch_size / rate.augment_s:.0f}", f"batches on {rate.device}"),
        ("training steps", f"{1 / rate.step_s:.3g}", f"the demo's {rate.what}"),
    ):
        table.add_row(*row)
    return table


def machine() -> dict[str, str]:
    """Describe versions and hardware, one line each.

    Example:
        >>> "torch" in machine()
        True
    """
    return {
        "uumamba": version("uumamba"),
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "processor": f"{count_cores()} cores, {torch.backends.cpu.get_cpu_capability()} (native scan: "
        f"{', '.join(instruction_sets()) or 'absent'})",
        "accelerator": describe_accelerator("cuda") if torch.cuda.is_available() else "none found by torch",
    }


def examine_scans() -> list[BackendExamination]:
    """Time every scan backend that can run, in a few seconds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = automatic_backend(device, torch.float32)
    timed = [
        BackendExamination(name, name == chosen, None, *_time_scan(name, "cpu" if name == "native" else device))
        for name in scan_backends()
    ]
    return timed + [BackendExamination(name, name == chosen, problem) for name, problem in scan_problems().items()]


def _time_scan(name: str, device: str) -> tuple[float, float]:
    """Time the forward pass, and forward and backward together, in milliseconds."""
    batch, channels, states, length = _SHAPE
    draw = torch.Generator().manual_seed(0)
    u, delta = (torch.randn(batch, channels, length, generator=draw) for _ in range(2))
    B, C = (torch.randn(batch, states, length, generator=draw) for _ in range(2))
    A = -torch.ones(channels, states)
    u, delta, A, B, C = (tensor.to(device).requires_grad_() for tensor in (u, delta, A, B, C))

    def run_scan() -> None:
        y = selective_scan(u, delta, A, B, C, delta_softplus=True, backend=name)
        assert isinstance(y, Tensor)
        if y.requires_grad:
            torch.autograd.grad(y.sum(), (u, delta, A, B, C))

    return 1e3 * median_seconds(torch.no_grad()(run_scan)), 1e3 * median_seconds(run_scan)
