"""SAF: loss plus divergence from a sample's outputs of earlier epochs."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from uumamba.losses import CrossEntropyLoss, SoftDiceLoss, UncertaintyWeightedLoss
from uumamba.optim import SAF, SAM, Plain
from uumamba.optim.past import PastLogits

SAMPLES, CLASSES, EPOCHS = 11, 3, 8
Batch = dict[str, Tensor]


def fresh_net(seed: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()


def batch_of(ids: list[int]) -> Batch:
    generator = torch.Generator().manual_seed(8)
    image = torch.randn(SAMPLES, 4, generator=generator, dtype=torch.float64)
    label = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    return {"image": image[ids], "label": label[ids], "sample_id": torch.tensor(ids)}


def shuffled(epoch: int) -> list[list[int]]:
    """Shuffle an epoch into batches; two samples are left out."""
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch)).tolist()
    return [order[0:3], order[3:6], order[6:9]]


class ByHand:
    """Loss from its definition, with lag 2, weight 0.3, start 3."""

    def __init__(self) -> None:
        self.past: dict[tuple[int, int], Tensor] = {}
        self.found = 0

    def loss(self, epoch: int, ids: list[int], logits: Tensor, label: Tensor) -> Tensor:
        total = F.cross_entropy(logits, label)
        for sample, row in zip(ids, logits, strict=True):
            self.past.setdefault((sample, epoch), row.detach().half().double())
            then = self.past.get((sample, epoch - 2))
            if then is not None and epoch >= 3:
                p, q = (then / 5.0).softmax(0), (row / 5.0).softmax(0)
                total = total + 0.3 * 25 * (p * (p / q).log()).sum() / len(ids)
                self.found += 1
        return total


def saf(**options: Any) -> SAF:
    return SAF(nn.CrossEntropyLoss(), **{"samples": SAMPLES, "classes": CLASSES, "lag": 2, "start_epoch": 3} | options)


def train(net: nn.Module, objective: SAF, epochs: range = range(EPOCHS), optimizer: Any = None) -> list[float]:
    optimizer = optimizer or Plain(net.parameters(), partial(SGD, lr=0.5))
    losses = []
    for epoch in epochs:
        objective.begin_epoch(epoch)
        losses += [optimizer.step(partial(objective, net, batch_of(ids))).item() for ids in shuffled(epoch)]
    return losses


def rows_of(objective: SAF) -> tuple[Tensor, Tensor]:
    """Marks (samples, epochs), 0 where unknown, and logits."""
    state = objective.get_extra_state()
    return state["marks"].clone(), state["logits"].clone()


def known(objective: SAF, epoch: int) -> set[int]:
    """Samples with a row of this epoch."""
    return set((rows_of(objective)[0] == epoch + 1).any(1).nonzero().flatten().tolist())


@pytest.mark.parametrize("make", [Plain, partial(SAM, rho=0.5)], ids=["Plain", "SAM"])
def test_every_loss_of_eight_reshuffled_epochs_equals_the_definition(make: Any) -> None:
    net, objective, reference = fresh_net(), saf(), ByHand()
    optimizer = make(net.parameters(), partial(SGD, lr=0.5))
    for epoch in range(EPOCHS):
        objective.begin_epoch(epoch)
        for ids in shuffled(epoch):
            batch = batch_of(ids)

            def closure(batch: Batch = batch, ids: list[int] = ids, epoch: int = epoch) -> Tensor:
                expected = reference.loss(epoch, ids, net(batch["image"]), batch["label"])
                found = objective(net, batch)
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # past rows are float32
                return found

            optimizer.step(closure)
    assert 30 < reference.found < 9 * (EPOCHS - 3) * (2 if make is not Plain else 1), "some have no past, others have"


def test_the_first_output_of_a_sample_in_an_epoch_is_kept() -> None:
    # A sample has two outputs in SAM's two passes, and if it is drawn again.
    net, objective = fresh_net(), saf()
    optimizer = SAM(net.parameters(), partial(SGD, lr=0.0), rho=2.0)
    batch = batch_of([5, 2, 5])
    batch["image"][2] += 1
    first = net(batch["image"][:2]).detach().half()
    objective.begin_epoch(0)
    optimizer.step(partial(objective, net, batch))
    for ids in ([5, 2, 5], [2, 8, 5]):  # all samples again, and two samples with a new one
        again = batch_of(ids)
        objective(net, again | {"image": again["image"] + 1})
        assert torch.equal(rows_of(objective)[1][[5, 2], 0], first)
    assert known(objective, 0) == {2, 5, 8}


@pytest.mark.parametrize("stop", [2, 5])
@pytest.mark.parametrize("mapped", [False, True], ids=["memory", "file"])
def test_a_resumed_run_equals_one_that_never_stopped_bit_for_bit(tmp_path: Path, stop: int, mapped: bool) -> None:
    def build(name: str) -> tuple[nn.Module, SAF, SAM]:
        net = fresh_net()
        optimizer = SAM(net.parameters(), partial(SGD, lr=0.5, momentum=0.9), rho=0.1)
        return net, saf(table=tmp_path / "deep" / f"{name}.npy" if mapped else None), optimizer

    def run(net: nn.Module, objective: SAF, optimizer: SAM, steps: range) -> list[float]:
        losses = []
        for step in steps:
            epoch, index = divmod(step, 3)
            if not index or step == steps[0]:
                objective.begin_epoch(epoch)
            losses.append(optimizer.step(partial(objective, net, batch_of(shuffled(epoch)[index]))).item())
        return losses

    whole, first = build("whole"), build("first")
    expected = run(*whole, range(24))
    run(*first, range(3 * stop + 1))
    state = [dict(part.state_dict()) for part in first]
    marks, logits = rows_of(first[1])
    state[1]["_extra_state"] = {"epoch": first[1].epoch, "marks": marks, "logits": logits}
    for part, values in zip(second := build("first" if mapped else "second"), state, strict=True):
        part.load_state_dict(values)
    assert run(*second, range(3 * stop + 1, 24)) == expected[3 * stop + 1 :]
    for found, held in zip(rows_of(second[1]), rows_of(whole[1]), strict=True):
        assert torch.equal(found, held)
    assert train(fresh_net(), whole[1]) == train(fresh_net(), saf()), "an earlier epoch begins a new run"


@pytest.mark.parametrize("classes", [2, 3, 1000])
def test_the_file_is_one_that_numpy_reads_and_its_rows_are_read_again(tmp_path: Path, classes: int) -> None:
    path, options = tmp_path / "saf.npy", {"samples": 7, "classes": classes, "epochs": 4}
    table, logits, ids = PastLogits(path=path, **options), torch.randn(2, classes), torch.tensor([6, 2])
    table.write(ids, logits, epoch=5)
    found = np.load(path, mmap_mode="r", allow_pickle=False)
    assert found.shape == (7, 4)
    assert found["epoch"][6, 1] == 6, "the fifth epoch, plus one, in the second of four places"
    assert found["epoch"].astype(bool).sum() == 2
    np.testing.assert_array_equal(found["logits"][[6, 2], 1], logits.half().numpy())
    assert path.stat().st_blocks * 512 >= 7 * 4 * (4 + 2 * classes), "its disk space is allocated"
    assert torch.equal(PastLogits(path=path, **options).read(ids, epoch=5)[0], logits.half().float())


def test_a_row_of_another_epoch_is_unknown() -> None:
    table = PastLogits(samples=3, classes=2, epochs=4)
    ids = torch.tensor([0, 1, 2])
    assert not table.read(ids, epoch=-1)[1].any(), "before the first epoch there is nothing, not even an empty row"
    table.write(torch.tensor([1]), torch.tensor([[1.0, 2.0]]), epoch=2)
    table.write(torch.tensor([2]), torch.tensor([[3.0, 4.0]]), epoch=6)
    assert table.read(ids, epoch=2)[1].tolist() == [False, True, False]
    assert table.read(ids, epoch=6)[1].tolist() == [False, False, True]
    table.write(torch.tensor([1]), torch.tensor([[5.0, 6.0]]), epoch=6)
    assert not table.read(ids, epoch=2)[1].any()


def test_outputs_beyond_float16_are_clamped_and_those_not_finite_are_not_kept() -> None:
    table = PastLogits(samples=3, classes=2, epochs=2)
    table.write(torch.arange(3), torch.tensor([[1e6, -1e6], [math.nan, 0.0], [0.0, math.inf]]), epoch=0)
    found, is_known = table.read(torch.arange(3), epoch=0)
    assert is_known.tolist() == [True, False, False]
    assert found[0].tolist() == [65504.0, -65504.0]


@pytest.fixture
def killed(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """File of a run killed after epoch 6, and epoch 4's state."""
    net, objective = fresh_net(), saf(table=tmp_path / "saf.npy", save_table=False)
    optimizer = Plain(net.parameters(), partial(SGD, lr=0.5))
    train(net, objective, range(5), optimizer)
    state = objective.state_dict()
    assert state == {"_extra_state": {"epoch": 4}}
    train(net, objective, range(5, 7), optimizer)
    return tmp_path / "saf.npy", state


