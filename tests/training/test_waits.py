"""The host waits for the device where the optimizer says so, and once an epoch."""

from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from uumamba.losses import CrossEntropyLoss, DeepSupervisionLoss, SoftDiceLoss, UncertaintyWeightedLoss
from uumamba.nets import UMambaBot
from uumamba.optim import SAM, Plain
from uumamba.training import SupervisedObjective, Trainer

READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default}


class CountReads(TorchDispatchMode):
    """Counts the numbers that are read off tensors, for each of which a GPU would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += function in READS
        return function(*args, **(kwargs or {}))


def reads(make: Any, *, steps: int) -> int:
    torch.manual_seed(0)
    net = UMambaBot(2, 1, 3, features=(4, 8), strides=(1, 2))
    loss = UncertaintyWeightedLoss({"region": SoftDiceLoss(), "distribution": CrossEntropyLoss()})
    objective = SupervisedObjective(DeepSupervisionLoss(loss))
    groups = [{"params": [*net.parameters()]}, {"params": [*objective.parameters()], "perturb": False}]
    image = torch.randn(1, 1, 8, 8)
    batch = {"image": image, "label": (image > 0).long()}
    optimizer = make(groups, partial(torch.optim.SGD, lr=0.1), max_grad_norm=12.0)
    trainer = Trainer(net, objective, optimizer, epochs=1, batches=lambda epoch: [batch] * steps, log=[].append)
    with CountReads() as counted:
        trainer.fit()
    return counted.reads


@pytest.mark.parametrize(("make", "a_step"), [(Plain, 1), (partial(SAM, rho=0.05), 2)], ids=["Plain", "SAM"])
def test_a_step_reads_the_gradient_s_norm_and_a_climb_its_length_and_nothing_else(make: Any, a_step: int) -> None:
    assert reads(make, steps=5) - reads(make, steps=2) == 3 * a_step
