"""Random arguments of a selective scan, from a fixed seed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Arguments = dict[str, Tensor]


@pytest.fixture
def scan_arguments() -> Callable[..., Arguments]:
    def make(
        *,
        batch: int = 2,
        channels: int = 6,
        states: int = 3,
        length: int = 16,
        form: str = "shared",
        optional: tuple[str, ...] = ("D", "z", "delta_bias"),
        dtype: torch.dtype = torch.float64,
        requires_grad: bool = False,
    ) -> Arguments:
        draw = torch.Generator().manual_seed(0)
        projection = {
            "constant": (channels, states),
            "shared": (batch, states, length),
            "grouped": (batch, 2, states, length),
        }[form]
        shapes = {"u": (batch, channels, length), "delta": (batch, channels, length), "A": (channels, states)}
        shapes |= {"B": projection, "C": projection}
        every_optional = {"D": (channels,), "z": (batch, channels, length), "delta_bias": (channels,)}
        shapes |= {name: every_optional[name] for name in optional}
        made = {name: torch.randn(shape, generator=draw, dtype=dtype) for name, shape in shapes.items()}
        made["delta"] = made["delta"].abs()
        made["A"] = -made["A"].exp()
        return {name: tensor.requires_grad_(requires_grad) for name, tensor in made.items()}

    return make
