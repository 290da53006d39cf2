"""Tests of the channels-last layout."""

import pytest
import torch
from torch import nn

from uumamba.runtime.memory_format import lay_channels_last, to_channels_last


@pytest.mark.parametrize(("shape", "strides"), [((2, 3, 4, 5), (60, 1, 15, 3)), ((1, 2, 3, 4, 5), (120, 1, 40, 10, 2))])
def test_the_channel_axis_becomes_innermost_and_no_value_changes(
    shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    tensor = torch.randn(shape)
    laid = to_channels_last(tensor)
    assert laid.stride() == strides
    assert torch.equal(laid, tensor)
    flat = tensor.flatten(2)
    assert to_channels_last(flat) is flat, "one spatial axis: unchanged"


def test_a_network_keeps_its_parameters_and_its_state() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv3d(2, 3, 3), nn.Linear(2, 3))
    before = list(net.parameters())
    values = {name: value.clone() for name, value in net.state_dict().items()}
    lay_channels_last(net)
    assert all(one is other for one, other in zip(net.parameters(), before, strict=True))
    assert net[0].weight.stride(1) == net[1].weight.stride(1) == 1
    assert all(torch.equal(value, values[name]) for name, value in net.state_dict().items())


def test_an_image_of_one_channel_keeps_the_layout_through_a_convolution() -> None:
    image = torch.rand(2, 1, 8, 8)
    for kernel_size in (1, 3):
        net = nn.Conv2d(1, 4, kernel_size)
        lay_channels_last(net)
        with torch.inference_mode():
            found = net(to_channels_last(image))
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(to_channels_last(image), image)
