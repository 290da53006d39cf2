"""Unlearning of networks for segmentation and for language."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from uumamba.nets import UMambaBot
from uumamba.optim import SAM
from uumamba.unlearning import (
    NPO,
    CurvatureRegularization,
    GradientPenalty,
    MeanLoss,
    RandomizedSmoothing,
    Smoothing,
    collect_losses,
    mean_accuracy,
    unlearn,
)


def sam(params: Any) -> SAM:
    return SAM(params, partial(AdamW, lr=3e-3), rho=0.01)


@pytest.mark.parametrize(
    "smoothing",
    [
        None,
        RandomizedSmoothing(sigma=0.01),
        GradientPenalty(weight=0.01, second_order="finite_difference"),
        CurvatureRegularization(weight=0.01, second_order="finite_difference"),
    ],
)
def test_a_segmentation_network_under_deep_supervision_unlearns(smoothing: Smoothing | None) -> None:
    net = UMambaBot(2, 1, 3, features=(4, 8), strides=(1, 2), deep_supervision=True)
    batches = [{"image": torch.randn(2, 1, 16, 16), "label": torch.randint(0, 3, (2, 1, 16, 16))} for _ in range(2)]
    before = collect_losses(net, batches[:1]).mean()
    records = unlearn(
        net, batches[:1], batches[1:], forget_loss=NPO(net, beta=0.5), optimizer=sam, steps=4, smoothing=smoothing
    )
    assert not any(record.is_skipped for record in records)
    assert collect_losses(net, batches[:1]).mean() > before


def test_the_scan_kernel_without_a_second_derivative_is_named(refused: Callable) -> None:
    net = UMambaBot(2, 1, 3, features=(4, 8), strides=(1, 2))
    batch = [{"image": torch.randn(1, 1, 16, 16), "label": torch.randint(0, 3, (1, 1, 16, 16))}]
    options = {"forget_loss": NPO(net), "optimizer": sam, "steps": 1, "smoothing": GradientPenalty(weight=1.0)}
    with refused("second_order") as error:
        unlearn(net, batch, batch, **options)
    assert error.value.fix == 'set second_order="finite_difference"'


class TinyLanguageNet(nn.Module):
    """Logits ``(batch, tokens, vocabulary)`` of each token's successor, from the last two tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(12, 16), nn.Linear(32, 32), nn.Linear(32, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        embedded = self.embedding(tokens)
        before = torch.cat([torch.zeros_like(embedded[:, :1]), embedded[:, :-1]], 1)
        return self.head(torch.tanh(self.hidden(torch.cat([before, embedded], 2))))


def predict(net: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    label = batch["tokens"][:, 1:].masked_fill(batch["is_padding"][:, 1:], -100)
    return net(batch["tokens"])[:, :-1].mT, label


def test_a_language_model_forgets_sequences_and_keeps_others() -> None:
    tokens = torch.randint(0, 12, (8, 10))
    is_padding = torch.zeros(8, 10, dtype=torch.bool)
    is_padding[::2, 6:] = True
    batches = [
        {"tokens": tokens[part], "is_padding": is_padding[part]} for part in (slice(0, 2), slice(2, 5), slice(5, 8))
    ]
    forget, retain = batches[:1], batches[1:]
    net, loss = TinyLanguageNet(), MeanLoss(predict=predict)
    optimizer = AdamW(net.parameters(), lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        sum(loss(net, batch) for batch in batches).backward()
        optimizer.step()
    accuracy = partial(mean_accuracy, predict=predict)
    trained = deepcopy(net)
    assert accuracy(net, forget) > 0.85
    before = accuracy(net, retain)
    unlearn(
        net,
        forget,
        retain,
        forget_loss=NPO(trained, beta=0.5, predict=predict),
        optimizer=sam,
        steps=60,
        smoothing=GradientPenalty(weight=0.01),
        predict=predict,
    )
    assert accuracy(net, forget) < 0.35
    assert accuracy(net, retain) > before - 0.1
