"""Slabs of blended windows, compared with sums over the whole image."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.inference.memory_plan import plan_memory
from uumamba.inference.plane_image import list_neighbours
from uumamba.inference.slab_blending import blend_slabs, compute_blending_weight, find_window_starts


def blend_whole(image: Tensor, net: Any, *, roi: tuple[int, ...], batch: int, overlap: float, mode: Any) -> Tensor:
    """Blend windows in arrays as large as the padded image."""
    flat = len(roi) == image.ndim - 2
    images = image.movedim(1, 0) if flat else image[None]
    size = images.shape[2:]
    before = [max(0, window - length) // 2 for window, length in zip(roi, size, strict=True)]
    after = [max(0, r - s) - b for r, s, b in zip(roi, size, before, strict=True)]
    pairs = list(itertools.chain(*reversed(list(zip(before, after, strict=True)))))
    padded = F.pad(images, pairs, value=float(image.min()))
    weight = compute_blending_weight(roi, mode=mode, sigma_scale=0.125)
    starts = list(find_window_starts(padded.shape[2:], roi, overlap))
    views = [tuple(slice(s, s + r) for s, r in zip(start, roi, strict=True)) for start in starts]
    windows = list(itertools.product(range(len(padded)), views))
    sums, total = None, torch.zeros(padded.shape[2:])
    for view in views:
        total[view] += weight
    for first in range(0, len(windows), batch):
        block = windows[first : first + batch]
        found = net(torch.stack([padded[(index, slice(None), *view)] for index, view in block]))
        sums = torch.zeros(len(padded), found.shape[1], *padded.shape[2:]) if sums is None else sums
        for (index, view), values in zip(block, found.float() * weight, strict=True):
            sums[(index, slice(None), *view)] += values
    assert sums is not None
    inside = tuple(slice(b, b + s) for b, s in zip(before, size, strict=True))
    mean = (sums / total)[(slice(None), slice(None), *inside)]
    return mean.movedim(0, 1) if flat else mean[0]


CASES: list[tuple[tuple[int, ...], tuple[int, ...], float, Any]] = [
    ((11, 20, 33), (4, 8, 16), 0.5, "gaussian"),
    ((11, 20, 33), (4, 8, 8), 0.0, "constant"),
    ((11, 20, 33), (5, 7, 16), 0.8, "gaussian"),
    ((3, 9, 40), (8, 16, 16), 0.5, "gaussian"),
    ((5, 20, 13), (8, 16), 0.5, "gaussian"),
    ((5, 6, 13), (8, 8), 0.3, "constant"),
    ((20, 13), (8, 16), 0.5, "gaussian"),
]


@pytest.mark.parametrize(("size", "roi", "overlap", "mode"), CASES)
@torch.no_grad()
def test_slabs_equal_the_sums_over_the_whole_image_bit_for_bit(
    size: tuple[int, ...], roi: tuple[int, ...], overlap: float, mode: str
) -> None:
    net = (nn.Conv2d if len(roi) == 2 else nn.Conv3d)(2, 3, kernel_size=3, padding=1)
    image = torch.randn(2, *size)
    expected = blend_whole(image, net, roi=roi, batch=3, overlap=overlap, mode=mode)
    slabs = blend_slabs(
        lambda: iter(image.unbind(1)), size, net, roi_size=roi, sw_batch_size=3, overlap=overlap, mode=mode
    )
    assert torch.equal(torch.cat([slab.clone() for slab in slabs], dim=1), expected)


@pytest.mark.parametrize(("size", "roi", "overlap", "mode"), CASES)
@torch.no_grad()
def test_strips_of_rows_equal_the_whole_image(
    size: tuple[int, ...], roi: tuple[int, ...], overlap: float, mode: str
) -> None:
    net = (nn.Conv2d if len(roi) == 2 else nn.Conv3d)(2, 3, kernel_size=3, padding=1)
    image = torch.randn(2, *size)
    expected = blend_whole(image, net, roi=roi, batch=3, overlap=overlap, mode=mode)
    bounds = [0, 1, size[1] // 2, size[1]]
    for rows in itertools.pairwise(bounds):
        options: dict[str, Any] = {"roi_size": roi, "sw_batch_size": 3, "overlap": overlap, "mode": mode, "rows": rows}
        slabs = blend_slabs(lambda: iter(image.unbind(1)), size, net, **options)
        found = torch.cat([slab.clone() for slab in slabs], dim=1)
        torch.testing.assert_close(found, expected[:, :, slice(*rows)], atol=1e-6, rtol=0)


def test_only_the_planes_of_one_row_of_windows_are_in_memory() -> None:
    read: list[int] = []

    def list_planes() -> Any:
        for index in range(40):
            read.append(index)
            yield torch.zeros(1, 8, 8)

    slabs = blend_slabs(list_planes, (40, 8, 8), lambda x: x, roi_size=(8, 8, 8), sw_batch_size=1, overlap=0.5)
    first = next(slabs)
    assert (first.shape, read[-1]) == ((1, 4, 8, 8), 11)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_neighbours_of_the_edge_are_the_edge_itself(count: int) -> None:
    volume = np.random.default_rng(0).random((2, 5, 3, 4))
    places = (np.arange(5) + np.arange(-count, count + 1)[:, None]).clip(0, 4)
    expected = volume[:, places].reshape(-1, 5, 3, 4)
    found = np.stack(list(list_neighbours(np.moveaxis(volume, 1, 0), count)), axis=1)
    assert np.array_equal(found, expected)


def test_a_smaller_limit_gives_fewer_windows_then_more_strips() -> None:
    options: dict[str, Any] = {"resident_bytes": 0.5e9, "label_shape": (400, 400, 100), "size": (100, 400, 400)}
    options |= {"roi_size": (32, 64, 64), "classes": 9, "features": 4, "windows": 4}
    plans = [plan_memory(gb * 1e9, **options) for gb in (3.0, 1.05, 0.9, 0.8, 0.1)]
    assert [(plan.strips, plan.windows) for plan in plans[:2]] == [(1, 4), (1, 4)]
    assert [plan.strips for plan in plans] == sorted(plan.strips for plan in plans)
    assert (plans[-1].strips, plans[-1].windows) == (6, 1)
    larger = plan_memory(3e9, **options | {"label_shape": (400, 400, 200)})
    assert larger.bytes_needed - plans[0].bytes_needed == 400 * 400 * 100
    assert all(plan.bytes_needed <= gb * 1e9 for plan, gb in zip(plans[:4], (3.0, 1.05, 0.9, 0.8), strict=True))