def test_without_the_table_in_the_state_rows_of_a_killed_run_are_unknown_and_not_wrong(killed: Any) -> None:
    path, state = killed
    objective = saf(table=path)
    objective.load_state_dict(state)
    drawn = [{sample for ids in shuffled(epoch) for sample in ids} for epoch in range(7)]
    assert [known(objective, epoch) for epoch in range(2, 7)] == [
        drawn[2] - drawn[5],
        drawn[3] - drawn[6],
        drawn[4],
        set(),
        set(),
    ]
    in_memory = saf()
    in_memory.load_state_dict(state)
    assert not rows_of(in_memory)[0].any()


def test_a_new_run_uses_no_row_in_the_file_of_another_run(killed: Any) -> None:
    assert train(fresh_net(seed=4), saf(table=killed[0])) == train(fresh_net(seed=4), saf())


def test_before_its_start_with_weight_zero_and_in_evaluation_it_equals_the_loss_bit_for_bit() -> None:
    net = fresh_net()
    optimizer, plain = Plain(net.parameters(), partial(SGD, lr=0.5)), []
    for epoch in range(EPOCHS):
        for ids in shuffled(epoch):
            batch = batch_of(ids)
            loss = optimizer.step(lambda batch=batch: F.cross_entropy(net(batch["image"]), batch["label"]))
            plain.append(loss.item())
    assert train(fresh_net(), saf(weight=0.0)) == plain
    late = train(fresh_net(), saf(start_epoch=5))
    assert late[:15] == plain[:15]
    assert late[15] > plain[15]
    objective, batch = saf().eval(), batch_of([0, 1])
    del batch["sample_id"]
    assert objective(net, batch) == F.cross_entropy(net(batch["image"]), batch["label"])
    assert not rows_of(objective)[0].any()


