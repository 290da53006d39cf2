"""UDIM: steps without a penalty, the penalty's gradient, and the perturbed images."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from uumamba.domain_generalization import UDIM, InputPerturbation, StylePerturbation
from uumamba.optim import ASAM, SAGM, SAM, Plain

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
Batches = list[tuple[Tensor, Tensor]]


def net_of(*, norm: bool = False, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A small classifier, equal in every call."""
    torch.manual_seed(3)
    middle = [nn.BatchNorm1d(8)] if norm else []
    layers = [nn.Linear(6, 8), *middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4)]
    return nn.Sequential(*layers).to(dtype)


@pytest.fixture
def batches() -> Batches:
    generator = torch.Generator().manual_seed(5)
    return [(torch.randn(10, 6, generator=generator), torch.randint(4, (10,), generator=generator)) for _ in range(6)]


def train(
    net: nn.Module, batches: Batches, *, make: Any = SAM, udim: UDIM | None = None, **options: Any
) -> list[Tensor]:
    """Train one step per batch; return weights and buffers."""
    optimizer = make(net.parameters(), SGD, net=net, **options)
    torch.manual_seed(11)
    for x, y in batches:
        added = None if udim is None else udim.at_weights(x, y)
        optimizer.step(partial(loss_of, net, x, y), at_weights=added)
    return [each.detach().clone() for each in (*net.parameters(), *net.buffers())]


def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x), y)


def udim_of(net: nn.Module, **options: Any) -> UDIM:
    return UDIM(net, F.cross_entropy, **({"perturbation": InputPerturbation(0.3)} | options))


assert_equal = partial(torch.testing.assert_close, rtol=0, atol=0)


@pytest.mark.parametrize("make", [Plain, SAM, ASAM, SAGM])
@pytest.mark.parametrize("options", [{"lambda1": 0.0, "lambda2": 0.0}, {"warmup_steps": 6}], ids=str)
def test_without_lambdas_or_in_the_warm_up_a_step_equals_the_optimizers_step(
    batches: Batches, make: Any, options: Any
) -> None:
    net, other = (net_of(norm=True, dropout=0.3) for _ in range(2))
    assert_equal(train(net, batches, make=make, udim=udim_of(net, **options)), train(other, batches, make=make))


@pytest.mark.parametrize("make", [Plain, SAM, SAGM])
def test_a_step_adds_the_gradient_of_both_terms_at_the_original_weights(batches: Batches, make: Any) -> None:
    x, y = batches[0][0].double(), batches[0][1]
    net, other = (net_of(dtype=torch.float64) for _ in range(2))
    udim = udim_of(net, lambda1=70.0, lambda2=0.9)
    terms = udim_of(other).terms(x, y)
    added = torch.autograd.grad(70 * terms["variance_gap"] + 0.9 * terms["gradient_norm"], list(other.parameters()))
    found, without = train(net, [(x, y)], make=make, udim=udim), train(other, [(x, y)], make=make)
    expected = [own - 0.1 * gradient for own, gradient in zip(without, added, strict=True)]  # 0.1: learning rate
    torch.testing.assert_close(found, expected)
    assert min(gradient.abs().max() for gradient in added) > 1e-3


@pytest.mark.parametrize("direction", ["ascent", "random"])
@pytest.mark.parametrize("second_order", [True, False, "finite_difference"])
def test_every_sample_changes_by_exactly_the_radius(batches: Batches, direction: Any, second_order: Any) -> None:
    x, y = batches[0]
    x = x * torch.logspace(-2, 2, 10)[:, None]  # gradients of very different sizes
    udim = udim_of(net_of(), direction=direction, second_order=second_order)
    change = udim.perturbed(x.double().float(), y) - x
    torch.testing.assert_close(change.norm(dim=1), torch.full((10,), 0.3), rtol=0, atol=2e-5)


def test_the_perturbation_of_a_sample_does_not_depend_on_the_batch(batches: Batches) -> None:
    x, y = batches[0]
    udim = udim_of(net_of(), rho=0.0)
    alone = torch.cat([udim.perturbed(x[i : i + 1], y[i : i + 1]) for i in range(10)])
    torch.testing.assert_close(udim.perturbed(x, y), alone)


def test_a_sample_without_an_input_gradient_stays_unchanged(batches: Batches) -> None:
    x, y = batches[0]
    y = y.clone()
    y[3] = -100  # ignored by the cross entropy
    change = udim_of(net_of(), rho=0.0, ignore_label=-100).perturbed(x, y) - x
    assert change.any(1).tolist() == [index != 3 for index in range(10)]


