"""Networks and data for tests of quantization."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from uumamba.quantization import calibrate, quantize_


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    """Twenty batches of inputs and targets."""
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(16, 6, generator=generator), torch.randn(16, 3, generator=generator)) for _ in range(20)]


@pytest.fixture
def make_net(batches: list[tuple[Tensor, Tensor]]) -> Callable[..., nn.Module]:
    """A function that builds the same quantized network in every call."""

    def make(*, calibrated: bool = True, **options: object) -> nn.Module:
        torch.manual_seed(5)
        net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.LeakyReLU(), nn.Linear(12, 3))
        quantize_(net, **({"weight_bits": 3, "act_bits": 3} | options))  # type: ignore[arg-type]  # any option
        if calibrated and options.get("act_bits", 3) is not None:
            calibrate(net, [x for x, _ in batches[:4]])
        return net

    return make
