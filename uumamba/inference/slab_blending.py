"""Blending of overlapping windows in slabs.

Memory holds only the planes of one row of windows, not the whole volume.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from uumamba.runtime.errors import require

Mode = Literal["constant", "gaussian"]
Planes = Callable[[], Iterator[Tensor]]
"""Function that yields an image ``(C, *S)`` as planes ``(C, *S[1:])``, from the first on, as often as it is called."""
SMALLEST_WEIGHT = 1e-3


@torch.no_grad()
def blend_slabs(
    planes: Planes,
    size: Sequence[int],
    net: Callable[[Tensor], Tensor],
    *,
    roi_size: Sequence[int],
    sw_batch_size: int,
    overlap: float,
    mode: Mode = "gaussian",
    sigma_scale: float = 0.125,
    cval: float | None = None,
    rows: tuple[int, int] | None = None,
) -> Iterator[Tensor]:
    """Yield the blended outputs of a network in slabs.

    Together they are the result of :func:`uumamba.inference.sliding_window`. Windows are applied in the order of their
    starts. A plane is finished when all windows that hold it were added. The windows of a row need
    ``(K + 1) * roi_size[0]`` planes in memory. With ``rows``, only windows that touch these rows are applied, and only
    these rows are in memory.

    Args:
        planes: the image.
        size: spatial size of the image.
        net: from ``(B, C, *roi_size)`` to ``(B, K, *roi_size)``.
        roi_size: size of the window, in all axes or in all but the first.
        sw_batch_size: windows for each call of ``net``.
        overlap: share of the window's length.
        mode: weight of the voxels of a window.
        sigma_scale: standard deviation of the weight as a share of the window's length.
        cval: padding value; the minimum of the image by default.
        rows: first row of the second spatial axis and the row after the last; all by default.

    Yields:
        ``(K, n, *rest)`` float32, in order. It is valid until the next slab is requested.

    Raises:
        UsageError: ``net`` returns another shape.
    """
    has_flat_windows = len(roi_size) == len(size) - 1
    roi = (1, *roi_size) if has_flat_windows else tuple(roi_size)
    before = tuple(max(0, window - length) // 2 for window, length in zip(roi, size, strict=True))
    padded = [max(window, length) for window, length in zip(roi, size, strict=True)]
    if cval is None and any(window > length for window, length in zip(roi, size, strict=True)):
        cval = min(float(plane.min()) for plane in planes())
    region = [(first, first + length) for first, length in zip(before, size, strict=True)]
    if rows is not None:
        region[1] = (before[1] + rows[0], before[1] + rows[1])
    weight = compute_blending_weight(roi_size, mode=mode, sigma_scale=sigma_scale).reshape(roi)
    reader = _WindowReader(planes(), roi, before, padded, 0.0 if cval is None else cval)
    sums: _RollingSums | None = None
    starts = [start for start in find_window_starts(padded, roi, overlap) if _touches(start, roi, region)]
    for first in range(0, len(starts), sw_batch_size):
        block = starts[first : first + sw_batch_size]
        windows = torch.stack([reader.read(start) for start in block])
        found = net(windows[:, :, 0] if has_flat_windows else windows)
        _check_output(found, len(block), roi_size)
        if sums is None:
            weight = weight.to(found.device)
            sums = _RollingSums(found.shape[1], roi[0], region, found.device)
        weighted = found.float().reshape(*found.shape[:2], *roi) * weight
        for start, values in zip(block, weighted, strict=True):
            yield from sums.finish(start[0])
            sums.add(values, weight, start)
    assert sums is not None  # there is at least one window
    yield from sums.finish(region[0][1])


def find_window_starts(size: Sequence[int], roi_size: Sequence[int], overlap: float) -> Iterator[tuple[int, ...]]:
    """Yield the first corners of windows that cover an image.

    The last axis changes fastest.

    Example:
        >>> list(find_window_starts((10,), (4,), overlap=0.5))
        [(0,), (2,), (4,), (6,)]
        >>> list(find_window_starts((9,), (4,), overlap=0.25))
        [(0,), (3,), (5,)]
    """
    axes = []
    for length, window in zip(size, roi_size, strict=True):
        step = max(1, int(window * (1 - overlap)))
        count = math.ceil((length - window) / step) + 1
        axes.append([min(index * step, length - window) for index in range(count)])
    return itertools.product(*axes)


def compute_blending_weight(roi_size: Sequence[int], *, mode: Mode, sigma_scale: float) -> Tensor:
    """Return the positive weight of each voxel of a window.

    The weight is a Gaussian around the centre of the window, or 1.

    Example:
        >>> weight = compute_blending_weight((3,), mode="gaussian", sigma_scale=0.5)  # sigma is 1.5 voxels
        >>> torch.allclose(weight, torch.tensor([-0.5 / 1.5**2, 0.0, -0.5 / 1.5**2]).exp())
        True
    """
    weight = torch.ones(())
    if mode == "constant":
        return weight.expand(tuple(roi_size))
    for length in roi_size:
        distance = torch.arange(length, dtype=torch.float32) - (length - 1) / 2
        weight = weight[..., None] * torch.exp(-(distance**2) / (2 * (sigma_scale * length) ** 2))
    return weight.clamp(min=max(weight.min().item(), SMALLEST_WEIGHT))


class _WindowReader:
    """Windows of a padded image whose planes arrive one after the other.

    Starts ascend along the first axis, so planes before the current start are dropped.
    """

    def __init__(
        self,
        planes: Iterator[Tensor],
        roi: Sequence[int],
        before: Sequence[int],
        padded: Sequence[int],
        cval: float,
    ) -> None:
        self._planes, self._roi, self._before, self._padded, self._cval = planes, roi, before, padded, cval
        self._held: deque[Tensor] = deque()
        self._first = 0

    def read(self, start: Sequence[int]) -> Tensor:
        """Return the window ``(C, *roi)`` at a start."""
        while self._first < start[0]:
            self._held.popleft()
            self._first += 1
        while self._first + len(self._held) < start[0] + self._roi[0]:
            self._append_plane()
        parts = [_view(plane, start[1:], self._roi[1:]) for plane in itertools.islice(self._held, self._roi[0])]
        return torch.stack(parts, dim=1)

    def _append_plane(self) -> None:
        plane = next(self._planes, None)
        if plane is None:  # padding after the last plane
            self._held.append(torch.full_like(self._held[-1], self._cval))
            return
        pairs = [
            (before, length - before - size)
            for before, length, size in zip(self._before[1:], self._padded[1:], plane.shape[1:], strict=True)
        ]
        if any(map(any, pairs)):
            plane = F.pad(plane, list(itertools.chain(*reversed(pairs))), value=self._cval)
        if not self._held and self._first == 0:
            self._held.extend(torch.full_like(plane, self._cval) for _ in range(self._before[0]))
        self._held.append(plane)


class _RollingSums:
    """Weighted sums of windows in the planes that are not finished.

    Plane ``z`` is at ``z % depth``. Voxels outside ``region`` are padding or belong to other rows.
    """

    def __init__(self, classes: int, depth: int, region: Sequence[tuple[int, int]], device: torch.device) -> None:
        rest = [last - first for first, last in region[1:]]
        self._sums = torch.zeros((classes, depth, *rest), device=device)
        self._weights = torch.zeros((depth, *rest), device=device)
        self._depth, self._region, self._first = depth, region, region[0][0]

    def add(self, values: Tensor, weight: Tensor, start: Sequence[int]) -> None:
        """Add a window's values ``(K, *roi)``, already weighted."""
        source, target = [], []
        for first, length, (low, high) in zip(start[1:], weight.shape[1:], self._region[1:], strict=True):
            source.append(slice(max(low - first, 0), min(high - first, length)))
            target.append(slice(max(first - low, 0), min(first + length, high) - low))
        turn = self._depth - start[0] % self._depth  # planes up to the end of the ring
        for planes, places in (
            (slice(0, turn), slice(self._depth - turn, None)),
            (slice(turn, None), slice(0, self._depth - turn)),
        ):
            self._sums[(slice(None), places, *target)].add_(values[(slice(None), planes, *source)])
            self._weights[(places, *target)].add_(weight[(planes, *source)])

    def finish(self, stop: int) -> Iterator[Tensor]:
        """Yield the planes before ``stop`` as means, and free their places."""
        while self._first < stop:
            place = self._first % self._depth
            count = min(stop - self._first, self._depth - place)
            sums, weights = self._sums[:, place : place + count], self._weights[place : place + count]
            yield sums.div_(weights)
            sums.zero_()
            weights.zero_()
            self._first += count


def _touches(start: Sequence[int], roi: Sequence[int], region: Sequence[tuple[int, int]]) -> bool:
    return all(
        first < high and first + window > low for first, window, (low, high) in zip(start, roi, region, strict=True)
    )


def _view(array: Tensor, start: Sequence[int], roi: Sequence[int]) -> Tensor:
    """Return a view of a window along the last axes."""
    for axis, (first, length) in enumerate(zip(start, roi, strict=True), start=-len(roi)):
        array = array.narrow(axis, first, length)
    return array


def _check_output(found: object, windows: int, roi_size: Sequence[int]) -> None:
    roi = tuple(roi_size)
    require(
        isinstance(found, Tensor) and found.shape[:1] + found.shape[2:] == (windows, *roi),
        "net",
        got=tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__,
        expected=f"one tensor of shape ({windows}, classes, {', '.join(map(str, roi))})",
        fix="call net.eval() for a network with deep supervision",
    )
