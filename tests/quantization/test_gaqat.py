from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW

from uumamba.optim import GSAM, SAGM, SAM
from uumamba.quantization import GAQAT, Window, gradient_disorder, quantizer_scales, scale_groups

Batches = list[tuple[Tensor, Tensor]]
MakeNet = Callable[..., nn.Module]
RHO, ALPHA, RATE = 0.05, 0.001, 0.1
assert_equal = partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)


def sagm(net: nn.Module, **options: Any) -> SAGM:
    return SAGM(scale_groups(net), partial(SGD, lr=RATE, momentum=0.5), rho=RHO, alpha=ALPHA, **options)


def train(net: nn.Module, optimizer: SAGM, batches: Batches) -> None:
    for x, y in batches:
        optimizer.step(lambda x=x, y=y: F.mse_loss(net(x), y))


def weights_of(net: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in net.parameters()]


def both_gradients(net: nn.Module, x: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients at the original and at SAGM's perturbed weights, by the formula."""
    net = deepcopy(net)
    params = list(net.parameters())
    first = torch.autograd.grad(F.mse_loss(net(x), y), params)
    norm = torch.cat([gradient.flatten() for gradient in first]).norm()
    with torch.no_grad():
        for param, gradient in zip(params, first, strict=True):
            param.add_((RHO / norm - ALPHA) * gradient)
    return list(first), list(torch.autograd.grad(F.mse_loss(net(x), y), params))


@pytest.mark.parametrize("how", [{"threshold": 0.0}, {"mode": "never"}])
def test_a_threshold_of_zero_is_sagm_bit_for_bit(make_net: MakeNet, batches: Batches, how: dict[str, Any]) -> None:
    net, other = make_net(), make_net()
    optimizer, plain = sagm(net), sagm(other)
    GAQAT(optimizer, net, every=4, **how)
    train(net, optimizer, batches[:9])
    train(other, plain, batches[:9])
    assert_equal(weights_of(net), weights_of(other))


@pytest.mark.parametrize(("mode", "threshold"), [("task", 1.1), ("smooth", 1.1), ("always", 0.0), ("alternate", 0.0)])
def test_a_frozen_scale_descends_with_half_of_the_other_gradient(
    make_net: MakeNet, batches: Batches, mode: Any, threshold: float
) -> None:
    net = make_net(per_channel=True)
    optimizer = SAGM(scale_groups(net), partial(SGD, lr=RATE), rho=RHO, alpha=ALPHA)
    gaqat = GAQAT(optimizer, net, every=4, threshold=threshold, mode=mode)
    train(net, optimizer, batches[:4])
    assert gaqat.frozen_fraction == 1
    assert all(bool(frozen.all()) for frozen in gaqat.frozen.values())
    scales = {id(scale) for scale in quantizer_scales(net).values()}
    for x, y in batches[4:8]:
        first, second = both_gradients(net, x, y)
        before = weights_of(net)
        train(net, optimizer, [(x, y)])
        for param, old, g, g_p in zip(net.parameters(), before, first, second, strict=True):
            descent = (g if mode == "smooth" else g_p) if id(param) in scales else g + g_p
            torch.testing.assert_close(param.detach(), old - RATE * descent / 2, rtol=1e-4, atol=1e-7)
    assert gaqat.frozen_fraction == (0 if mode == "alternate" else 1)


@pytest.mark.parametrize("mode", ["task", "smooth", "always", "alternate"])
def test_in_the_first_window_only_always_freezes(make_net: MakeNet, batches: Batches, mode: Any) -> None:
    net = make_net()
    optimizer = SAGM(scale_groups(net), partial(SGD, lr=RATE), rho=RHO, alpha=ALPHA)
    gaqat = GAQAT(optimizer, net, every=4, threshold=1.1, mode=mode)
    assert gaqat.frozen_fraction == float(mode == "always")
    scales = {id(scale) for scale in quantizer_scales(net).values()}
    gradients, before = both_gradients(net, *batches[0]), weights_of(net)
    train(net, optimizer, batches[:1])
    for param, old, g, g_p in zip(net.parameters(), before, *gradients, strict=True):
        descent = g_p if mode == "always" and id(param) in scales else g + g_p
        torch.testing.assert_close(param.detach(), old - RATE * descent / 2, rtol=1e-4, atol=1e-7)


def test_the_disorder_of_each_scales_task_gradient_decides_on_freezing(make_net: MakeNet, batches: Batches) -> None:
    net, windows = make_net(weight_bits=2, act_bits=2, first_last_bits=None), list[Window]()
    optimizer = sagm(net)
    gaqat = GAQAT(optimizer, net, every=5, threshold=0.4, log=windows.append)
    names = {id(scale): name for name, scale in quantizer_scales(net).items()}
    gradients: dict[str, list[Tensor]] = {name: [] for name in names.values()}
    for x, y in batches[:10]:
        for param, gradient in zip(net.parameters(), both_gradients(net, x, y)[0], strict=True):
            if id(param) in names:
                gradients[names[id(param)]].append(gradient)
        train(net, optimizer, [(x, y)])
    assert [window.step for window in windows] == [5, 10]
    for index, window in enumerate(windows):
        expected = {name: gradient_disorder(torch.stack(each[5 * index :][:5])) for name, each in gradients.items()}
        assert window.disorder == expected
        frozen = [bool(value < 0.4) for value in expected.values()]
        assert window.frozen_fraction == pytest.approx(sum(frozen) / len(frozen))
    assert gaqat.disorder == windows[-1].disorder
    assert {name: bool(value) for name, value in gaqat.frozen.items()} == dict(zip(gradients, frozen, strict=True))
    assert len({window.frozen_fraction for window in windows} | {0.0, 1.0}) > 2  # some scales are frozen, some not


def test_a_step_that_is_skipped_or_raises_does_not_count(make_net: MakeNet, batches: Batches) -> None:
    net, other = make_net(), make_net()
    optimizer, plain = sagm(net), sagm(other)
    for model, its_optimizer in ((net, optimizer), (other, plain)):
        GAQAT(its_optimizer, model, every=4, threshold=0.5)
        train(model, its_optimizer, batches[:3])
    optimizer.step(lambda: net(batches[0][0]).sum() * float("nan"))
    closure = Mock(side_effect=[net(batches[0][0]).sum(), RuntimeError("out of batches")])
    with pytest.raises(RuntimeError, match="out of batches"):
        optimizer.step(closure)
    assert optimizer.skipped_steps == 1
    for model, its_optimizer in ((net, optimizer), (other, plain)):
        train(model, its_optimizer, batches[3:12])
    assert_equal(weights_of(net), weights_of(other))


def test_steps_without_perturbation_do_not_count(make_net: MakeNet, batches: Batches) -> None:
    net = make_net()
    optimizer = SAGM(scale_groups(net), partial(SGD, lr=RATE), rho=0.0)
    gaqat = GAQAT(optimizer, net, every=2, threshold=1.1)
    train(net, optimizer, batches[:4])
    assert gaqat.frozen_fraction == 0
    assert gaqat.disorder == {}


@pytest.mark.parametrize("stop", [3, 7, 8])
@pytest.mark.parametrize("base", [partial(SGD, lr=0.1, momentum=0.9), partial(AdamW, lr=0.01)])
def test_a_resumed_training_equals_an_uninterrupted_training(
    make_net: MakeNet, batches: Batches, base: Callable[..., Any], stop: int
) -> None:
    def build(*, calibrated: bool) -> tuple[nn.Module, SAGM, GAQAT]:
        net = make_net(weight_bits=2, act_bits=2, calibrated=calibrated)
        optimizer = SAGM(scale_groups(net), base)
        return net, optimizer, GAQAT(optimizer, net, every=4, threshold=0.6)

    net, optimizer, gaqat = build(calibrated=True)
    train(net, optimizer, batches[:stop])
    saved = deepcopy((net.state_dict(), optimizer.state_dict()))
    train(net, optimizer, batches[stop:])
    other, resumed, again = build(calibrated=False)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    train(other, resumed, batches[stop:])
    assert_equal(net.state_dict(), other.state_dict())
    assert again.disorder == gaqat.disorder
    assert again.frozen_fraction == gaqat.frozen_fraction


def test_micro_batches_count_as_one_step_and_steps_after_removal_do_not(make_net: MakeNet, batches: Batches) -> None:
    net = make_net()
    optimizer = sagm(net)
    gaqat = GAQAT(optimizer, net, every=4)
    optimizer.step([lambda x=x, y=y: F.mse_loss(net(x), y) for x, y in batches[:3]])
    gaqat.remove()
    train(net, optimizer, batches[:3])
    assert optimizer.numbers["gaqat_step"] == 1


@pytest.mark.parametrize("member", [SAM, GSAM, SGD])
def test_an_optimizer_with_one_gradient_is_refused(make_net: MakeNet, member: Any, refused: Any) -> None:
    net = make_net()
    base = {"lr": 0.1} if member is SGD else {"base": partial(SGD, lr=0.1)}
    with refused("optimizer", got=member.__name__):
        GAQAT(member(scale_groups(net), **base), net)


def test_networks_and_optimizers_that_do_not_fit_are_refused(make_net: MakeNet, refused: Any) -> None:
    net = make_net()
    with refused("net"):
        GAQAT(sagm(net), nn.Linear(2, 2))
    groups = scale_groups(net)
    groups[1]["perturb"] = False
    with refused("optimizer", got="no perturbation of 0.weight"):
        GAQAT(SAGM(groups, partial(SGD, lr=0.1)), net)


@pytest.mark.parametrize(("key", "value"), [("every", 1), ("threshold", -0.1), ("mode", "often")])
def test_options_out_of_range_are_refused(make_net: MakeNet, key: str, value: Any, refused: Any) -> None:
    net = make_net()
    with refused(key, got=value):
        GAQAT(sagm(net), net, **{key: value})


@contextmanager
def two_ranks() -> Iterator[None]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def test_ranks_that_would_freeze_different_scales_are_refused(make_net: MakeNet, refused: Any) -> None:
    net = make_net()
    with two_ranks():
        with refused("perturbation", got="rank"):
            GAQAT(sagm(net), net)
        GAQAT(sagm(net, perturbation="global"), net)


def test_a_deep_copy_of_network_optimizer_and_gaqat_trains_like_the_original(
    make_net: MakeNet, batches: Batches
) -> None:
    net = make_net()
    optimizer = sagm(net)
    gaqat = GAQAT(optimizer, net, every=4, threshold=1.1)
    train(net, optimizer, batches[:3])
    net_copy, optimizer_copy, gaqat_copy = deepcopy((net, optimizer, gaqat))
    train(net_copy, optimizer_copy, batches[3:9])
    assert (gaqat.frozen_fraction, gaqat_copy.frozen_fraction) == (0, 1)
    train(net, optimizer, batches[3:9])
    assert_equal(gaqat.disorder, gaqat_copy.disorder)
    assert_equal(weights_of(net), weights_of(net_copy))