def test_the_loss_learns_its_weights_and_shows_them() -> None:
    loss = UncertaintyWeightedLoss({"region": SoftDiceLoss(), "distribution": CrossEntropyLoss()})
    assert [name for name, _ in SAF(loss, samples=1, classes=2).named_parameters()] == ["loss.log_variances"]
    assert SAF(loss, samples=1, classes=2).loss_weights() == {"region": 0.5, "distribution": 0.5}


@pytest.mark.parametrize(
    ("key", "value", "change"),
    [
        ("sample_id", None, {"sample_id": None}),
        ("sample_id", "torch.float32 of shape (2,)", {"sample_id": torch.tensor([0.0, 1.0])}),
        ("sample_id", "torch.int64 of shape (1, 2)", {"sample_id": torch.tensor([[0, 1]])}),
        ("sample_id", [SAMPLES], {"sample_id": torch.tensor([0, SAMPLES])}),
        ("sample_id", [-1], {"sample_id": torch.tensor([-1, 3])}),
        ("net", "logits of shape (2, 3, 4)", {"image": torch.zeros(2, 3, 4)}),
        ("classes", CLASSES, {"image": torch.zeros(2, 5)}),
    ],
)
def test_batches_without_valid_ids_are_rejected(key: str, value: Any, change: dict[str, Any], refused: Any) -> None:
    objective, batch = saf(), {"image": torch.zeros(2, CLASSES), "label": torch.zeros(2).long()}
    objective.begin_epoch(0)
    with refused(key, got=value):
        objective(nn.Identity(), batch | {"sample_id": torch.arange(2)} | change)


def test_an_epoch_that_is_negative_or_was_never_begun_and_a_state_of_another_size_are_refused(refused: Any) -> None:
    with refused("epoch", got=-1):
        saf().begin_epoch(-1)
    with refused("epoch", got=None):
        saf()(fresh_net(), batch_of([0, 1]))
    with refused("logits", got=(11, 3, 3)):
        saf(lag=3).load_state_dict(saf().state_dict())


def test_a_disk_with_too_little_space_is_rejected_before_anything_is_written(tmp_path: Path, refused: Any) -> None:
    with refused("table") as error:
        SAF(nn.CrossEntropyLoss(), samples=10**12, classes=1000, table=tmp_path / "saf.npy")
    assert str(10**12 * 4 * (4 + 2 * 1000)) in error.value.expected
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_such_table_is_refused_and_not_changed(tmp_path: Path, refused: Any) -> None:
    text, other, shorter = (tmp_path / name for name in ("text.npy", "other.npy", "shorter.npy"))
    text.write_text("no table")
    np.save(other, np.ones((SAMPLES, 3), dtype=np.float16))
    saf(table=shorter)
    shorter.write_bytes(shorter.read_bytes()[:-10])
    saf(table=tmp_path / "lag.npy", lag=4)
    for path in (text, other, shorter, tmp_path / "lag.npy"):
        before = path.read_bytes()
        with refused("table", got=path):
            saf(table=path)
        assert path.read_bytes() == before
