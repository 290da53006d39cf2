"""Sliding window: equality with MONAI's, blending, and refused options."""

import itertools
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from uumamba.inference import sliding_window
from uumamba.inference.slab_blending import find_window_starts


def identity(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("size", "roi", "overlap", "mode"),
    [
        ((20, 33), (16, 16), 0.0, "gaussian"),
        ((20, 33), (16, 16), 0.8, "constant"),
        ((16, 16), (16, 16), 0.5, "gaussian"),
        ((9, 40), (16, 12), 0.25, "gaussian"),
        ((7, 5), (16, 16), 0.5, "constant"),
        ((6, 20, 33), (4, 16, 8), 0.25, "constant"),
        ((6, 20, 33), (4, 16, 8), 0.5, "gaussian"),
        ((3, 9, 40), (8, 8, 16), 0.8, "gaussian"),
    ],
)
def test_the_result_equals_that_of_monai(
    size: tuple[int, ...], roi: tuple[int, ...], overlap: float, mode: str
) -> None:
    from monai.inferers import sliding_window_inference

    convolution = (nn.Conv2d if len(roi) == 2 else nn.Conv3d)(2, 3, kernel_size=5, padding=2)
    image = torch.randn(2, *size)
    expected = sliding_window_inference(
        image[None], roi, sw_batch_size=3, predictor=convolution, overlap=overlap, mode=mode
    )[0]
    found = sliding_window(image, convolution, roi_size=roi, sw_batch_size=3, overlap=overlap, mode=mode, cval=0.0)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("size", "roi"), [((5, 13, 9), (8, 8)), ((13, 9), (8, 8)), ((5, 13, 9), (4, 8, 8))])
def test_blending_changes_no_equal_outputs(size: tuple[int, ...], roi: tuple[int, ...]) -> None:
    image = torch.randn(2, *size)
    torch.testing.assert_close(sliding_window(image, identity, roi_size=roi), image)


def test_a_2d_window_is_applied_to_each_slice() -> None:
    net, image = nn.Conv2d(1, 2, 3, padding=1), torch.randn(1, 4, 12, 10)
    found = sliding_window(image, net, roi_size=(8, 8), sw_batch_size=5)
    for index in range(4):
        torch.testing.assert_close(found[:, index], sliding_window(image[:, index], net, roi_size=(8, 8)))


def test_the_batch_size_changes_only_the_number_of_calls() -> None:
    net, image = Mock(side_effect=torch.square), torch.randn(1, 3, 12, 12)
    batched, single = (sliding_window(image, net, roi_size=(8, 8), sw_batch_size=size) for size in (5, 1))
    assert torch.equal(batched, single)
    # Two windows along each axis at stride 4, on three slices.
    assert [len(call.args[0]) for call in net.call_args_list] == [5, 5, 2] + [1] * 12


def test_padding_has_the_smallest_value_of_the_image_or_cval() -> None:
    net, image = Mock(side_effect=identity), torch.full((1, 2, 4), 3.0)
    image[0, 0, 0] = -1.0
    sliding_window(image, net, roi_size=(4, 4))
    sliding_window(image, net, roi_size=(4, 4), cval=7.0)
    for call, value in zip(net.call_args_list, (-1.0, 7.0), strict=True):
        windows = call.args[0]
        assert windows[0, 0, [0, 3]].eq(value).all(), "one row before and one after"
        assert torch.equal(windows[0, 0, 1:3], image[0])


def test_blending_is_in_float32_for_a_network_in_bfloat16() -> None:
    found = sliding_window(torch.ones(1, 20, 20), lambda x: x.bfloat16(), roi_size=(8, 8), overlap=0.75)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.ones(1, 20, 20))


@given(st.data())
def test_windows_cover_every_voxel_and_the_last_ends_at_the_border(data: st.DataObject) -> None:
    window = data.draw(st.integers(1, 12))
    length = data.draw(st.integers(window, 60))
    overlap = data.draw(st.floats(0.0, 0.99))
    starts = [start for (start,) in find_window_starts((length,), (window,), overlap)]
    assert starts == sorted(set(starts))
    assert starts[0] == 0
    assert starts[-1] == length - window
    assert all(second - first <= window for first, second in itertools.pairwise(starts))


@pytest.mark.parametrize(
    ("key", "value"),
    [("roi_size", (8,)), ("roi_size", (0, 8)), ("overlap", 1.0), ("sw_batch_size", 0), ("mode", "mean")],
)
def test_a_wrong_option_is_refused(key: str, value: Any, refused: Any) -> None:
    with refused(key, got=value):
        sliding_window(torch.ones(1, 3, 8, 8), identity, **({"roi_size": (8, 8)} | {key: value}))


@pytest.mark.parametrize(("net", "got"), [(lambda x: [x], "list"), (lambda x: x[:, :, :4], (1, 1, 4, 8))])
def test_a_network_that_returns_a_list_or_another_size_is_refused(net: Any, got: Any, refused: Any) -> None:
    with refused("net", got=got):
        sliding_window(torch.ones(1, 8, 8), net, roi_size=(8, 8))
