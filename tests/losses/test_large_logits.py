"""Logits with many classes: the same numbers as torch's operators give, without their copies."""

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.losses import (
    CrossEntropyLoss,
    DeepSupervisionLoss,
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
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """``cut(values)``: let pieces hold so many values, so that small logits are large."""
    return lambda values: monkeypatch.setattr(slabs, "SLAB_VALUES", values)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize(("shape", "values"), [((3, 7, 6), 60), ((2, 5, 4, 6), 1), ((9, 4, 3), 130), ((3, 50), 40)])
def test_value_and_gradient_are_those_of_the_whole(
    name: str, shape: tuple[int, ...], values: int, sample: Sample, cut: Callable[[int], None]
) -> None:
    logits, label = sample(*shape, classes=5)
    loss = TERMS[name]()
    whole = loss(logits, label)
    gradient = torch.autograd.grad(whole, logits)[0]
    cut(values)
    assert slabs.is_large(logits)
    pieces = loss(logits, label)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(pieces, logits)[0], gradient, rtol=0, atol=1e-7)


def test_deep_supervision_is_that_of_the_whole(sample: Sample, cut: Callable[[int], None]) -> None:
    outputs = [sample(2, size, size, classes=5)[0] for size in (16, 8, 4)]
    label = sample(2, 16, 16, classes=5)[1]
    loss = DeepSupervisionLoss(COMPOUND["compound for vessels"]())
    whole = loss(outputs, label)
    gradients = torch.autograd.grad(whole, outputs)
    cut(50)
    pieces = loss(outputs, label)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(pieces, outputs), gradients, rtol=0, atol=1e-7)


@pytest.mark.parametrize("ignored", [False, True])
def test_gradients_and_theirs_are_right(sample: Sample, cut: Callable[[int], None], ignored: bool) -> None:
    cut(6)
    logits, label = sample(2, 3, 2, classes=3, dtype=torch.float64)
    valid = torch.arange(12).reshape(label.shape) % 4 > 0 if ignored else None
    for function in (softmax_terms.voxel_nll, softmax_terms.softmax_sums):
        assert torch.autograd.gradcheck(lambda z, f=function: f(z, label, valid), logits)
        assert torch.autograd.gradgradcheck(lambda z, f=function: f(z, label, valid), logits)


def test_bfloat16_logits_are_summed_in_float32_and_keep_their_gradients_dtype(
    sample: Sample, cut: Callable[[int], None]
) -> None:
    logits, label = sample(2, 12, 12, classes=5)
    low = logits.detach().bfloat16().requires_grad_()
    high = low.detach().float().requires_grad_()
    loss = COMPOUND["compound"]()
    loss(high, label).backward()
    cut(100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(low, label)
    value.backward()
    assert value.dtype == torch.float32
    assert low.grad is not None
    assert high.grad is not None
    assert low.grad.dtype == torch.bfloat16
    torch.testing.assert_close(low.grad.float(), high.grad, rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 24, 96, 128, 128), (8, 4, 128, 128), (3, 5, 7), (2, 9, 1, 600, 600)])
def test_pieces_cover_the_logits_once(shape: tuple[int, ...], cut: Callable[[int], None]) -> None:
    if shape[-1] == 7:
        cut(11)
    counted = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.uint8)
    for piece in slabs.slabs(torch.empty(1).expand(shape)):
        counted[piece] += 1
    assert (counted == 1).all()


def test_the_logits_of_the_small_two_dimensional_run_go_whole_as_ever() -> None:
    assert not slabs.is_large(torch.empty(1).expand(8, 4, 128, 128))


@pytest.mark.parametrize(
    ("name", "shape", "multiple"),
    [
        # the logits' gradient so far and that of one more term; the skeleton's 30 channels come and go before them
        ("compound", (64, 64, 64), 2.0),
        ("compound for vessels", (64, 64, 64), 2.0),
        ("centreline of each", (40, 32, 40), 2.0 + (2 * 2 + 20) / 24),
    ],
)
def test_peak_memory_with_24_classes_is_as_stated(
    name: str, shape: tuple[int, ...], multiple: float, sample: Sample
) -> None:
    logits, label = sample(1, *shape, classes=24)
    loss = TERMS[name]()
    loss(logits, label).backward()  # what is made once is there

    def forward_and_backward() -> None:
        logits.grad = None
        loss(logits, label).backward()

    logits.grad = None
    # beside them: a piece of 1 MB or a few, the labels, and single channels, of which there are 24 a multiple
    assert multiple < peak_bytes(forward_and_backward) / (logits.numel() * 4) < multiple + 0.2


def test_the_peak_is_measured_where_torch_allocates() -> None:
    # two maps of 4 MB live together, the third after one of them was freed
    def three_maps() -> None:
        first = torch.zeros(2**20)
        second = first + 1
        del first
        F.relu(second)

    assert peak_bytes(three_maps) == pytest.approx(2 * 2**22, rel=0.01)


def peak_bytes(work: Callable[[], None]) -> int:
    """The most memory that the CPU allocator held at once during the work, beyond what it held before."""
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    live = peak = 0
    for _, size in sorted(allocations(profile)):
        live += size
        peak = max(peak, live)
    return peak


def allocations(profile: torch.profiler.profile) -> Iterator[tuple[int, int]]:
    """Time and size of every allocation, and with a minus of every release, inside operators too."""
    results = profile.profiler.kineto_results  # type: ignore[union-attr]  # set once the profile has ended
    for event in results.events():
        if event.name() == "[memory]":
            yield event.start_ns(), event.nbytes()


def test_a_module_need_not_know_of_pieces(cut: Callable[[int], None]) -> None:
    # the gradient goes on into the network that made the logits
    cut(16)
    net = nn.Conv2d(1, 3, 1)
    loss = COMPOUND["compound"]()
    loss(net(torch.randn(2, 1, 8, 8)), torch.randint(0, 3, (2, 1, 8, 8))).backward()
    assert net.weight.grad is not None
    assert net.weight.grad.abs().sum() > 0
