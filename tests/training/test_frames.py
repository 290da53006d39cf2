"""Frames of this package between ``fit`` and the network, which a reader of a traceback goes through."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import uumamba
from tests.training.flat_trainer import make_trainer
from uumamba.domain_generalization import UDIM, InputPerturbation
from uumamba.losses import CrossEntropyLoss
from uumamba.optim import SAM, OutputBiasForgetting
from uumamba.training import SupervisedObjective

OURS = str(Path(uumamba.__file__).parent)
MOST = 11


class Watched(nn.Module):
    """Network that notes the package's frames above each pass, outermost first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, 2, 1)
        self.passes: list[list[str]] = []

    def forward(self, image: Tensor) -> Tensor:
        self.passes.append([*own_frames()][::-1])
        found: Tensor = self.head(image)
        return found


def own_frames() -> Iterator[str]:
    """Yield the package's frames up to ``Trainer.fit``, innermost first."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith(OURS):
            yield f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"
        if frame.f_code.co_name == "fit":
            return
        frame = frame.f_back  # type: ignore[assignment]


def passes_of_a_step(second_order: Any, **options: Any) -> list[list[str]]:
    net = Watched()
    image = torch.randn(3, 1, 4, 4)
    batch = {"image": image, "label": (image > 0).long()}
    udim = None
    if second_order is not None:
        udim = UDIM(net, CrossEntropyLoss(), InputPerturbation(0.1), second_order=second_order)
    objective = SupervisedObjective(CrossEntropyLoss(), outputs=True)
    make_trainer(
        net,
        objective,
        SAM(net.parameters(), partial(torch.optim.SGD, lr=0.1), net=net),
        batches=lambda epoch: [batch],
        epochs=1,
        ascent=OutputBiasForgetting(),
        method=udim,
        log=[].append,
        **options,
    ).fit()
    return net.passes


@pytest.mark.parametrize("samples_at_once", [None, 2], ids=["whole batch", "micro-batches"])
@pytest.mark.parametrize("second_order", [None, True, "finite_difference"], ids=["alone", "UDIM", "UDIM, differences"])
def test_every_pass_of_a_step_is_at_most_eleven_frames_below_fit(
    second_order: Any, samples_at_once: int | None
) -> None:
    passes = passes_of_a_step(second_order, samples_at_once=samples_at_once)
    objectives = [found for found in passes if found[-1] == "supervised_objective.forward"]
    penalties = [found for found in passes if "udim._penalty" in found]
    per_batch = 1 if samples_at_once is None else 2
    assert len(objectives) == 2 * per_batch, "two passes per micro-batch"
    assert len(penalties) == {None: 0, True: 2, "finite_difference": 4}[second_order] * per_batch
    for found in passes:
        assert found[0] == "trainer.fit"
        assert len(found) <= MOST, found
    assert max(len(found) for found in objectives) < MOST
