"""Mamba block against its recurrence; tokens and precision of the layer."""

import copy
import pickle
from math import log

import pytest
import torch
from torch import nn

from uumamba.nets import Mamba, MambaLayer


def step_by_step(mamba, sequence):
    """Compute the paper's formulas for one position at a time."""
    silu, softplus = (lambda v: v / (1 + torch.exp(-v))), (lambda v: torch.log(1 + torch.exp(v)))
    width, rank, states = mamba.conv1d.weight.shape[-1], mamba.dt_proj.weight.shape[1], mamba.A_log.shape[1]
    inner = mamba.D.shape[0]
    results = []
    for sample in sequence:
        history = [torch.zeros(inner, dtype=sample.dtype)] * (width - 1)
        state, outputs = torch.zeros(inner, states, dtype=sample.dtype), []
        for token in sample:
            projected = mamba.in_proj.weight @ token
            history = [*history, projected[:inner]][-width:]
            taps = mamba.conv1d.weight[:, 0]
            x = silu(sum(taps[:, k] * history[k] for k in range(width)) + mamba.conv1d.bias)
            low_rank, B, C = (mamba.x_proj.weight @ x).split((rank, states, states))
            step = softplus(mamba.dt_proj.weight @ low_rank + mamba.dt_proj.bias)
            decay = torch.exp(-step[:, None] * torch.exp(mamba.A_log))
            state = decay * state + torch.outer(step * x, B)
            y = (state @ C + mamba.D * x) * silu(projected[inner:])
            outputs.append(mamba.out_proj.weight @ y)
        results.append(torch.stack(outputs))
    return torch.stack(results)


@pytest.mark.parametrize("length", [1, 7])
def test_mamba_and_its_gradients_equal_the_recurrence(length):
    mamba = Mamba(20, d_state=5, d_conv=3).double()
    sequence = torch.randn(2, length, 20, dtype=torch.float64, requires_grad=True)
    found, expected = mamba(sequence), step_by_step(mamba, sequence)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    inputs = (sequence, *mamba.parameters())
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_initial_step_sizes_are_from_0_001_to_0_1_and_rates_from_1_to_n():
    mamba = Mamba(512)
    steps = nn.functional.softplus(mamba.dt_proj.bias.detach())
    assert 0.999e-3 < steps.min() < 1.1e-3
    assert 0.09 < steps.max() < 0.1001
    # The mean logarithm of log-uniform draws is the middle of the range: 1024 draws, standard error 0.04.
    assert abs(steps.log().mean() - (log(1e-3) + log(0.1)) / 2) < 0.16
    torch.testing.assert_close(mamba.A_log.exp(), torch.arange(1.0, 17).expand(1024, 16))
    assert (mamba.D == 1).all()
    assert mamba.dt_proj.weight.abs().max() <= mamba.dt_rank**-0.5


@pytest.mark.parametrize("channel_tokens", [False, True])
def test_layer_equals_mamba_of_the_normalised_tokens_in_raster_order(channel_tokens):
    layer, features = MambaLayer(15 if channel_tokens else 8, channel_tokens=channel_tokens), torch.randn(2, 8, 3, 5)
    voxels = torch.stack([features[:, :, row, column] for row in range(3) for column in range(5)], dim=1)
    mixed = layer.mamba(layer.norm(voxels.mT if channel_tokens else voxels))
    expected = (mixed if channel_tokens else mixed.mT).reshape(2, 8, 3, 5)
    torch.testing.assert_close(layer(features), expected)


@pytest.mark.parametrize("channel_tokens", [False, True])
def test_layer_refuses_a_feature_map_of_another_width(refused, channel_tokens):
    with refused("features", got=(1, 8, 4, 4)):
        MambaLayer(7, channel_tokens=channel_tokens)(torch.zeros(1, 8, 4, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channel_tokens", [False, True])
def test_layer_computes_in_float32_under_autocast(dtype, channel_tokens):
    layer, features = MambaLayer(16, channel_tokens=channel_tokens), torch.randn(1, 16, 4, 4).to(dtype)
    with torch.autocast("cpu", dtype):
        inside = layer(features)
    assert inside.dtype == dtype
    torch.testing.assert_close(inside, layer(features.float()).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("channel_tokens", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layer_keeps_the_memory_format(memory_format, channel_tokens):
    layer = MambaLayer(24 if channel_tokens else 8, channel_tokens=channel_tokens)
    features = torch.randn(2, 8, 4, 6).to(memory_format=memory_format)
    assert layer(features).is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("copied", [lambda net: net, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_decay_marks_are_those_of_mamba_ssm_also_in_copies(copied):
    net = copied(Mamba(8))
    marked = {name for name, param in net.named_parameters() if getattr(param, "_no_weight_decay", False)}
    assert marked == {"A_log", "D"}
