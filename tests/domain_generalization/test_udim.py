"""UDIM: steps that it does not change, the penalty that it adds, and the images of the unknown domain."""

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
    """The same small classifier each time."""
    torch.manual_seed(3)
    middle = [nn.BatchNorm1d(8)] if norm else []
    layers = [nn.Linear(6, 8), *middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4)]
    return nn.Sequential(*layers).to(dtype)


@pytest.fixture
def batches() -> Batches:
    generator = torch.Generator().manual_seed(5)
    return [(torch.randn(10, 6, generator=generator), torch.randint(4, (10,), generator=generator)) for _ in range(6)]


def trained(
    net: nn.Module, batches: Batches, *, make: Any = SAM, udim: UDIM | None = None, **options: Any
) -> list[Tensor]:
    """The weights and buffers after a step for each batch."""
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


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("make", [Plain, SAM, ASAM, SAGM])
@pytest.mark.parametrize("options", [{"lambda1": 0.0, "lambda2": 0.0}, {"warmup_steps": 6}], ids=str)
def test_without_weights_or_in_the_warm_up_the_step_is_the_optimizer_s_bit_for_bit(
    batches: Batches, make: Any, options: Any
) -> None:
    net, other = (net_of(norm=True, dropout=0.3) for _ in range(2))
    assert equal(trained(net, batches, make=make, udim=udim_of(net, **options)), trained(other, batches, make=make))


@pytest.mark.parametrize("make", [Plain, SAM, SAGM])
def test_a_step_adds_the_gradient_of_both_terms_at_the_weights_before_the_ascent(batches: Batches, make: Any) -> None:
    x, y = batches[0][0].double(), batches[0][1]
    net, other = (net_of(dtype=torch.float64) for _ in range(2))
    udim = udim_of(net, lambda1=70.0, lambda2=0.9)
    terms = udim_of(other).terms(x, y)
    added = torch.autograd.grad(70 * terms["variance_gap"] + 0.9 * terms["gradient_norm"], list(other.parameters()))
    found, without = trained(net, [(x, y)], make=make, udim=udim), trained(other, [(x, y)], make=make)
    for with_it, own, slope in zip(found, without, added, strict=True):
        torch.testing.assert_close(with_it, own - 0.1 * slope)  # 0.1 is the learning rate
        assert slope.abs().max() > 1e-3


@pytest.mark.parametrize("direction", ["ascent", "random"])
@pytest.mark.parametrize("second_order", [True, False, "finite_difference"])
def test_every_sample_moves_by_exactly_the_radius(batches: Batches, direction: Any, second_order: Any) -> None:
    x, y = batches[0]
    x = x * torch.logspace(-2, 2, 10)[:, None]  # gradients of very different sizes
    udim = udim_of(net_of(), direction=direction, second_order=second_order)
    moved = udim.perturbed(x.double().float(), y) - x
    torch.testing.assert_close(moved.norm(dim=1), torch.full((10,), 0.3), rtol=0, atol=2e-5)


def test_each_sample_s_direction_is_its_own_and_not_normalised_across_the_batch(batches: Batches) -> None:
    x, y = batches[0]
    udim = udim_of(net_of(), rho=0.0)
    alone = torch.cat([udim.perturbed(x[i : i + 1], y[i : i + 1]) for i in range(10)])
    torch.testing.assert_close(udim.perturbed(x, y), alone)


def test_a_sample_without_an_input_gradient_does_not_move(batches: Batches) -> None:
    x, y = batches[0]
    y = y.clone()
    y[3] = -100  # ignored by the cross entropy
    moved = udim_of(net_of(), rho=0.0, ignore_label=-100).perturbed(x, y) - x
    assert not moved[3].any()
    assert moved.any(1).sum() == 9


def test_ascent_raises_the_loss_more_than_a_random_direction(batches: Batches) -> None:
    net, (x, y) = net_of(), batches[0]
    ascent, random = (
        F.cross_entropy(net(udim_of(net, direction=way).perturbed(x, y)), y) for way in ("ascent", "random")
    )
    assert ascent > random
    assert ascent > F.cross_entropy(net(x), y) + 0.05


def test_a_random_direction_is_drawn_by_seed_and_step_alone(batches: Batches) -> None:
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
def test_running_statistics_see_each_batch_once(batches: Batches, engine_knows_net: bool, second_order: Any) -> None:
    x, y = batches[0]
    net, once = net_of(norm=True), net_of(norm=True)
    once(x)
    optimizer = Plain(net.parameters(), SGD, net=net if engine_knows_net else None)
    added = udim_of(net, second_order=second_order).at_weights(x, y)
    optimizer.step(lambda: F.cross_entropy(net(x), y), at_weights=added)
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), once.buffers(), strict=True))
    assert net[1].num_batches_tracked == 1


def test_training_with_it_lowers_the_gap_below_that_of_sam_and_of_the_random_control(batches: Batches) -> None:
    found = {}
    for name, options in {
        "sam": {"lambda1": 0.0, "lambda2": 0.0},
        "random": {"direction": "random"},
        "udim": {},
    }.items():
        net = net_of()
        trained(net, batches * 5, udim=udim_of(net, **({"lambda1": 30.0, "lambda2": 30.0} | options)))
        gaps = [udim_of(net).terms(*batch)["variance_gap"] for batch in batches]
        found[name] = float(torch.stack(gaps).detach().mean())
    assert found["udim"] < 0.2 * found["sam"]
    assert found["udim"] < 0.5 * found["random"]


