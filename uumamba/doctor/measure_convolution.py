"""Time of a 3-D convolution under autocast.

On some GPUs torch 2.9 is four times slower under autocast than in float32.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

from uumamba.config.training import resolve_precision
from uumamba.doctor.stopwatch import median_seconds
from uumamba.runtime.autocast import Precision, autocast

# (batch, channels, Z, Y, X): a fine stage of a 3-D network; a third of a second on a slow core.
SHAPES = {"cpu": (1, 16, 8, 48, 48), "cuda": (2, 32, 32, 128, 128)}
SLOW = 1.2
"""Ratio to the time in float32; a larger one is no error of timing."""


def time_convolutions(device: str) -> dict[Precision, float]:
    """Time a 3-D convolution in each training precision of a device.

    Returns:
        Seconds of the forward and backward pass together.
    """
    on_cuda = device.startswith("cuda")
    batch, channels, *size = SHAPES["cuda" if on_cuda else "cpu"]
    convolution = nn.Conv3d(channels, channels, kernel_size=3, padding=1).to(device)
    image = torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(0)).to(device)
    precisions: tuple[Precision, ...] = ("float32", "bfloat16", "float16") if on_cuda else ("float32", "bfloat16")

    def run_passes(precision: Precision) -> None:
        with autocast(image.device, precision):
            out = convolution(image)
        convolution.zero_grad()
        out.float().sum().backward()

    return {each: median_seconds(partial(run_passes, each), at_most_s=0.5) for each in precisions}


def advice(seconds: Mapping[Precision, float], device: str) -> str:
    """Describe the effect of convolution times on training in one sentence.

    Example:
        >>> advice({"float32": 0.5, "bfloat16": 0.25}, "cpu")
        'A 3-D convolution takes 0.50 of its float32 time in bfloat16.'
    """
    ratios = {name: taken / seconds["float32"] for name, taken in seconds.items() if name != "float32"}
    shares = " and ".join(f"{ratio:.2f} of its float32 time in {name}" for name, ratio in ratios.items())
    text = f"A 3-D convolution takes {shares}"
    slow = [name for name, ratio in ratios.items() if ratio > SLOW]
    chosen = resolve_precision("auto", device)
    if chosen in slow:
        return (
            f"{text}, the choice of precision auto. Train 3-D networks with --set training.precision=float32 --set "
            "inference.precision=float32, or with another torch (2.9 is known to be slow here)."
        )
    return f"{text}; precision auto selects {chosen}." if slow else f"{text}."
