"""Convolutional parts against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from uumamba.nets.blocks import IdentityBlock, InstanceNorm, ProjectionBlock, Upsample, init_he, residual_stage


@pytest.mark.parametrize("shape", [(2, 5, 4, 6), (2, 5, 3, 4, 2)], ids=("2d", "3d"))
def test_instance_norm_equals_torchs_instance_norm(shape):
    norm, features = InstanceNorm(5), torch.randn(shape) * 3 + 2
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    expected = (nn.InstanceNorm2d if len(shape) == 4 else nn.InstanceNorm3d)(5, affine=True)
    expected.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm(features), expected(features))


def test_instance_norm_of_a_single_voxel_is_the_bias():
    norm = InstanceNorm(3).double()
    nn.init.normal_(norm.bias)
    found = norm(torch.full((2, 3, 1, 1), 7.0, dtype=torch.float64))
    torch.testing.assert_close(found, norm.bias.view(1, 3, 1, 1).expand(2, 3, 1, 1))


@pytest.mark.parametrize("stride", [(3, 2), (1, 2, 2)], ids=str)
def test_upsample_equals_a_convolution_of_repeated_voxels(stride):
    dims = len(stride)
    upsample, features = Upsample(dims, 6, 4, stride), torch.randn(2, 6, 3, 5, 2)[(..., 0)[: 4 - dims]]
    repeated = features
    for axis, times in enumerate(stride):
        repeated = repeated.repeat_interleave(times, dim=2 + axis)
    torch.testing.assert_close(upsample(features), upsample.conv(repeated))


def test_he_initialisation_changes_only_spatial_convolutions():
    spatial, sequence = nn.Conv2d(64, 64, 3), nn.Conv1d(4, 4, 3)
    before = sequence.weight.clone()
    nn.ModuleList((spatial, sequence)).apply(init_he)
    assert torch.equal(sequence.weight, before)
    assert (spatial.bias == 0).all()
    # He: variance 2 / ((1 + 0.01^2) fan_in), fan_in 64 * 9; 36864 draws, standard error of the variance 0.7 %.
    assert spatial.weight.var().item() == pytest.approx(2 / ((1 + 0.01**2) * 64 * 9), rel=0.03)


def test_residual_stage_has_the_given_blocks_and_stride():
    stage = residual_stage(2, 3, 5, (1, 7), blocks=3, stride=(2, 4))
    assert len(stage) == 3
    assert stage(torch.zeros(1, 3, 8, 12)).shape == (1, 5, 4, 3)


@pytest.mark.parametrize("kind", ["projection", "identity"])
def test_residual_blocks_and_their_gradients_equal_the_formula(kind):
    x = torch.randn(2, 5, 6, 8, dtype=torch.float64, requires_grad=True)

    def normalised(features):
        return F.instance_norm(features, eps=1e-5)

    def conv(layer, features, stride=1):
        padding = layer.weight.shape[-1] // 2
        return F.conv2d(features, layer.weight, layer.bias, stride, padding)

    if kind == "projection":
        block = ProjectionBlock(2, 5, 7, (3, 3), (2, 2)).double()
        inner = F.leaky_relu(normalised(conv(block.conv1, x, 2)), 0.01)
        expected = F.leaky_relu(normalised(conv(block.conv2, inner)) + conv(block.conv3, x, 2), 0.01)
    else:
        block = IdentityBlock(2, 5, (3, 3)).double()
        inner = F.leaky_relu(normalised(conv(block.conv1.conv, x)), 0.01)
        expected = F.leaky_relu(normalised(conv(block.conv2.conv, inner)) + x, 0.01)
    found, weights = block(x), torch.randn_like(expected)
    torch.testing.assert_close(found, expected)
    grads = (torch.autograd.grad((output * weights).sum(), x)[0] for output in (found, expected))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("size", [(4, 4), (40, 40)], ids=["small", "large"])
def test_the_norm_of_channels_last_features_is_the_same_in_the_same_layout(size) -> None:
    norm, features = InstanceNorm(6), 3 + torch.randn(2, 6, *size)
    laid = features.to(memory_format=torch.channels_last)
    with torch.no_grad():
        found, expected = norm(laid), F.instance_norm(features.double()).float()
    torch.testing.assert_close(found, expected.contiguous(), rtol=0, atol=1e-4)
    assert found.is_contiguous(memory_format=torch.channels_last)