def test_ascent_raises_the_loss_more_than_a_random_direction(batches: Batches) -> None:
    net, (x, y) = net_of(), batches[0]
    ascent, random = (
        F.cross_entropy(net(udim_of(net, direction=way).perturbed(x, y)), y) for way in ("ascent", "random")
    )
    assert ascent > random
    assert ascent > F.cross_entropy(net(x), y) + 0.05


def test_a_random_direction_depends_on_seed_and_step_only(batches: Batches) -> None:
    x, y = batches[0]
    udim = udim_of(net_of(), direction="random", seed=1)
    torch.manual_seed(0)
    first = udim.perturbed(x, y)
    torch.manual_seed(1)
    assert torch.equal(udim.perturbed(x, y), first)
    assert not torch.equal(udim.perturbed(x, y, step=1), first)
    assert not torch.equal(udim_of(net_of(), direction="random", seed=2).perturbed(x, y), first)


@pytest.mark.parametrize("engine_knows_net", [True, False])
@pytest.mark.parametrize("second_order", [True, "finite_difference"])
def test_running_statistics_change_once_per_batch(batches: Batches, engine_knows_net: bool, second_order: Any) -> None:
    x, y = batches[0]
    net, once = net_of(norm=True), net_of(norm=True)
    once(x)
    optimizer = Plain(net.parameters(), SGD, net=net if engine_knows_net else None)
    added = udim_of(net, second_order=second_order).at_weights(x, y)
    optimizer.step(lambda: F.cross_entropy(net(x), y), at_weights=added)
    assert_equal([*net.buffers()], [*once.buffers()])


def test_training_lowers_the_gap_below_sam_and_below_the_random_control(batches: Batches) -> None:
    found = {}
    for name, weight, direction in (("sam", 0.0, "ascent"), ("random", 30.0, "random"), ("udim", 30.0, "ascent")):
        net = net_of()
        train(net, batches * 5, udim=udim_of(net, lambda1=weight, lambda2=weight, direction=direction))
        gaps = [udim_of(net).terms(*batch)["variance_gap"] for batch in batches]
        found[name] = float(torch.stack(gaps).detach().mean())
    assert found["udim"] < 0.2 * found["sam"]
    assert found["udim"] < 0.5 * found["random"]


def test_terms_of_several_domains_are_the_mean_of_the_terms_per_domain(batches: Batches) -> None:
    x, y = batches[0]
    udim = udim_of(net_of(), rho=0.0)  # with rho, the ascent of a sample depends on the other domains
    joint = udim.terms(x, y)
    assert udim.terms(x, y, domains=["A"] * 10) == joint
    parts = [udim.terms(x[rows], y[rows]) for rows in (slice(0, 10, 2), slice(1, 10, 2))]
    expected = {name: (parts[0][name] + parts[1][name]) / 2 for name in joint}
    numbers = torch.tensor([7, 3] * 5)
    for domains in (["A", "B"] * 5, numbers, numbers[:, None], list(numbers)):
        torch.testing.assert_close(udim.terms(x, y, domains=domains), expected)
    assert not torch.isclose(expected["variance_gap"], joint["variance_gap"])


def test_a_resumed_run_equals_an_uninterrupted_run(batches: Batches) -> None:
    options = {"direction": "random", "warmup_steps": 2}

    def make(params: Any, _: Any, net: nn.Module) -> Plain:
        return Plain(params, partial(torch.optim.SGD, lr=0.1), net=net)  # without state

    net, resumed_net = net_of(), net_of()
    udim, resumed = udim_of(net, **options), udim_of(resumed_net, **options)
    train(net, batches, make=make, udim=udim)
    train(resumed_net, batches[:3], make=make, udim=resumed)
    state, resumed = resumed.state_dict(), udim_of(resumed_net, **options)
    resumed.load_state_dict(state)
    assert_equal(train(resumed_net, batches[3:], make=make, udim=resumed), list(net.parameters()))
    assert udim.steps == resumed.steps == 6


def test_a_scaler_s_factor_cancels(batches: Batches) -> None:
    found = []
    for scale in (1.0, 1024.0):
        net = net_of()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        found.append(train(net, batches, udim=udim_of(net, lambda1=10.0), scaler=scaler))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("second_order", [True, "finite_difference"])
