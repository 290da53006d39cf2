"""Signatures that help shows."""

import inspect
from functools import partial
from typing import Any

import pytest
from torch import nn
from torch.optim import SGD

from uumamba import nets, optim

ENGINE = ["net", "scaler", "max_grad_norm", "accumulation", "perturbation"]


def test_an_optimizer_shows_the_options_of_the_engine_with_their_defaults() -> None:
    shown = inspect.signature(optim.SAM).parameters
    assert list(shown) == ["params", "base", "rho", *ENGINE]
    assert shown["accumulation"].default == "micro"
    assert "at least 0" in str(shown["rho"])


@pytest.mark.parametrize("name", ["ResEncUNet", "UMambaBot", "UMambaEnc", "LegacyUMambaBot", "LegacyUMambaEnc"])
def test_a_network_shows_its_stages(name: str) -> None:
    shown = inspect.signature(getattr(nets, name)).parameters
    assert {"features", "strides", "kernel_sizes", "encoder_blocks", "decoder_blocks"} <= set(shown)
    assert all(each.kind is not each.VAR_KEYWORD for each in shown.values())


def test_a_subclass_shows_its_own_arguments_or_those_that_it_inherits() -> None:
    class Own(optim.SAM):
        def __init__(self, net: nn.Module, lr: float = 0.1) -> None:
            super().__init__(net.parameters(), partial(SGD, lr=lr))

    class Inherited(optim.SAM):
        def describe(self, *args: Any) -> str:
            return "SAM"

    assert list(inspect.signature(Own).parameters) == ["net", "lr"]
    assert list(inspect.signature(Inherited).parameters) == ["params", "base", "rho", *ENGINE]
    assert Own(nn.Linear(2, 2)).param_groups[0]["lr"] == 0.1
