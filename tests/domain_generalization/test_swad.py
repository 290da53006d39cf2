import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uumamba.domain_generalization import SWAD


class OneWeight(nn.Module):
    """One weight and one buffer, set by the test."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.register_buffer("latest", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def run_swad(losses: Sequence[float], *, steps: int = 1, **options: float) -> tuple[SWAD, list[list[float]]]:
    """Validate with losses, each after some steps; return weights per segment."""
    net, generator = OneWeight(), torch.Generator().manual_seed(0)
    swad = SWAD(net, **options)
    segments = []
    for loss in losses:
        segments.append([])
        for _ in range(steps):
            with torch.no_grad():
                net.weight.copy_(torch.randn(1, generator=generator))
            swad.after_step(net)
            segments[-1].append(net.weight.item())
        swad.validated(loss)
    return swad, segments


def valley(losses: Sequence[float], n_converge: int, n_tolerance: int, ratio: float) -> tuple[int, int] | None:
    """Return the first and last averaged index by the paper's algorithm 1."""
    start, threshold = None, None
    for i in range(len(losses)):
        window = losses[max(0, i - n_converge + 1) : i + 1]
        if threshold is None:
            if len(window) == n_converge and window[0] == min(window):
                start, threshold = i - n_converge + 1, (1 + ratio) * sum(window) / n_converge
        elif i >= n_tolerance and min(losses[i - n_tolerance + 1 : i + 1]) > threshold:
            return start, i - n_tolerance
    if start is None:
        return None
    return start, max(i for i in range(start, len(losses)) if losses[i] <= threshold)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_valley_by_hand(steps: int) -> None:
    # 0.5 is the lowest of a window of three with the mean 0.6, so the threshold is 1.3 * 0.6 = 0.78. The losses 0.9 and
    # 1.0 before the second 0.7 do not end the valley; the three losses after it do.
    losses = [1.0, 0.8, 0.5, 0.6, 0.7, 0.9, 1.0, 0.7, 0.9, 0.9, 1.0]
    swad, segments = run_swad(losses, steps=steps, n_converge=3, n_tolerance=3, tolerance_ratio=0.3)
    assert swad.threshold == pytest.approx(0.78)
    assert swad.finished
    assert swad.steps == (2 * steps + 1, 8 * steps)
    every = [weight for segment in segments[2:8] for weight in segment]
    assert swad.averaged().weight.item() == pytest.approx(sum(every) / len(every), rel=1e-12)


def test_many_valleys_equal_the_papers_algorithm() -> None:
    draw = random.Random(1)
    found = set()
    for _ in range(300):
        losses = [draw.uniform(0.5, 1.0) for _ in range(draw.randint(1, 14))]
        options = draw.randint(1, 4), draw.randint(1, 5), draw.choice((0.0, 0.1, 0.3))
        expected = valley(losses, *options)
        swad, _ = run_swad(losses, **dict(zip(("n_converge", "n_tolerance", "tolerance_ratio"), options, strict=True)))
        assert swad.steps == (None if expected is None else (expected[0] + 1, expected[1] + 1)), losses
        found.add((swad.steps is None, swad.finished))
    assert found == {(True, False), (False, False), (False, True)}


def test_every_step_has_the_same_weight_between_any_validations() -> None:
    net = OneWeight()
    swad = SWAD(net, n_converge=1)
    for step, is_validated in enumerate([True, False, False, False, True, False, True]):
        nn.init.constant_(net.weight, step**2)
        net.latest.fill_(step)
        swad.after_step(net)
        if is_validated:
            swad.validated(0.5)
    assert swad.averaged().latest == 6  # buffers are the latest
    assert swad.averaged().weight.item() == pytest.approx(sum(step**2 for step in range(7)) / 7, rel=1e-12)
    assert swad.steps == (1, 7)


@pytest.mark.parametrize("stop", [0, 3, 6, 8])
def test_a_resumed_run_averages_like_an_uninterrupted_run(stop: int) -> None:
    losses = [1.0, 0.8, 0.5, 0.6, 0.7, 0.9, 0.7, 0.9, 0.9]
    options = {"n_converge": 3, "n_tolerance": 2}
    through, net = SWAD(OneWeight(), **options), OneWeight()
    stopped = SWAD(OneWeight(), **options)
    for step, loss in enumerate(losses):
        for swad in (through, stopped):
            nn.init.constant_(net.weight, step / 3)
            swad.after_step(net)
        if step == stop:
            state = stopped.state_dict()
            stopped = SWAD(OneWeight(), **options)
            stopped.load_state_dict(state)
        for swad in (through, stopped):
            swad.validated(loss)
    assert (stopped.steps, stopped.threshold, stopped.finished) == (through.steps, through.threshold, True)
    assert torch.equal(stopped.averaged().weight, through.averaged().weight)