def test_one_domain_is_the_whole_batch_and_several_are_averaged(batches: Batches) -> None:
    x, y = batches[0]
    udim = udim_of(net_of(), rho=0.0)  # with rho, samples of another domain bend a sample's own ascent
    whole = udim.terms(x, y)
    assert udim.terms(x, y, domains=["A"] * 10) == whole
    parts = [udim.terms(x[rows], y[rows]) for rows in (slice(0, 10, 2), slice(1, 10, 2))]
    numbers = torch.tensor([7, 3] * 5)
    for domains in (["A", "B"] * 5, numbers, numbers[:, None], list(numbers)):
        found = udim.terms(x, y, domains=domains)
        for name, value in found.items():
            torch.testing.assert_close(value, (parts[0][name] + parts[1][name]) / 2)
    assert not torch.isclose(found["variance_gap"], whole["variance_gap"])


def test_a_run_that_is_taken_up_goes_on_as_if_it_had_never_stopped(batches: Batches) -> None:
    options = {"direction": "random", "warmup_steps": 2}
    make = partial(SAM, base=partial(torch.optim.SGD, lr=0.1), rho=0.0)  # an optimizer without a state of its own
    nets, udims = [net_of(), net_of()], []
    for net in nets:
        udims.append(udim_of(net, **options))
        for index, (x, y) in enumerate(batches):
            if index == 3 and net is nets[1]:
                kept, udims[1] = udims[1].state_dict(), udim_of(net, **options)
                udims[1].load_state_dict(kept)
            make(net.parameters()).step(partial(loss_of, net, x, y), at_weights=udims[-1].at_weights(x, y))
    assert equal(list(nets[0].parameters()), list(nets[1].parameters()))
    assert [udim.steps for udim in udims] == [6, 6]


def test_a_scaler_s_factor_cancels(batches: Batches) -> None:
    found = []
    for scale in (1.0, 1024.0):
        net = net_of()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        found.append(trained(net, batches, udim=udim_of(net, lambda1=10.0), scaler=scaler))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("second_order", [True, "finite_difference"])
@pytest.mark.parametrize("axes", [2, 3])
def test_under_autocast_a_style_moves_an_image_as_in_float32(axes: int, second_order: Any) -> None:
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
    x, y = batches[0][0].clone(), batches[0][1]
    net, other = net_of(), net_of()
    optimizer = Plain(net.parameters(), SGD, net=net)
    bad = x.clone()
    bad[0, 0] = torch.nan
    optimizer.step(lambda: F.cross_entropy(net(x), y), at_weights=udim_of(net).at_weights(bad, y))
    assert optimizer.skipped_steps == 1
    assert equal(list(net.parameters()), list(other.parameters()))


@pytest.fixture
def process_group(tmp_path: Path) -> Any:
    """A group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("wrap", [DistributedDataParallel, partial(torch.compile, backend="eager")])
def test_a_wrapped_or_compiled_network_takes_the_same_steps(batches: Batches, wrap: Any) -> None:
    net, other = net_of(norm=True), net_of(norm=True)
    wrapped = wrap(net)
    found = trained(wrapped, batches[:2], udim=udim_of(wrapped, lambda1=10.0))
    for one, expected in zip(found, trained(other, batches[:2], udim=udim_of(other, lambda1=10.0)), strict=True):
        torch.testing.assert_close(one, expected)


def test_inputs_and_domains_that_do_not_fit_are_refused(batches: Batches, refused: Any) -> None:
    x, y = batches[0]
    with refused("domains", got="3 domains"):
        udim_of(net_of()).terms(x, y, domains=["A", "B", "C"])
    with refused("image", got="no sample"):
        udim_of(net_of(), perturbation=InputPerturbation(rms=0.3)).terms(x[:0], y[:0])
    with refused("image", got=torch.int64):
        udim_of(net_of()).perturbed(x.long(), y)


def test_its_numbers_are_means_since_the_last_call_of_steps_that_were_finite(batches: Batches) -> None:
    net = net_of()
    udim = udim_of(net, lambda1=3.0, lambda2=2.0)
    assert udim.numbers() == {}
    expected = [udim.terms(x, y, step=step) for step, (x, y) in enumerate(batches[:2])]
    for x, y in (*batches[:2], (batches[2][0] * float("nan"), batches[2][1])):
        udim.at_weights(x, y)()
    resumed = udim_of(net, lambda1=3.0, lambda2=2.0)
    resumed.load_state_dict(udim.state_dict())
    told = udim.numbers()["udim"]
    gap, norm = (sum(float(each[name].detach()) for each in expected) / 2 for name in ("variance_gap", "gradient_norm"))
    assert told == pytest.approx({"variance_gap": gap, "gradient_norm": norm, "penalty": 3 * gap + 2 * norm})
    assert resumed.numbers()["udim"] == told
    assert udim.numbers() == {}


class Recomputed(nn.Module):
    """A network whose block is computed again in the backward pass, or not."""

    def __init__(self, *, again: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 4)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh())
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        return self.head(checkpoint(self.block, x, use_reentrant=False) if self.again else self.block(x))


@pytest.mark.parametrize("second_order", [True, "finite_difference"])
def test_steps_with_activation_checkpointing_are_those_without(batches: Batches, second_order: Any) -> None:
    """Torch moves running statistics again when it computes a layer again, in the optimizer's own passes too."""
    nets = [Recomputed(again=again) for again in (False, True, True)]
    for net, weight in zip(nets, (1.0, 1.0, 0.0), strict=True):
        options = {"rho": 1.0, "lambda1": weight, "lambda2": weight, "second_order": second_order}
        trained(net, batches[:1], udim=udim_of(net, **options))
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert equal(list(nets[1].buffers()), list(nets[2].buffers()))
