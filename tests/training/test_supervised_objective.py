"""Supervised objective, also for optimizers that use the network's outputs."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from uumamba.optim import SAM, TRAM, OutputBiasForgetting
from uumamba.runtime.seeds import generator_for
from uumamba.training import SupervisedObjective, Trainer


def patches(epoch: int) -> Iterator[dict[str, Tensor]]:
    for index in range(6):
        image = torch.randn(2, 1, 6, 6, generator=generator_for("image", epoch, index))
        yield {"image": image, "label": (image > 0).long()}


class PixelLoss(nn.Module):
    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, label[:, 0])


def build(make: Any, *, outputs: bool = True, **options: Any) -> Trainer:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Dropout(0.1), nn.Tanh(), nn.Conv2d(4, 2, 1))
    optimizer = make(net.parameters(), partial(torch.optim.SGD, lr=0.1, momentum=0.5), net=net)
    objective = SupervisedObjective(PixelLoss(), outputs=outputs)
    return Trainer(net, objective, optimizer, batches=patches, log=[].append, **options)


def test_outputs_are_returned_on_request_and_a_plain_loss_has_no_weights() -> None:
    net, batch = nn.Conv2d(1, 2, 1), next(patches(0))
    alone = SupervisedObjective(PixelLoss())
    loss, (logits, label) = SupervisedObjective(PixelLoss(), outputs=True)(net, batch)
    assert loss == alone(net, batch)
    assert torch.equal(logits, net(batch["image"]))
    assert label is batch["label"]
    assert alone.loss_weights() == {}


def test_the_ascent_loss_determines_the_perturbation() -> None:
    found = []
    for ascent in (None, OutputBiasForgetting(), OutputBiasForgetting(always=True)):
        trainer = build(partial(SAM, rho=0.5), epochs=1, ascent=ascent)
        trainer.fit()
        found.append(trainer.net[0].weight.detach())
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_an_objective_without_logits_is_refused_by_an_optimizer_that_needs_them(refused: Any) -> None:
    with refused("closure", got="a loss and outputs of type NoneType"):
        build(TRAM, epochs=1, outputs=False).fit()
