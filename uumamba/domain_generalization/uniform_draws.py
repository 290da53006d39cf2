"""Uniform draws from a generator, by default torch's global CPU generator."""

import torch


def generator_device(generator: torch.Generator | None) -> torch.device:
    """Return the device of a generator; the CPU for the global generator."""
    return torch.device("cpu") if generator is None else generator.device


def draw_uniform(generator: torch.Generator | None) -> float:
    """Draw a number from 0 (included) to 1 (excluded)."""
    return float(torch.rand((), generator=generator, device=generator_device(generator)))