@pytest.mark.parametrize("axes", [2, 3])
def test_under_autocast_a_style_changes_an_image_as_in_float32(axes: int, second_order: Any) -> None:
    torch.manual_seed(0)
    image, label = torch.randn(2, 1, *(8,) * axes), torch.randint(3, (2, 1, *(8,) * axes))
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[axes]
    net = nn.Sequential(conv(1, 6, 3, padding=1), nn.Tanh(), conv(6, 3, 1))
    udim = UDIM(
        net, lambda out, y: F.cross_entropy(out, y[:, 0]), StylePerturbation(0.4), rho=0.2, second_order=second_order
    )
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(udim.perturbed(image, label, step=0))
            assert udim.terms(image, label, step=0)["gradient_norm"] > 0
    assert found[1].dtype == torch.float32
    assert (found[1] - found[0]).norm() < 0.02 * (found[0] - image).norm()


def test_a_value_that_is_not_finite_skips_the_step(batches: Batches) -> None:
    x, y = batches[0]
    net, other = net_of(), net_of()
    optimizer = Plain(net.parameters(), SGD, net=net)
    optimizer.step(lambda: F.cross_entropy(net(x), y), at_weights=udim_of(net).at_weights(x * torch.nan, y))
    assert optimizer.skipped_steps == 1
    assert_equal(list(net.parameters()), list(other.parameters()))


@pytest.fixture
def process_group(tmp_path: Path) -> Any:
    """A group of a single process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("wrap", [DistributedDataParallel, partial(torch.compile, backend="eager")])
def test_a_wrapped_or_compiled_network_takes_the_same_steps(batches: Batches, wrap: Any) -> None:
    net, other = net_of(norm=True), net_of(norm=True)
    wrapped = wrap(net)
    found = train(wrapped, batches[:2], udim=udim_of(wrapped, lambda1=10.0))
    torch.testing.assert_close(found, train(other, batches[:2], udim=udim_of(other, lambda1=10.0)))


def test_inputs_and_domains_that_do_not_fit_are_refused(batches: Batches, refused: Any) -> None:
    x, y = batches[0]
    with refused("domains", got="3 domains"):
        udim_of(net_of()).terms(x, y, domains=["A", "B", "C"])
    with refused("image", got="no sample"):
        udim_of(net_of(), perturbation=InputPerturbation(rms=0.3)).terms(x[:0], y[:0])
    with refused("image", got=torch.int64):
        udim_of(net_of()).perturbed(x.long(), y)


def test_numbers_are_means_over_finite_steps_since_the_last_call(batches: Batches) -> None:
    net = net_of()
    udim = udim_of(net, lambda1=3.0, lambda2=2.0)
    assert udim.numbers() == {}
    expected = [udim.terms(x, y, step=step) for step, (x, y) in enumerate(batches[:2])]
    for x, y in (*batches[:2], (batches[2][0] * float("nan"), batches[2][1])):
        udim.at_weights(x, y)()
    resumed = udim_of(net, lambda1=3.0, lambda2=2.0)
    resumed.load_state_dict(udim.state_dict())
    found = udim.numbers()["udim"]
    gap, norm = (sum(float(each[name].detach()) for each in expected) / 2 for name in ("variance_gap", "gradient_norm"))
    assert found == pytest.approx({"variance_gap": gap, "gradient_norm": norm, "penalty": 3 * gap + 2 * norm})
    assert resumed.numbers()["udim"] == found
    assert udim.numbers() == {}


class Checkpointed(nn.Sequential):
    """A block with activation checkpointing."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


@pytest.mark.parametrize("second_order", [True, "finite_difference"])
def test_steps_with_and_without_activation_checkpointing_are_equal(batches: Batches, second_order: Any) -> None:
    # Torch also changes running statistics when it recomputes a layer, also in the optimizer's own passes.
    nets = []
    for block, weight in ((nn.Sequential, 1.0), (Checkpointed, 1.0), (Checkpointed, 0.0)):
        torch.manual_seed(1)
        body = block(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh())
        nets.append(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), body, nn.Linear(8, 4)))
        options = {"rho": 1.0, "lambda1": weight, "lambda2": weight, "second_order": second_order}
        train(nets[-1], batches[:1], udim=udim_of(nets[-1], **options))
    torch.testing.assert_close(list(nets[0].parameters()), list(nets[1].parameters()))
    assert_equal(list(nets[1].buffers()), list(nets[2].buffers()))
