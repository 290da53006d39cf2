"""Causal convolution against torch's convolution in float64."""

import pytest
import torch
import torch.nn.functional as F

from uumamba.ops import causal_convolution
from uumamba.ops import convolution as module

# (batch, channels, length, taps): lengths around a tile of 64 and a task of 1024, 1 to 9 taps, few channels.
SIZES = ((2, 20, 333, 4), (1, 16, 1, 4), (1, 3, 65, 2), (1, 16, 64, 8), (2, 32, 3, 4), (1, 5, 1100, 1), (1, 16, 9, 9))


def draw(size, *, dtype=torch.float32):
    batch, channels, length, taps = size
    shapes = ((batch, channels, length), (channels, taps), (channels,), (batch, channels, length))
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def by_torch(x, weight, bias):
    taps = weight.shape[1]
    return F.silu(F.conv1d(F.pad(x, (taps - 1, 0)), weight[:, None], bias, groups=x.shape[1]))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("layout", ["length first", "channels first"])
def test_values_and_gradients_equal_torchs_convolution_in_float64(size, with_bias, layout):
    x, weight, bias, grad = draw(size)
    if layout == "channels first":
        x, grad = (tensor.mT.contiguous().mT for tensor in (x, grad))
    inputs = [tensor.requires_grad_() for tensor in ((x, weight, bias) if with_bias else (x, weight))]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    y, expected = causal_convolution(*inputs), by_torch(*exact, *(() if with_bias else (None,)))
    if size[3] <= 8 and module.find_missing_library() is None:  # torch's convolution returns contiguous positions
        assert y.stride() == torch.empty_like(x).stride()
    found = [y, *torch.autograd.grad(y, inputs, grad)]
    right = [expected, *torch.autograd.grad(expected, exact, grad.double())]
    # A result is a sum of at most batch * length * taps products; each product and silu add a few rounding errors.
    bound = (size[0] * size[2] * size[3] + 16) * torch.finfo(torch.float32).eps / 2
    for one, other in zip(found, right, strict=True):
        assert float((one.detach() - other.detach()).norm() / other.detach().norm()) < bound


def test_without_the_extension_torch_computes_the_same(monkeypatch):
    x, weight, bias, _ = draw((2, 6, 40, 4))
    with_extension = causal_convolution(x, weight, bias)
    monkeypatch.setattr(module, "find_missing_library", lambda: "removed by the test")
    torch.testing.assert_close(causal_convolution(x, weight, bias), with_extension)


def test_output_depends_on_earlier_positions_only():
    x, weight, bias, _ = draw((1, 4, 90, 4), dtype=torch.float64)
    changed = x.clone()
    changed[..., 70:] += 1
    before, after = causal_convolution(x, weight, bias), causal_convolution(changed, weight, bias)
    torch.testing.assert_close(before[..., :70], after[..., :70], rtol=0, atol=0)
    assert (before[..., 70:] != after[..., 70:]).all()


@pytest.mark.skipif(module.find_missing_library() is not None, reason="no C++ compiler")
def test_convolution_operator_passes_torchs_opcheck():
    x, weight, bias, _ = draw((1, 4, 20, 4))
    inputs = tuple(tensor.requires_grad_() for tensor in (x, weight, bias))
    torch.library.opcheck(torch.ops.uumamba.native_convolution.default, inputs)


@pytest.mark.parametrize(
    ("key", "shapes"),
    [
        ("weight", {"weight": (5, 4)}),
        ("weight", {"weight": (6, 1, 4)}),
        ("bias", {"bias": (5,)}),
        ("x", {"x": (6, 8)}),
    ],
)
def test_wrong_shape_is_refused(refused, key, shapes):
    shapes = {"x": (1, 6, 8), "weight": (6, 4), "bias": (6,)} | shapes
    with refused(key, got=shapes[key]):
        causal_convolution(**{name: torch.zeros(shape) for name, shape in shapes.items()})
