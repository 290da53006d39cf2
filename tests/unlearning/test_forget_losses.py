"""Forget losses: formulas, limits, and the weight of each sample."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.unlearning import NPO, ForgetLoss, GradientDifference, collect_losses


def gradient(loss: Any, net: nn.Module, batch: Any) -> Tensor:
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss(net, batch), [*net.parameters()])])


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    """A reference, another network, and a batch of four."""
    return (
        nn.Linear(3, 4).double(),
        nn.Linear(3, 4).double(),
        (torch.randn(4, 3).double() * 3, torch.tensor([0, 1, 2, 3])),
    )


def test_npo_is_its_formula(pair: Any) -> None:
    reference, net, (image, label) = pair
    now, past = (F.cross_entropy(each(image), label, reduction="none") for each in (net, reference))
    expected = -2 / 0.7 * torch.log(torch.sigmoid(0.7 * (now - past))).mean()
    torch.testing.assert_close(NPO(reference, beta=0.7)(net, (image, label)), expected)


def test_npo_with_a_small_beta_has_the_gradient_of_ascent(pair: Any) -> None:
    reference, net, batch = pair
    ascent = gradient(GradientDifference(), net, batch)
    for beta in (1e-3, 1e-5):
        torch.testing.assert_close(
            gradient(NPO(reference, beta=beta), net, batch), ascent, rtol=10 * beta, atol=10 * beta
        )


def test_npo_has_the_gradient_of_ascent_at_the_reference_and_none_once_forgotten(pair: Any) -> None:
    _, net, batch = pair
    torch.testing.assert_close(gradient(NPO(net, beta=3.0), net, batch), gradient(GradientDifference(), net, batch))
    forgotten = NPO(lambda batch: torch.full((4,), -1e3), beta=1.0)
    assert gradient(forgotten, net, batch).abs().max() == 0


def test_npo_weighs_samples_and_not_batches(pair: Any) -> None:
    reference, net, (image, label) = pair
    npo = NPO(reference, beta=2.0)
    singles = [gradient(npo, net, (image[i : i + 1], label[i : i + 1])) for i in range(4)]
    whole = gradient(npo, net, (image, label))
    torch.testing.assert_close(whole, torch.stack(singles).mean(0))
    # The released code weighs the mean loss of the batch, which is another gradient.
    gap = F.cross_entropy(net(image), label) - F.cross_entropy(reference(image), label)
    of_mean = torch.autograd.grad(-2 / 2.0 * F.logsigmoid(2.0 * gap), [*net.parameters()])
    assert not torch.allclose(whole, torch.cat([each.flatten() for each in of_mean]), rtol=1e-2)


def test_the_reference_is_a_frozen_copy(pair: Any) -> None:
    _, net, batch = pair
    npo = NPO(net, beta=0.5)
    before = npo(net, batch).item()
    with torch.no_grad():
        for param in net.parameters():
            param.add_(torch.randn_like(param))
    assert npo(net, batch).item() != before
    assert net.training
    assert all(param.requires_grad for param in net.parameters())


def test_the_reference_runs_once_per_batch_in_evaluation_mode() -> None:
    calls = []
    net = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))
    npo = NPO(net, beta=0.5)
    net[0].register_forward_hook(lambda *_: calls.append(1))
    counted = NPO(net, beta=0.5)  # the copy has the hook, too
    loss = counted.bind((torch.ones(1, 2), torch.tensor([0])))
    assert len(calls) == 1
    others = [loss(nn.Linear(2, 3)) for _ in range(3)]
    assert len(calls) == 1
    assert all(each.requires_grad for each in others)
    values = {npo.bind((torch.ones(1, 2), torch.tensor([0])))(net[0]).item() for _ in range(5)}
    assert len(values) == 1  # no dropout in the reference


def test_stored_losses_of_the_reference_give_the_same_loss(pair: Any, refused: Callable) -> None:
    reference, net, (image, label) = pair
    batch = {"image": image, "label": label, "reference_loss": collect_losses(reference, [(image, label)])}
    stored = NPO(lambda batch: batch["reference_loss"], beta=0.5)
    torch.testing.assert_close(stored(net, batch), NPO(reference, beta=0.5)(net, batch))
    with refused("reference", "losses of shape (3,)"):
        stored(net, batch | {"reference_loss": torch.zeros(3)})


def test_gradient_difference_is_the_negative_mean_over_samples() -> None:
    logits, label = torch.randn(2, 5, 6), torch.randint(0, 5, (2, 6))
    label[0, 1:] = -100
    expected = -(F.cross_entropy(logits[:1], label[:1]) + F.cross_entropy(logits[1:], label[1:])) / 2
    torch.testing.assert_close(GradientDifference()(nn.Identity(), (logits, label)), expected)


@pytest.mark.parametrize("make", [GradientDifference, lambda **options: NPO(lambda batch: torch.zeros(2), **options)])
def test_a_loss_and_a_layout_of_ones_own_are_used(make: Callable[..., ForgetLoss]) -> None:
    batch = {"tokens": torch.randn(2, 6, 5), "mask": None}
    predict = lambda net, batch: (net(batch["tokens"])[:, :-1].mT, torch.zeros(2, 5, dtype=torch.long))  # noqa: E731
    own = make(predict=predict)(nn.Identity(), batch)
    assert own == make(predict=predict, per_sample_loss=lambda z, y: F.cross_entropy(z, y, reduction="none").mean(1))(
        nn.Identity(), batch
    )


@pytest.mark.parametrize("beta", [0, -1.0, float("nan"), "a"])
def test_a_beta_that_is_not_positive_is_refused(beta: Any, refused: Callable) -> None:
    with refused("beta"):
        NPO(nn.Linear(1, 1), beta=beta)