def test_a_loss_at_the_tolerance_is_in_the_valley() -> None:
    assert run_swad([0.5, 0.5, 0.6], n_converge=1, tolerance_ratio=0.0)[0].steps == (1, 2)


def test_a_loss_that_never_settles_gives_the_last_segment_with_a_warning() -> None:
    swad, segments = run_swad([0.9, 0.8, 0.7, 0.6], steps=2)
    assert swad.threshold is None
    assert swad.steps is None
    with pytest.warns(UserWarning, match="did not settle"):
        averaged = swad.averaged()
    assert averaged.weight.item() == pytest.approx(sum(segments[-1]) / 2)


def test_running_statistics_are_those_of_the_averaged_weights() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    swad = SWAD(net, n_converge=1)
    for step in range(4):
        nn.init.constant_(net[0].weight, float(step))
        net(torch.randn(8, 2))
        swad.after_step(net)
        swad.validated(0.5)
    batches = [torch.randn(8, 2) for _ in range(3)]
    averaged = swad.averaged((x, torch.zeros(8)) for x in batches)
    assert averaged.training
    features = torch.stack([averaged[0](x) for x in batches])
    torch.testing.assert_close(averaged[1].running_mean, features.mean((0, 1)))
    torch.testing.assert_close(averaged[1].running_var, features.var(1).mean(0))
    torch.testing.assert_close(averaged[0].weight, torch.full((3, 2), 1.5))
    assert not torch.equal(net[1].running_mean, averaged[1].running_mean)
    assert torch.equal(net[0].weight, torch.full((3, 2), 3.0))  # training can go on


class Backbone(nn.Sequential):
    """Two batch norms, the first optionally frozen by ``train`` (DomainBed)."""

    def __init__(self, *, frozen: bool) -> None:
        super().__init__(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.frozen = frozen
        self[1].running_mean.fill_(2.0)
        self[1].running_var.fill_(9.0)

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        if self.frozen:
            self[1].eval()
        return self


@pytest.mark.parametrize("frozen", ["by its train()", "before", "after the average was made"])
def test_a_frozen_batch_norm_keeps_its_statistics_and_only_the_others_are_renewed(frozen: str) -> None:
    net = Backbone(frozen=frozen == "by its train()")
    if frozen == "before":
        net[1].eval()
    swad = SWAD(net, n_converge=1)
    net.train() if net.frozen else net[1].eval()
    net(torch.randn(8, 2))
    swad.after_step(net)
    swad.validated(0.5)
    batches = [torch.randn(8, 2) for _ in range(3)]
    averaged = swad.averaged(batches)
    assert torch.equal(averaged[1].running_mean, torch.full((3,), 2.0))
    assert torch.equal(averaged[1].running_var, torch.full((3,), 9.0))
    features = torch.stack([net[2]((net[0](x) - 2) / (9 + net[1].eps) ** 0.5) for x in batches])
    torch.testing.assert_close(averaged[3].running_mean, features.mean((0, 1)))
    torch.testing.assert_close(averaged[3].running_var, features.var(1).mean(0))
    assert [module.training for module in averaged] == [True, False, True, True]
    assert averaged[3].momentum == 0.1


def test_a_network_with_frozen_batch_norms_needs_no_batches_also_after_a_resume() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
    net[1].running_mean.fill_(2.0)
    swad, again = SWAD(net, n_converge=1), SWAD(net, n_converge=1)
    net[1].eval()
    swad.after_step(net)
    swad.validated(0.5)
    again.load_state_dict(swad.state_dict())
    for each in (swad, again):
        averaged = each.averaged()
        assert torch.equal(averaged[1].running_mean, torch.full((3,), 2.0))
        assert not averaged[1].training


def test_steps_in_evaluation_mode_do_not_freeze_a_batch_norm() -> None:
    net = nn.BatchNorm1d(2)
    swad = SWAD(net, n_converge=1)
    swad.after_step(net.train())
    swad.after_step(net.eval())
    swad.validated(0.5)
    batch = torch.randn(8, 2)
    torch.testing.assert_close(swad.averaged([batch]).running_mean, batch.mean(0))


def test_calls_out_of_order_missing_batches_and_losses_that_are_not_finite_are_refused(refused: Any) -> None:
    net = nn.BatchNorm1d(2)
    swad = SWAD(net, n_converge=1)
    with refused("averaged"):
        swad.averaged()
    with refused("validated"):
        swad.validated(0.5)
    swad.after_step(net)
    swad.validated(0.5)
    for batches in (None, []):
        with refused("batches"):
            swad.averaged(batches)
    for loss in (math.nan, math.inf, -math.inf):
        with refused("loss"):
            swad.validated(loss)
