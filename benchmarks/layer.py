"""Speed and memory of the Mamba layer, with norm and projections.

    python -m benchmarks.layer --json benchmarks/results/layer_cpu.json

`ours` is the layer of the networks. `plain` is the same layer as it is usually written: one in-projection split in two,
the length axis innermost, torch's depthwise convolution, and then our selective scan or the torch backend's.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.claims.equal_time import time_in_rounds
from benchmarks.memory import measure_peak_mb
from benchmarks.result_file import write_result
from benchmarks.scan import BOTH, REPEATS, print_rows
from uumamba.nets.mamba import MambaLayer
from uumamba.ops import automatic_backend, selective_scan

# (batch, channels, *feature map): stage 0, a middle stage and the bottleneck of 3-D and 2-D networks.
CPU_SHAPES = ((1, 32, 16, 56, 64), (1, 128, 8, 28, 32), (1, 320, 5, 8, 7), (8, 160, 8, 8))
CUDA_SHAPES = ((2, 32, 20, 256, 224), (2, 64, 20, 128, 112), (2, 256, 5, 32, 28), (2, 320, 5, 8, 7))
QUICK_SHAPES = ((1, 32, 4, 16, 16), (8, 160, 8, 8))


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--quick", action="store_true", help="small shapes, a few seconds")
    options = parser.parse_args(given)
    shapes = QUICK_SHAPES if options.quick else {"cpu": CPU_SHAPES, "cuda": CUDA_SHAPES}[options.device]
    rows = [row for shape in shapes for row in measure(shape, options.device)]
    print_rows(rows)
    if options.json is not None:
        write_result(options.json, rows, title=f"Mamba layer, {options.device}", about=describe_table())


def describe_table() -> str:
    """Describe the table."""
    return (
        f"Shape is (batch, channels, feature map); medians of {REPEATS} alternating rounds with "
        f"{torch.get_num_threads()} threads. Ratio is the row's time relative to `ours`; peak_mb is the memory of "
        "forward and backward without input and weights."
    )


def measure(shape: tuple[int, ...], device: str) -> Iterator[dict[str, Any]]:
    """Yield one row per implementation of the layer and pass."""
    torch.manual_seed(0)
    layer = MambaLayer(shape[1]).to(device)
    image = torch.randn(shape, device=device)
    scan = automatic_backend(device, torch.float32)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "ours": layer,
        f"plain, {scan} scan": partial(compute_plain, layer, scan),
        "plain, torch scan": partial(compute_plain, layer, "torch"),
    }
    work = {
        (name, both): partial(run_passes, way, image, both=both) for name, way in ways.items() for both in (False, True)
    }
    times = time_in_rounds(work, rounds=REPEATS, device=device)
    for (name, both), each in times.items():
        yield {
            "name": name,
            "shape": str(shape),
            "pass": BOTH if both else "forward",
            "median_s": round(median(each), 5),
            "min_s": round(min(each), 5),
            "peak_mb": round(measure_peak_mb(work[name, both], device), 1) if both else None,
            "ratio": round(median(each) / median(times["ours", both]), 2),
        }


def run_passes(way: Callable[[Tensor], Tensor], image: Tensor, *, both: bool) -> None:
    """Run a forward pass, and a backward pass if ``both``."""
    with torch.set_grad_enabled(both):
        image = image.detach().requires_grad_(both)
        y = way(image)
        if both:
            y.backward(y.detach())


def compute_plain(layer: MambaLayer, backend: str, features: Tensor) -> Tensor:
    """Compute the layer's output in the usual way."""
    block = layer.mamba
    sequence = layer.norm(features.flatten(2).mT)
    x, z = block.in_proj(sequence).mT.chunk(2, dim=1)
    x = F.silu(block.conv1d(x)[..., : sequence.shape[1]])
    delta, B, C = block.x_proj(x.mT).split((block.dt_rank, block.d_state, block.d_state), dim=-1)
    delta, B, C = (block.dt_proj.weight @ delta.mT, B.mT.contiguous(), C.mT.contiguous())
    y = selective_scan(
        x, delta, -block.A_log.exp(), B, C, block.D, z, block.dt_proj.bias, delta_softplus=True, backend=backend
    )
    assert isinstance(y, Tensor)
    projected: Tensor = block.out_proj(y.mT)
    return projected.mT.reshape(features.shape)


if __name__ == "__main__":
    main()
