"""Wrong calls that other libraries accept in silence, or answer with an error of Python far from the call."""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import TensorDataset

from uumamba.domain_generalization import UDIM, USEFUL, InputPerturbation, probe_classification
from uumamba.federated import Client, DFedSAM, Simulation, ring
from uumamba.losses import CrossEntropyLoss, UncertaintyWeightedLoss
from uumamba.optim import MESA, SAF, SAGM, SAM, OutputBiasForgetting, Plain
from uumamba.quantization import GAQAT, calibrate, quantize_, scale_groups
from uumamba.runtime.errors import UsageError, quote
from uumamba.unlearning import NPO, relearning_attack, unlearn

torch.manual_seed(0)
NET, X, Y = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
BASE = partial(SGD, lr=0.1)
BATCHES = [(X, Y)]


def make_sam(**options: Any) -> SAM:
    return SAM(NET.parameters(), BASE, **options)


def loss() -> Tensor:
    return F.cross_entropy(NET(X), Y)


def forget(**options: Any) -> None:
    known = {"forget_loss": NPO(NET), "optimizer": partial(SAM, base=BASE), "steps": 1}
    unlearn(nn.Linear(3, 2), options.pop("forget", BATCHES), BATCHES, **known | options)


def simulate(rounds: Any) -> None:
    clients = [Client.from_tensors(f"site {index}", X, Y) for index in range(4)]
    method = DFedSAM(lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]), partial(SAM, base=BASE), ring(4))
    list(Simulation(nn.Linear(3, 2), clients, method).run(rounds))


def attach_twice() -> None:
    net = quantize_(nn.Sequential(nn.Linear(2, 2)), weight_bits=2, act_bits=None)
    optimizer = SAGM(scale_groups(net), BASE)
    GAQAT(optimizer, net)
    GAQAT(optimizer, net)


def calibrate_on_tensor() -> None:
    calibrate(quantize_(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))), X)


def attack() -> None:
    relearning_attack(NET, BATCHES, lambda net: 0.0, optimizer=SGD(NET.parameters(), lr=1.0), budgets=[1], rates=[1.0])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: make_sam().step([loss()]), "closure: got a list with an object of class Tensor, expected functions"),
        (lambda: make_sam().step(loss, at_weights=loss()), "at_weights: got tensor"),
        (lambda: make_sam().step(loss, at_weights=[0.3]), "at_weights: got a list with an object of class float"),
        (lambda: make_sam().step(loss, ascent=OutputBiasForgetting), "ascent: got the class OutputBiasForgetting"),
        (lambda: make_sam(net=nn.Linear(3, 2)), "net: got a network without any of the optimizer's parameters"),
        (lambda: make_sam(scaler=True), "scaler: got True, expected a GradScaler or None"),
        (lambda: SAM([{"params": NET.parameters(), "Rho": 0.1}], BASE), "params: Rho: got 0.1, .* Fix: write rho"),
        (lambda: make_sam().add_param_group({"params": [X], "momentun": 0.1}), "params: momentun: .* write momentum"),
        (lambda: CrossEntropyLoss()(X, Y), r"logits: got \(4, 3\), .* add a spatial axis: loss\(logits\[..., None\]"),
        (
            lambda: UncertaintyWeightedLoss({"a": lambda logits, label: -logits.mean()})(torch.ones(1, 2, 3), Y),
            "losses: a: got a value of -1, expected a loss of at least 0. Fix: write 1 - Dice",
        ),
        (
            lambda: UDIM(F.cross_entropy, NET, InputPerturbation(0.3)),
            "net: got the function cross_entropy, .* a Module",
        ),
        (lambda: UDIM(NET, F.cross_entropy, 0.3), "perturbation: got 0.3, expected a Perturbation"),
        (
            lambda: USEFUL(lambda: NET, probe_classification).find(),
            r"start: got .* Linear, expected .*\(net, train_epoch",
        ),
        (attach_twice, "optimizer: got an optimizer with a GAQAT"),
        (calibrate_on_tensor, "batches: got Tensor of shape .*, expected an iterable of batches"),
        (lambda: simulate(2.0), "rounds: got 2.0, expected a whole number"),
        (lambda: forget(forget=TensorDataset(X, Y)), "forget: got .* TensorDataset, expected an iterable of batches"),
        (lambda: forget(forget=X), "forget: got Tensor of shape .*, expected an iterable of batches"),
        (lambda: forget(forget_loss=NPO), "forget_loss: got the class NPO, expected .* but no class"),
        (lambda: forget(optimizer=make_sam()), "optimizer: got an object of class SAM, expected a function"),
        (attack, "optimizer: got an object of class SGD, expected a function"),
        (lambda: MESA(F.cross_entropy, NET)(NET, X), "batch: got Tensor of shape .* or a pair"),
        (lambda: SAF(F.cross_entropy, samples=4, classes=2)(NET, BATCHES[0]), "sample_id: got None, .* label, ids"),
    ],
)
def test_a_wrong_call_is_answered_where_it_is_made(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{said}"):
        call()


def test_mesa_and_saf_take_batches_of_a_data_loader_and_tell_of_forgotten_calls() -> None:
    mesa, saf = MESA(F.cross_entropy, NET), SAF(F.cross_entropy, samples=4, classes=2)
    named = {"image": X, "label": Y, "sample_id": torch.arange(4)}
    saf.begin_epoch(0)
    assert torch.equal(mesa(NET, (X, Y)), mesa(NET, named))
    assert torch.equal(saf(NET, (X, Y, torch.arange(4))), saf(NET, named))
    with pytest.warns(UserWarning, match=r"register_step_post_hook\(lambda \*_: objective.after_step\(net\)") as told:
        deque((mesa(NET, (X, Y)) for _ in range(400)), maxlen=0)
    assert [each.filename for each in told] == [__file__]
    with pytest.warns(UserWarning, match="epoch 0 has seen every sample 20 times") as told:
        deque((saf(NET, named) for _ in range(40)), maxlen=0)
    assert [each.filename for each in told] == [__file__]


def test_options_of_schedulers_and_layer_wise_rates_may_stand_in_groups() -> None:
    groups = [
        {"params": NET.parameters(), "initial_lr": 0.1, "lr_scale": 0.5, "weight_decay_scale": 2, "layer": "head"}
    ]
    assert Plain(groups, BASE).param_groups[0]["lr_scale"] == 0.5


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (torch.zeros(3, 4), "Tensor of shape (3, 4)"),
        (torch.zeros(2), "tensor([0., 0.])"),
        (nn.Sequential(nn.Linear(1, 1)), "an object of class Sequential"),
        (SAM, "the class SAM"),
        (F.cross_entropy, "the function cross_entropy"),
        (object(), "an object of class object"),
        ([0.5, None], "[0.5, None]"),
    ],
)
def test_objects_in_messages_are_named_in_a_few_words(value: object, shown: str) -> None:
    assert quote(value) == shown
