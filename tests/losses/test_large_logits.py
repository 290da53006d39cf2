"""Losses of large logits: equal values in slabs, with less memory."""

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from uumamba.losses import (
    CrossEntropyLoss,
    FocalLoss,
    SoftClDiceLoss,
    SoftDiceLoss,
    UncertaintyWeightedLoss,
    slabs,
    softmax_terms,
)

Sample = Callable[..., tuple[Tensor, Tensor]]

COMPOUND = {
    "compound": lambda: UncertaintyWeightedLoss(
        {"region": SoftDiceLoss(batch_dice=True), "distribution": CrossEntropyLoss(), "pixel": FocalLoss()}
    ),
    "compound for vessels": lambda: UncertaintyWeightedLoss(
        {
            "region": SoftDiceLoss(),
            "distribution": CrossEntropyLoss(),
            "pixel_by_class": FocalLoss(class_mean=True),
            "centreline": SoftClDiceLoss(iterations=2),
        }
    ),
}
TERMS = {
    "dice": SoftDiceLoss,
    "dice ignoring": lambda: SoftDiceLoss(ignore_label=3, batch_dice=True, include_background=True),
    "cross entropy": CrossEntropyLoss,
    "cross entropy ignoring": lambda: CrossEntropyLoss(ignore_label=3),
    "focal": lambda: FocalLoss(alpha=0.25),
    "focal ignoring": lambda: FocalLoss(ignore_label=3),
    "focal by class": lambda: FocalLoss(class_mean=True, ignore_label=3),
    "centreline of each": lambda: SoftClDiceLoss(vessels_of="each", iterations=2),
    **COMPOUND,
}


@pytest.fixture
def set_slab_values(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set the number of values per slab, to make small logits large."""
    return lambda values: monkeypatch.setattr(slabs, "SLAB_VALUES", values)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize(("shape", "values"), [((3, 7, 6), 60), ((2, 5, 4, 6), 1), ((9, 4, 3), 130), ((3, 50), 40)])
def test_value_and_gradient_in_slabs_equal_those_without_slabs(
    name: str, shape: tuple[int, ...], values: int, sample: Sample, set_slab_values: Callable[[int], None]
) -> None:
    logits, label = sample(*shape, classes=5)
    loss = TERMS[name]()
    whole = loss(logits, label)
    gradient = torch.autograd.grad(whole, logits)[0]
    set_slab_values(values)
    assert slabs.is_large(logits)
    in_slabs = loss(logits, label)
    torch.testing.assert_close(in_slabs, whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(in_slabs, logits)[0], gradient, rtol=0, atol=1e-7)


@pytest.mark.parametrize("ignored", [False, True])
def test_first_and_second_gradients_equal_finite_differences(
    sample: Sample, set_slab_values: Callable[[int], None], ignored: bool
) -> None:
    set_slab_values(6)
    logits, label = sample(2, 3, 2, classes=3, dtype=torch.float64)
    valid = torch.arange(12).reshape(label.shape) % 4 > 0 if ignored else None
    for function in (softmax_terms.voxel_nll, softmax_terms.softmax_sums):
        assert torch.autograd.gradcheck(lambda z, f=function: f(z, label, valid), logits)
        assert torch.autograd.gradgradcheck(lambda z, f=function: f(z, label, valid), logits)


def test_bfloat16_logits_are_summed_in_float32_and_have_bfloat16_gradients(
    sample: Sample, set_slab_values: Callable[[int], None]
) -> None:
    logits, label = sample(2, 12, 12, classes=5)
    low = logits.detach().bfloat16().requires_grad_()
    high = low.detach().float().requires_grad_()
    loss = COMPOUND["compound"]()
    loss(high, label).backward()
    set_slab_values(100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(low, label)
    value.backward()
    assert value.dtype == torch.float32
    assert low.grad is not None
    assert high.grad is not None
    assert low.grad.dtype == torch.bfloat16
    torch.testing.assert_close(low.grad.float(), high.grad, rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 24, 96, 128, 128), (8, 4, 128, 128), (3, 5, 7), (2, 9, 1, 600, 600)])
def test_slabs_cover_every_value_once(shape: tuple[int, ...], set_slab_values: Callable[[int], None]) -> None:
    if shape[-1] == 7:
        set_slab_values(11)
    counted = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.uint8)
    for slab in slabs.slabs(torch.empty(1).expand(shape)):
        counted[slab] += 1
    assert (counted == 1).all()


def test_logits_of_a_small_2d_training_need_no_slabs() -> None:
    assert not slabs.is_large(torch.empty(1).expand(8, 4, 128, 128))


@pytest.mark.parametrize(
    ("name", "shape", "multiple"),
    [
        # two gradients of the logits: the sum so far and one more term; the skeleton's 30 channels are freed before
        ("compound", (64, 64, 64), 2.0),
        ("compound for vessels", (64, 64, 64), 2.0),
        ("centreline of each", (40, 32, 40), 2.0 + (2 * 2 + 20) / 24),
    ],
)
def test_peak_memory_with_24_classes_equals_the_documented_value(
    name: str, shape: tuple[int, ...], multiple: float, sample: Sample
) -> None:
    logits, label = sample(1, *shape, classes=24)
    loss = TERMS[name]()
    loss(logits, label).backward()  # allocates what later calls reuse

    def forward_and_backward() -> None:
        logits.grad = None
        loss(logits, label).backward()

    logits.grad = None
    # In addition: a few slabs of 1 MB, the labels and single channels (24 channels are one multiple).
    assert multiple < peak_bytes(forward_and_backward) / (logits.numel() * 4) < multiple + 0.2


def peak_bytes(work: Callable[[], None]) -> int:
    """Measure the peak of additional CPU memory during a call."""
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    live = peak = 0
    for _, size in sorted(allocations(profile)):
        live += size
        peak = max(peak, live)
    return peak


def allocations(profile: torch.profiler.profile) -> Iterator[tuple[int, int]]:
    """Yield time and size of every allocation, negative for a release.

    Allocations inside operators are included.
    """
    results = profile.profiler.kineto_results  # type: ignore[union-attr]  # set once the profile has ended
    for event in results.events():
        if event.name() == "[memory]":
            yield event.start_ns(), event.nbytes()
