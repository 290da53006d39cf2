"""Details of single members beyond their formulas and the common contract."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD, Adafactor, AdamW, Optimizer, RMSprop
from torch.optim.swa_utils import AveragedModel

from uumamba.losses import CrossEntropyLoss, FocalLoss, SoftDiceLoss, UncertaintyWeightedLoss
from uumamba.optim import ASAM, GSAM, MSAM, SAGM, SAM, AdaptiveTrigger, FirstPass, LookSAM, Plain


def find_perturbation(net: nn.Module, closure: Callable[[], Tensor], **options: float) -> list[Tensor]:
    """Return the change of each parameter between the two passes."""
    seen = []

    def watched() -> Tensor:
        seen.append([param.detach().clone() for param in net.parameters()])
        return closure()

    ASAM(net.parameters(), partial(SGD, lr=0.0), **options).step(watched)
    return [after - before for before, after in zip(*seen, strict=True)]


def test_one_step_of_sam_by_hand() -> None:
    # L = w1^2 + w2^2 at (3, 4): g = (6, 8), eps = 0.5 * (0.6, 0.8), gradient there (6.6, 8.8)
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    loss = SAM([weight], partial(SGD, lr=0.1), rho=0.5).step(lambda: weight.pow(2).sum())
    assert loss == 25
    torch.testing.assert_close(weight.detach(), torch.tensor([3 - 0.66, 4 - 0.88]))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)
@pytest.mark.parametrize("rho", [0.05, 2.0])
def test_the_perturbation_is_rho_long_and_along_the_gradient(
    training: Any, dtype: torch.dtype, tolerance: float, rho: float
) -> None:
    run = training("SAM", AdamW, dtype=dtype, rho=rho)
    [batch] = run.batches(1)
    loss = F.cross_entropy(run.net(batch["image"]), batch["label"])
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(run.net.parameters()))])
    run.step(run.closure(batch))
    eps = run.seen[1].double() - run.seen[0].double()
    assert eps.norm().item() == pytest.approx(rho, rel=tolerance)
    assert F.cosine_similarity(eps, gradient.double(), dim=0).item() == pytest.approx(1, rel=tolerance)


def test_loss_weights_learn_in_the_same_step_and_are_not_perturbed() -> None:
    net = nn.Conv2d(1, 4, 3, padding=1)
    loss = UncertaintyWeightedLoss({"region": SoftDiceLoss(), "distribution": CrossEntropyLoss(), "pixel": FocalLoss()})
    groups = [{"params": net.parameters()}, {"params": loss.parameters(), "weight_decay": 0.0, "perturb": False}]
    optimizer = SAM(groups, partial(SGD, lr=0.1, weight_decay=1e-2), rho=0.5)
    image, label = torch.randn(2, 1, 8, 8), torch.randint(0, 4, (2, 1, 8, 8))
    seen = []

    def closure() -> Tensor:
        seen.append((loss.log_variances.detach().clone(), net.weight.detach().clone()))
        return loss(net(image), label)

    optimizer.step(closure)
    assert torch.equal(seen[0][0], seen[1][0])
    assert not torch.equal(seen[0][1], seen[1][1])
    assert (loss.log_variances != 0).all()


def test_asam_perturbs_rescaled_layers_in_proportion() -> None:
    # relu(c W1 x) W2 / c is the same function; with eta 0 the perturbations scale by c and 1 / c
    x, factor = torch.randn(7, 4, dtype=torch.float64), 8.0
    nets = [nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 2, bias=False)).double() for _ in "ab"]
    nets[1].load_state_dict(nets[0].state_dict())
    with torch.no_grad():
        nets[1][0].weight *= factor
        nets[1][2].weight /= factor
    first, second = (find_perturbation(net, lambda net=net: net(x).pow(2).sum(), rho=0.5, eta=0.0) for net in nets)
    torch.testing.assert_close(second[0], factor * first[0])
    torch.testing.assert_close(second[1], first[1] / factor)


def test_asam_perturbs_weights_of_zero_only_with_eta() -> None:
    net = nn.Linear(3, 1, bias=False)
    nn.init.zeros_(net.weight)
    for eta, moves in ((0.0, False), (0.01, True)):
        eps = find_perturbation(net, lambda: net(torch.ones(1, 3)).sum(), rho=0.5, eta=eta)
        assert bool(eps[0].any()) is moves


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_never_enters_friendly_sam_s_mean(training: Any, value: float) -> None:
    run, means = training("FriendlySAM"), []
    for factor, batch in zip((value, 1.0, value, 1.0), run.batches(4), strict=True):
        run.step(run.closure(batch, lambda call, logits, factor=factor: logits * factor))
        means.append([kept["gradient_mean"].clone() for kept in run.optimizer.state.values()])
    assert means[0] == []
    assert all(torch.equal(before, after) for before, after in zip(means[1], means[2], strict=True))
    assert not torch.equal(means[2][0], means[3][0])


def test_the_radius_of_gsam_follows_each_group_s_learning_rate() -> None:
    fast, slow = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    seen = []

    def closure() -> Tensor:
        seen.append((fast.item(), slow.item()))
        return (fast + slow).sum()

    groups = [{"params": [fast], "lr": 1.0}, {"params": [slow], "lr": 0.5, "rho": 0.8}]
    GSAM(groups, partial(SGD, lr=1.0), rho=0.4, rho_min=0.2, lr_max=1.0).step(closure)
    # g is (1, 1), of length sqrt(2); the radii are 0.4, and 0.2 + 0.6 / 2
    moves = [after - before for before, after in zip(*seen, strict=True)]
    assert moves == pytest.approx([0.4 / 2**0.5, 0.5 / 2**0.5], rel=1e-6)


def test_gsam_equals_sam_for_parallel_gradients() -> None:
    # L = |w|^2: both gradients point the same way, so alpha has no effect
    results = []
    for make in (SAM, partial(GSAM, alpha=0.9)):
        weight = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
        make([weight], partial(SGD, lr=0.1), rho=0.5).step(lambda weight=weight: weight.pow(2).sum())
        results.append(weight.detach())
    torch.testing.assert_close(*results)


def test_sagm_does_not_perturb_a_group_with_rho_of_zero_and_averages_its_gradients() -> None:
    moved, fixed = (nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2))
    seen = []

    def closure() -> Tensor:
        seen.append((moved.item(), fixed.item()))
        return (moved * fixed).sum()

    groups = [{"params": [moved]}, {"params": [fixed], "rho": 0.0}]
    SAGM(groups, partial(SGD, lr=0.5), rho=1.0, alpha=0.1).step(closure)
    # g is (1, 1): moved goes to 1 + 1 / sqrt(2) - 0.1, where fixed's gradient is as much and moved's still 1
    there = 1 + 2**-0.5 - 0.1
    assert seen[1] == pytest.approx((there, 1.0))
    assert (moved.item(), fixed.item()) == pytest.approx((0.5, 1 - 0.5 * (1 + there) / 2))


def test_a_hook_gets_both_gradients_before_the_mix_and_may_change_them() -> None:
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = SAGM([weight], partial(SGD, lr=0.25), rho=1.0, alpha=0.125)
    seen = []

    def without_first(first: FirstPass, second: Sequence[Tensor]) -> None:
        seen.append((first.grads[0].item(), second[0].item()))
        first.grads[0].zero_()

    handle = optimizer.register_before_mix(without_first)
    optimizer.step(lambda: (weight**2).sum())  # gradient 4 at 2, 5 at 2 + 1 - 0.125 * 4
    assert seen == [(4.0, 5.0)]
    assert weight.item() == 2 - 0.25 * 5 / 2
    handle.remove()
    optimizer.step(lambda: (weight**2).sum())
    assert len(seen) == 1


@pytest.mark.parametrize("make", [Plain, SAM, GSAM])
def test_a_hook_is_rejected_for_an_update_without_the_first_gradient(make: Callable[..., Any], refused: Any) -> None:
    optimizer = make([nn.Parameter(torch.ones(1))], partial(SGD, lr=0.1))
    with refused("optimizer", got=make.__name__):
        optimizer.register_before_mix(lambda first, second: None)


def test_between_steps_of_msam_the_weights_are_the_original_ones(training: Any) -> None:
    # so evaluation, averaging and checkpoints between steps have only the base's weights
    run = training("MSAM", rho=0.3)
    average = AveragedModel(run.net, avg_fn=lambda average, current, count: current)
    weights, velocity = run.weights, torch.tensor(0.0)
    for step, batch in enumerate(run.batches(4)):
        run.step(run.closure(batch))
        torch.testing.assert_close(run.seen[0], weights - (0.3 * velocity / velocity.norm() if step else 0))
        state = run.optimizer.base.state
        velocity = torch.cat([state[param]["momentum_buffer"].flatten() for param in run.net.parameters()])
        weights = weights - 0.05 * velocity
        average.update_parameters(run.net)
        assert run.optimizer.state_dict()["state"] == {}, "its state is the base's"
        for found in (run.weights, parameters_to_vector(average.module.parameters()).detach()):
            torch.testing.assert_close(found, weights, rtol=0, atol=1e-15)


@pytest.mark.parametrize("base", [RMSprop, Adafactor])
def test_msam_rejects_a_base_without_momentum_at_the_second_step(base: Callable[..., Optimizer], refused: Any) -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = MSAM([weight], base)
    optimizer.step(lambda: weight.pow(2).sum())
    before = weight.detach().clone()
    with refused("base"):
        optimizer.step(lambda: weight.pow(2).sum())
    assert torch.equal(weight, before)


def test_groups_without_perturbation_need_no_momentum() -> None:
    perturbed, fixed = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    groups = [{"params": [perturbed]}, {"params": [fixed], "momentum": 0.0, "perturb": False}]
    optimizer = MSAM(groups, partial(SGD, lr=0.1, momentum=0.9))
    for _ in range(3):
        optimizer.step(lambda: (perturbed * fixed).sum())
    assert (fixed < 1).all()


def test_a_skipped_step_of_stale_sam_keeps_the_stored_gradient_and_its_buffer(training: Any) -> None:
    run = training("StaleSAM", partial(SGD, lr=0.0), rho=0.3)
    [batch] = run.batches(1)
    seen, addresses = [], []
    for factor in (1.0, float("inf"), 1.0):
        run.step(run.closure(batch, lambda call, logits, factor=factor: logits * factor))
        seen += run.seen
        addresses.append([kept["last_gradient"].data_ptr() for kept in run.optimizer.state.values()])
    assert torch.equal(seen[1], seen[2])
    assert (seen[1] - seen[0]).norm().item() == pytest.approx(0.3, rel=1e-9)
    assert addresses[0] == addresses[2]
    assert not set(addresses[0]) & {param.grad.data_ptr() for param in run.net.parameters()}, "a base may change them"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"k": 4}, [2, 2, 1, 1, 1, 2, 1, 1]),
        ({"trigger": AdaptiveTrigger(total_steps=5, start=1e9, end=1e9)}, [2, 2, 1, 1, 1, 1, 1, 1]),
    ],
    ids=["k", "a trigger that is never due"],
)
def test_the_first_step_has_a_second_pass_and_so_has_the_next_after_a_failure(
    training: Any, options: dict[str, Any], expected: list[int]
) -> None:
    run = training("LookSAM", **options)
    passes = []
    for step, batch in enumerate(run.batches(8)):
        run.step(
            run.closure(batch, lambda call, logits, step=step: logits * (float("inf") if (step, call) == (0, 2) else 1))
        )
        passes.append(len(run.seen))
    assert passes == expected
    assert run.optimizer.skipped_steps == 1


def test_looksam_ignores_an_orthogonal_part_that_is_only_rounding() -> None:
    # in a quadratic bowl both gradients are parallel, so a step with one pass is the base's own
    weight = nn.Parameter(torch.tensor([0.3, 0.7, 0.1]))
    optimizer = LookSAM([weight], partial(SGD, lr=0.1), rho=0.05, alpha=100.0)
    optimizer.step(lambda: weight.pow(2).sum())
    before = weight.detach().clone()
    optimizer.step(lambda: weight.pow(2).sum())
    assert torch.equal(weight, before - 0.1 * 2 * before)


def test_looksam_counts_micro_batches_as_steps(training: Any) -> None:
    run, calls = training("LookSAM", k=5), 0
    for _ in range(5):
        run.step([run.closure(batch) for batch in run.batches(4)])
        calls += len(run.seen)
    assert calls == 24


def test_looksam_steps_with_one_pass_take_the_mean_gradient_of_micro_batches(training: Any) -> None:
    base = partial(SGD, lr=0.1)
    run, plain = training("LookSAM", base, k=9, alpha=0.0), training("Plain", base)
    first, *batches = run.batches(4)
    run.train([first])
    plain.net.load_state_dict(run.net.state_dict())
    for each in (run, plain):
        each.step([each.closure(batch) for batch in batches])
    assert len(run.seen) == 3
    torch.testing.assert_close(run.weights, plain.weights, rtol=1e-12, atol=1e-14)


def first_pass(*entries: float, numbers: dict[str, float]) -> FirstPass:
    return FirstPass([], [torch.tensor(entries, dtype=torch.float64)], numbers=numbers)


def test_the_first_three_steps_of_a_trigger_by_hand() -> None:
    # squared norms 25, 1, 1; decay 0.5 and a threshold of mu + s at first, mu - s at the end
    trigger, numbers = AdaptiveTrigger(total_steps=2, decay=0.5), {}
    assert trigger(first_pass(3.0, 4.0, numbers=numbers))  # mu 12.5, s^2 0.5 * 12.5^2: 25 >= 12.5 + 8.84
    assert not trigger(first_pass(1.0, numbers=numbers))  # c 0, mu 6.75
    variance = (78.125 / 2 + 5.75**2 / 2) / 2 + 2.875**2 / 2
    assert trigger(first_pass(1.0, numbers=numbers))  # c -1, mu 3.875: 1 >= 3.875 - 5.65
    assert numbers == {"trigger_steps": 3, "trigger_mean": 3.875, "trigger_variance": pytest.approx(variance)}


def test_a_gradient_that_is_not_finite_does_not_fire_the_trigger_and_does_not_count() -> None:
    trigger, numbers = AdaptiveTrigger(total_steps=2), {}
    for value in ("inf", "nan", "1e100"):  # the last one's variance is beyond float64
        assert not trigger(first_pass(1.0, float(value), numbers=numbers))
    assert numbers == {}


@pytest.mark.parametrize("start", [1.0, -1.0])
def test_the_threshold_of_a_trigger_stays_constant_after_its_last_step(start: float) -> None:
    # norms alternate between 1 and 2: at the mean every other one fires, further along the line all or none would
    trigger, numbers = AdaptiveTrigger(total_steps=5, start=start, end=0.0), {}
    verdicts = [trigger(first_pass(1.0 + step % 2, numbers=numbers)) for step in range(60)]
    assert verdicts[20:] == [False, True] * 20
