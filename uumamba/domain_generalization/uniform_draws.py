"""Draws from a given generator, on its own device; without one from torch's global generator of the CPU."""

import torch


def device_of(generator: torch.Generator | None) -> torch.device:
    """Return the device to draw on."""
    return torch.device("cpu") if generator is None else generator.device


def draw_uniform(generator: torch.Generator | None) -> float:
    """Draw a number from 0 to 1, below 1."""
    return float(torch.rand((), generator=generator, device=device_of(generator)))
