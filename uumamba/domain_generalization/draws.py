"""Draws from a given generator, wherever that lives; from torch's global one of the CPU without it."""

import torch


def device_of(generator: torch.Generator | None) -> torch.device:
    """Where to draw."""
    return torch.device("cpu") if generator is None else generator.device


def uniform(generator: torch.Generator | None) -> float:
    """A number from 0 to 1, below 1."""
    return float(torch.rand((), generator=generator, device=device_of(generator)))


def check_probability(p: float) -> None:
    """Refuse what is no probability.

    Raises:
        ValueError: the message says what was found.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p is a probability from 0 to 1, got {p}")
