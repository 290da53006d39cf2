"""Optimizers that look at the network's answers, in the trainer."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uumamba.optim import SAM, TRAM, OutputBiasForgetting, SharpnessAware
from uumamba.runtime.seeds import generator_for
from uumamba.training import SupervisedObjective, Trainer

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.5)
MAKERS = {
    "previous": partial(TRAM, trust="previous"),
    "initial": partial(TRAM, trust="initial"),
    "noise": partial(TRAM, trust="noise"),
    "fisher": partial(TRAM, trust="fisher"),
    "SAM": SAM,
}


def patches(epoch: int) -> Iterator[dict[str, Tensor]]:
    """Images whose label is the sign of the pixel, under noise."""
    for index in range(6):
        image = torch.randn(2, 1, 6, 6, generator=generator_for("image", epoch, index))
        yield {"image": image, "label": (image > 0).long()}


class PixelLoss(nn.Module):
    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, label[:, 0])


def build(make: Callable[..., SharpnessAware], **options: Any) -> Trainer:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Dropout(0.1), nn.Tanh(), nn.Conv2d(4, 2, 1))
    objective = SupervisedObjective(PixelLoss(), outputs=True)
    optimizer = make(net.parameters(), SGD, net=net)
    return Trainer(net, objective, optimizer, batches=patches, progress=False, log=[].append, **options)


def test_an_objective_returns_logits_and_label_where_it_is_asked_to() -> None:
    net, batch = nn.Conv2d(1, 2, 1), next(patches(0))
    alone = SupervisedObjective(PixelLoss())(net, batch)
    loss, (logits, label) = SupervisedObjective(PixelLoss(), outputs=True)(net, batch)
    assert loss == alone
    assert torch.equal(logits, net(batch["image"]))
    assert label is batch["label"]


@pytest.mark.parametrize("ascent", [None, OutputBiasForgetting(class_mean=True)], ids=["loss", "forgetting"])
@pytest.mark.parametrize("name", MAKERS)
def test_it_trains(name: str, ascent: OutputBiasForgetting | None) -> None:
    trainer = build(MAKERS[name], epochs=5, ascent=ascent)
    trainer.fit()
    trainer.net.eval()
    batch = next(patches(99))
    assert (trainer.net(batch["image"]).argmax(1) == batch["label"][:, 0]).float().mean() > 0.9
    assert trainer.optimizer.skipped_steps == 0


def test_the_ascent_is_what_is_climbed() -> None:
    found = []
    for ascent in (None, OutputBiasForgetting(), OutputBiasForgetting(always=True)):
        trainer = build(partial(SAM, rho=0.5), epochs=1, ascent=ascent)
        trainer.fit()
        found.append(trainer.net[0].weight.detach())
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


@pytest.mark.parametrize("name", ["previous", "noise"])
def test_stopped_and_resumed_equals_never_stopped(name: str, tmp_path: Path) -> None:
    build(MAKERS[name], epochs=1, run_dir=tmp_path).fit()
    torch.manual_seed(123)
    resumed, whole = build(MAKERS[name], epochs=3, run_dir=tmp_path), build(MAKERS[name], epochs=3)
    whole.fit()
    resumed.fit(resume=True)
    for one, two in zip(whole.net.parameters(), resumed.net.parameters(), strict=True):
        assert torch.equal(one, two)


def test_an_objective_without_logits_is_refused(refused: Any) -> None:
    trainer = build(TRAM, epochs=1)
    trainer.objective.outputs = False
    with refused("closure", got="outputs of type NoneType beside the loss"):
        trainer.fit()
