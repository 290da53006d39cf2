"""Small networks of every kind."""

from collections.abc import Callable

import pytest
import torch

from uumamba import nets

NAMES = ("UMambaBot", "UMambaEnc", "ResEncUNet", "LegacyUMambaEnc", "LegacyUMambaBot")
PATCH = {2: (16, 24), 3: (4, 16, 8)}
STRIDES = {2: ((1, 1), (2, 2), (2, 2)), 3: ((1, 1, 1), (1, 2, 2), (2, 2, 2))}


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture(params=(2, 3), ids=("2d", "3d"))
def spatial_dims(request) -> int:
    return request.param


@pytest.fixture
def small_net() -> Callable[..., torch.nn.Module]:
    """Build a network with widths 4, 6, 8 from a fixed seed.

    It has two input channels and three classes.
    """

    def build(name: str, spatial_dims: int, **options: object) -> torch.nn.Module:
        arguments = {"features": (4, 6, 8), "strides": STRIDES[spatial_dims]} | options
        if name == "UMambaEnc":
            arguments.setdefault("patch_size", PATCH[spatial_dims])
        torch.manual_seed(0)
        return getattr(nets, name)(spatial_dims, 2, 3, **arguments)

    return build


@pytest.fixture
def small_image() -> Callable[..., torch.Tensor]:
    def draw(spatial_dims: int, *, batch: int = 2, size: tuple[int, ...] | None = None) -> torch.Tensor:
        return torch.randn(batch, 2, *(size or PATCH[spatial_dims]), generator=torch.Generator().manual_seed(0))

    return draw
