"""Speed and memory of every backend of the selective scan.

    python -m benchmarks.scan --json benchmarks/results/scan_cpu.json
    python -m benchmarks.scan --device cuda --json benchmarks/results/scan_cuda.json

The limits of the machine are measured in the same run. The Python loop is the reference backend: a sequential
recurrence, as in the formula. The limit of the forward pass is the time of its exponentials, (states + 2) per position
and channel with softplus, at the rate of the native scan's own exp2 on values in the first-level cache. Forward and
backward together need (2 states + 5). The exit code is 1 if a claim of the project does not hold.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.claims.equal_time import time_in_rounds
from benchmarks.memory import measure_peak_mb
from benchmarks.result_file import write_result
from uumamba.ops import scan_backends, selective_scan
from uumamba.ops.native_library import find_missing_library, measure_exp2_rate

CPU_SHAPES = ((1, 64, 16, 57344), (1, 512, 16, 1792))
# The stages of U-Mamba in 3-D for ACDC, two patches of 16 x 256 x 224 and four of 20 x 256 x 224.
CUDA_SHAPES = ((2, 64, 16, 917504), (2, 128, 16, 229376), (4, 64, 16, 1146880), (4, 256, 16, 35840), (4, 512, 16, 4480))
QUICK_SHAPES = ((1, 64, 16, 4096), (1, 256, 16, 512))
REPEATS = 5
BOTH = "forward + backward"


@dataclass(frozen=True)
class Claim:
    """Claims about the native backend at one shape.

    Attributes:
        times_the_loop: smallest speed-up over the Python loop.
        times_the_limit: largest forward time, relative to the limit of exponentials.
        torch_times_the_loop: smallest speed-up of the torch backend over the Python loop.
        memory_of_tensors: largest peak memory, relative to inputs, output and gradients.
    """

    times_the_loop: float
    times_the_limit: float = 2.2
    torch_times_the_loop: float = 20
    memory_of_tensors: float = 1.5


CLAIMS: dict[tuple[int, ...], Claim] = {CPU_SHAPES[0]: Claim(200), CPU_SHAPES[1]: Claim(130)}


def main(given: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--backend", action="append", choices=scan_backends(), help="measure only this backend; repeatable"
    )
    parser.add_argument(
        "--shape", action="append", type=_parse_shape, metavar="B,D,N,L", help="measure only this shape; repeatable"
    )
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--quick", action="store_true", help="small shapes, a few seconds")
    options = parser.parse_args(given)
    shapes = options.shape or (
        QUICK_SHAPES if options.quick else {"cpu": CPU_SHAPES, "cuda": CUDA_SHAPES}[options.device]
    )
    rate = None if find_missing_library() else measure_exp2_rate(torch.get_num_threads(), repeats=100_000)
    rows = [row for shape in shapes for row in measure(shape, options.device, options.backend, rate)]
    print_rows(rows)
    if options.json is not None:
        write_result(
            options.json, rows, title=f"Selective scan, {options.device}", about=describe_table(options.device, rate)
        )
    broken = [sentence for shape in shapes for sentence in find_broken_claims(shape, rows)]
    print(*broken, sep="\n", file=sys.stderr)
    return 1 if broken else 0


def describe_table(device: str, rate: float | None) -> str:
    """Describe the table and the measured limits of the machine."""
    limits = f"; exp2 {rate / 1e9:.2f} G/s" if rate is not None and device == "cpu" else ""
    copied = measure_copy_rate(device) / 1e9
    return (
        "Shape is (batch, channels, states, length), with softplus, bias and skip, without gate; medians of "
        f"{REPEATS} alternating rounds with {torch.get_num_threads()} threads{limits}, copy {copied:.1f} GB/s read and "
        "written. Layout: `last` has the channel axis innermost, as in our Mamba block, `first` the length axis. The "
        "ratio is the time of the Python loop, `reference`, divided by the row's; the limit is the time of the "
        "exponentials. Memory is the peak of forward and backward, also relative to inputs, output and gradients."
    )


def measure(
    shape: tuple[int, ...], device: str, only: list[str] | None, rate: float | None
) -> Iterator[dict[str, Any]]:
    """Yield one row per backend, layout and pass.

    The Python loop, if selected, is measured in the same rounds.
    """
    cases = {}
    for name in only or _list_backends(device):
        for layout in ("last", "first") if name in ("native", "triton") else ("last",):
            tensors = make_inputs(shape, device, layout)
            for both in (False, True):
                cases[name, layout, both] = partial(run_scan, name, tensors, both=both)
    times = time_in_rounds(cases, rounds=REPEATS, device=device)
    batch, channels, states, length = shape
    for (name, layout, both), each in times.items():
        exponentials = batch * channels * length * (2 * states + 5 if both else states + 2)
        loop = times.get(("reference", "last", both))
        peak = measure_memory_mb(name, shape, device, layout) if both else 0.0
        yield {
            "name": name,
            "shape": str(shape),
            "layout": layout,
            "pass": BOTH if both else "forward",
            "median_s": round(median(each), 5),
            "min_s": round(min(each), 5),
            "peak_mb": round(peak, 1) if both else None,
            "of its tensors": round(peak / compute_tensors_mb(shape), 2) if both else None,
            "ratio_to": None if loop is None else "reference",
            "ratio": None if loop is None else round(median(loop) / median(each), 1),
            "of the limit": None if rate is None or device != "cpu" else round(median(each) * rate / exponentials, 2),
        }


def make_inputs(shape: tuple[int, ...], device: str, layout: str) -> dict[str, Tensor]:
    """Return inputs as in a trained layer.

    Steps are around 0.1, decay rates go from 1 to the number of states.
    """
    batch, channels, states, length = shape
    draw = torch.Generator().manual_seed(0)
    made = {name: torch.randn(batch, channels, length, generator=draw) for name in ("u", "delta")}
    made["A"] = -torch.arange(1.0, states + 1).repeat(channels, 1)
    made |= {name: torch.randn(batch, states, length, generator=draw) for name in ("B", "C")}
    made |= {"D": torch.ones(channels), "delta_bias": torch.full((channels,), -2.0)}
    if layout == "last":
        made = {name: each.mT.contiguous().mT if each.ndim == 3 else each for name, each in made.items()}
    return {name: each.to(device) for name, each in made.items()}


def run_scan(backend: str, tensors: dict[str, Any], *, both: bool) -> None:
    """Run a forward pass, and a backward pass if ``both``."""
    with torch.set_grad_enabled(both):
        tracked = {name: tensor.detach().requires_grad_(both) for name, tensor in tensors.items()}
        y = selective_scan(**tracked, delta_softplus=True, backend=backend)
        assert isinstance(y, Tensor)
        if both:
            torch.autograd.grad(y, list(tracked.values()), y.detach())


def measure_memory_mb(backend: str, shape: tuple[int, ...], device: str, layout: str) -> float:
    """Measure the peak memory of forward and backward, inputs included."""
    tensors = make_inputs(shape, device, layout)
    held = sum(tensor.numel() for tensor in tensors.values()) * 4 / 2**20
    return held + measure_peak_mb(partial(run_scan, backend, tensors, both=True), device)


def compute_tensors_mb(shape: tuple[int, ...]) -> float:
    """Compute the memory of inputs, output and their gradients."""
    batch, channels, states, length = shape
    inputs = 2 * batch * channels * length + 2 * batch * states * length + channels * (states + 2)
    return 2 * (inputs + batch * channels * length) * 4 / 2**20


def measure_copy_rate(device: str) -> float:
    """Measure the bytes per second moved by a 64 MB copy."""
    source = torch.zeros(2**24, device=device)
    target = torch.empty_like(source)
    times = time_in_rounds({"copy": lambda: target.copy_(source)}, rounds=REPEATS, device=device)["copy"]
    return 2 * 4 * source.numel() / min(times)


def find_broken_claims(shape: tuple[int, ...], rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a message per claim about this shape that the rows contradict."""
    claim = CLAIMS.get(shape)
    for row in rows:
        if claim is None or row["shape"] != str(shape) or row["layout"] != "last" or row["ratio"] is None:
            continue
        least = {"native": claim.times_the_loop, "torch": claim.torch_times_the_loop}.get(row["name"], 0)
        where = f"{row['name']}, {row['shape']}, {row['pass']}"
        if row["ratio"] < least:
            yield f"{where}: {row['ratio']} times the speed of the loop, claimed at least {least}"
        if row["name"] == "native" and row["pass"] == "forward" and (row["of the limit"] or 0) > claim.times_the_limit:
            yield f"{where}: {row['of the limit']} times the limit, claimed at most {claim.times_the_limit}"
        if row["name"] == "native" and (row["of its tensors"] or 0) > claim.memory_of_tensors:
            yield f"{where}: {row['of its tensors']} times its tensors, claimed at most {claim.memory_of_tensors}"


def _list_backends(device: str) -> list[str]:
    on_device = {"cpu": ("reference", "torch", "native"), "cuda": ("torch", "triton", "mamba_ssm")}[device]
    return [name for name in on_device if name in scan_backends()]


def _parse_shape(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print rows as aligned columns."""
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    for row in ({key: key for key in rows[0]}, *rows):
        print("  ".join(str(row[key]).ljust(width) for key, width in widths.items()))


if __name__ == "__main__":
    sys.exit(main())
