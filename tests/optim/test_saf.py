"""SAF: the loss and the distance to a sample's own answers of some epochs ago, found again under any order."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from uumamba.losses import CrossEntropyLoss, SoftDiceLoss, UncertaintyWeightedLoss
from uumamba.optim import SAF, SAM, Plain
from uumamba.optim.past_logits import PastLogits
from uumamba.runtime.errors import UsageError, UumambaError

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
    """Batches of an epoch; each epoch leaves out two samples, so that some have no past."""
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch)).tolist()
    return [order[0:3], order[3:6], order[6:9]]


class ByHand:
    """Past logits in a dictionary of lists, and the loss from its definition."""

    def __init__(self, *, lag: int = 2, weight: float = 0.3, tau: float = 5.0, start: int = 3) -> None:
        self.past: dict[int, list[tuple[int, Tensor]]] = {}
        self.lag, self.weight, self.tau, self.start = lag, weight, tau, start
        self.found = 0

    def keep(self, epoch: int, ids: list[int], logits: Tensor) -> None:
        for sample, row in zip(ids, logits.detach().half().double(), strict=True):
            if epoch not in dict(self.past.setdefault(sample, [])):
                self.past[sample].append((epoch, row))

    def loss(self, epoch: int, ids: list[int], logits: Tensor, label: Tensor) -> Tensor:
        total = F.cross_entropy(logits, label)
        for sample, row in zip(ids, logits, strict=True):
            then = dict(self.past.get(sample, [])).get(epoch - self.lag)
            if then is not None and epoch >= self.start:
                p, q = (then / self.tau).softmax(0), (row / self.tau).softmax(0)
                total = total + self.weight * self.tau**2 * (p * (p / q).log()).sum() / len(ids)
                self.found += 1
        return total


def saf(**options: Any) -> SAF:
    return SAF(nn.CrossEntropyLoss(), **{"samples": SAMPLES, "classes": CLASSES, "lag": 2, "start_epoch": 3} | options)


def train(
    net: nn.Module, objective: SAF, make: Any = Plain, epochs: range = range(EPOCHS), optimizer: Any = None
) -> list[float]:
    optimizer = optimizer or make(net.parameters(), partial(SGD, lr=0.5))
    losses = []
    for epoch in epochs:
        objective.begin_epoch(epoch)
        losses += [optimizer.step(partial(objective, net, batch_of(ids))).item() for ids in shuffled(epoch)]
    return losses


def bits(objective: SAF) -> dict[str, Any]:
    return {
        name: value.contiguous().numpy().tobytes() if isinstance(value, Tensor) else value
        for name, value in objective.get_extra_state().items()
    }


def test_losses_and_weights_of_eight_reshuffled_epochs_are_those_written_by_hand() -> None:
    net, other, reference = fresh_net(), fresh_net(), ByHand()
    found = train(net, saf())
    expected = []
    for epoch in range(EPOCHS):
        for ids in shuffled(epoch):
            batch = batch_of(ids)
            logits = other(batch["image"])
            loss = reference.loss(epoch, ids, logits, batch["label"])
            reference.keep(epoch, ids, logits)
            gradients = torch.autograd.grad(loss, list(other.parameters()))
            with torch.no_grad():
                for param, gradient in zip(other.parameters(), gradients, strict=True):
                    param -= 0.5 * gradient
            expected.append(loss.item())
    assert 0 < reference.found < 9 * (EPOCHS - 3), "some samples have no past, and others have"
    # float16 targets may round to a neighbour where weights differ in their last digits
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-6, atol=1e-6)
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_the_second_pass_of_a_climber_overwrites_nothing() -> None:
    net, objective = fresh_net(), saf()
    optimizer = SAM(net.parameters(), partial(SGD, lr=0.0), rho=2.0)
    batch = batch_of([0, 4, 7])
    answers: list[Tensor] = []

    def closure() -> Tensor:
        answers.append(net(batch["image"]).detach())
        return objective(net, batch)

    objective.begin_epoch(0)
    optimizer.step(closure)
    assert not torch.allclose(answers[0], answers[1], atol=0.1)
    found, known = objective._past.read(batch["sample_id"], epoch=0)
    assert known.all()
    assert torch.equal(found, answers[0].half().float())


def test_both_passes_of_a_climber_are_drawn_to_the_same_answers() -> None:
    net, objective, reference = fresh_net(), saf(), ByHand()
    optimizer = SAM(net.parameters(), partial(SGD, lr=0.3), rho=0.5)
    for epoch in range(EPOCHS):
        objective.begin_epoch(epoch)
        for ids in shuffled(epoch):
            batch, losses = batch_of(ids), []

            def closure(batch: Batch = batch, ids: list[int] = ids, epoch: int = epoch, losses: Any = losses) -> Tensor:
                logits = net(batch["image"])
                expected = reference.loss(epoch, ids, logits, batch["label"])
                reference.keep(epoch, ids, logits)
                losses.append((objective(net, batch), expected))
                return losses[-1][0]

            optimizer.step(closure)
            assert len(losses) == 2
            for found, expected in losses:
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert reference.found > 40


def test_a_sample_that_is_drawn_twice_keeps_its_first_answer() -> None:
    net, objective = fresh_net(), saf()
    objective.begin_epoch(0)
    batch = batch_of([5, 2, 5])
    batch["image"][2] += 1
    objective(net, batch)
    first = net(batch["image"][:2]).half().float()
    assert torch.equal(objective._past.read(torch.tensor([5, 2]), epoch=0)[0], first)
    for ids in ([5, 2, 5], [2, 8, 5]):  # all of them again, and two of them beside a new one
        again = batch_of(ids)
        objective(net, again | {"image": again["image"] + 1})
        assert torch.equal(objective._past.read(torch.tensor([5, 2]), epoch=0)[0], first)
    assert objective._past.holds(torch.tensor([8]), epoch=0).all()


@pytest.mark.parametrize("stop", [2, 5, 6])
@pytest.mark.parametrize("mapped", [False, True], ids=["memory", "file"])
def test_a_resumed_run_equals_one_that_never_stopped_bit_for_bit(tmp_path: Path, stop: int, mapped: bool) -> None:
    def build(name: str) -> tuple[nn.Module, SAF, SAM]:
        net = fresh_net()
        optimizer = SAM(net.parameters(), partial(SGD, lr=0.5, momentum=0.9), rho=0.1)
        return net, saf(table=tmp_path / f"{name}.npy" if mapped else None), optimizer

    def run(net: nn.Module, objective: SAF, optimizer: SAM, steps: range) -> list[float]:
        losses = []
        for step in steps:
            epoch, index = divmod(step, 3)
            if not index or step == steps[0]:
                objective.begin_epoch(epoch)
            batch = batch_of(shuffled(epoch)[index])
            losses.append(optimizer.step(partial(objective, net, batch)).item())
        return losses

    whole = build("whole")
    expected = run(*whole, range(24))
    first = build("first")
    run(*first, range(3 * stop + 1))
    state = [dict(part.state_dict()) for part in first]
    kept = first[1].get_extra_state()
    state[1]["_extra_state"] = {
        name: value.clone() if isinstance(value, Tensor) else value for name, value in kept.items()
    }
    for part, values in zip(second := build("first" if mapped else "second"), state, strict=True):
        part.load_state_dict(values)
    assert run(*second, range(3 * stop + 1, 24)) == expected[3 * stop + 1 :]
    assert bits(second[1]) == bits(whole[1])
    for found, weight in zip(second[0].parameters(), whole[0].parameters(), strict=True):
        assert torch.equal(found, weight)


def test_a_mapped_table_equals_one_in_memory(tmp_path: Path) -> None:
    objectives = [saf(), saf(table=tmp_path / "deep" / "saf.npy")]
    losses = [train(fresh_net(), objective) for objective in objectives]
    assert losses[0] == losses[1]
    assert bits(objectives[0]) == bits(objectives[1])


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_the_file_is_one_that_numpy_reads(tmp_path: Path, classes: int) -> None:
    path = tmp_path / "saf.npy"
    table = PastLogits(samples=7, classes=classes, epochs=4, path=path)
    logits = torch.randn(2, classes)
    table.write(torch.tensor([6, 2]), logits, epoch=5)
    found = np.load(path, mmap_mode="r", allow_pickle=False)
    assert found.shape == (7, 4)
    assert found["epoch"][6, 1] == 6, "the fifth epoch, plus one, in the second of four places"
    assert found["epoch"].astype(bool).sum() == 2
    np.testing.assert_array_equal(found["logits"][[6, 2], 1], logits.half().numpy())
    assert path.stat().st_blocks * 512 >= 7 * 4 * (4 + 2 * classes), "its room is taken"


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


def test_answers_beyond_float16_are_clamped_and_those_not_finite_are_not_kept() -> None:
    table = PastLogits(samples=3, classes=2, epochs=2)
    table.write(torch.arange(3), torch.tensor([[1e6, -1e6], [math.nan, 0.0], [0.0, math.inf]]), epoch=0)
    found, known = table.read(torch.arange(3), epoch=0)
    assert known.tolist() == [True, False, False]
    assert found[0].tolist() == [65504.0, -65504.0]


def test_a_batch_that_was_not_finite_draws_nothing_later() -> None:
    net, objective = fresh_net(), saf(lag=1, start_epoch=0)
    batch = batch_of([1, 2])
    objective.begin_epoch(0)
    objective(net, batch | {"image": batch["image"] * math.nan})
    objective.begin_epoch(1)
    assert objective(net, batch) == F.cross_entropy(net(batch["image"]), batch["label"])


@pytest.fixture
def killed(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """The file of a run that was killed after epoch 6, and its state after epoch 4, without the table."""
    objective = saf(table=tmp_path / "saf.npy", save_table=False)
    net = fresh_net()
    optimizer = Plain(net.parameters(), partial(SGD, lr=0.5))
    train(net, objective, epochs=range(5), optimizer=optimizer)
    state = objective.state_dict()
    assert state == {"_extra_state": {"epoch": 4}}
    train(net, objective, epochs=range(5, 7), optimizer=optimizer)
    return tmp_path / "saf.npy", state


def test_without_the_table_in_the_state_rows_of_a_killed_run_are_unknown_and_not_wrong(
    killed: tuple[Path, dict[str, Any]],
) -> None:
    path, state = killed
    objective = saf(table=path, save_table=False)
    objective.load_state_dict(state)
    everyone = torch.arange(SAMPLES)
    seen = {epoch: {sample for ids in shuffled(epoch) for sample in ids} for epoch in range(7)}
    for epoch, overwritten_by in ((2, 5), (3, 6), (4, None)):
        _, known = objective._past.read(everyone, epoch=epoch)
        left = seen[epoch] - (set() if overwritten_by is None else seen[overwritten_by])
        assert set(everyone[known].tolist()) == left
    assert not objective._past.holds(everyone, epoch=5).any(), "so the run writes its own"
    assert not objective._past.holds(everyone, epoch=6).any()


def test_a_run_that_starts_anew_finds_nothing_in_the_file_of_another(killed: tuple[Path, dict[str, Any]]) -> None:
    path, _ = killed
    assert train(fresh_net(seed=4), saf(table=path)) == train(fresh_net(seed=4), saf())


def test_an_earlier_epoch_begins_a_new_run_with_an_empty_table() -> None:
    objective = saf()
    train(fresh_net(), objective)
    assert train(fresh_net(seed=4), objective) == train(fresh_net(seed=4), saf())


def test_a_state_without_a_table_leaves_memory_empty_and_one_with_it_is_always_taken(tmp_path: Path) -> None:
    trained, bare, full = saf(), saf(save_table=False), saf(save_table=False)
    train(fresh_net(), trained)
    full.load_state_dict(trained.state_dict())
    assert torch.equal(full._past.state_dict()["logits"], trained._past.state_dict()["logits"])
    bare.load_state_dict(full.state_dict())
    assert bare.epoch == EPOCHS - 1
    assert not bare._past.holds(torch.arange(SAMPLES), epoch=EPOCHS - 1).any()


def test_a_table_of_another_size_is_refused_when_it_is_loaded() -> None:
    with pytest.raises(ValueError, match=r"\(samples, epochs, classes\) \(11, 4, 3\), the state has \(11, 3, 3\)"):
        saf(lag=3).load_state_dict(saf().state_dict())


def test_before_its_start_and_without_weight_it_is_the_loss_alone_bit_for_bit() -> None:
    net = fresh_net()
    optimizer = Plain(net.parameters(), partial(SGD, lr=0.5))
    plain = []
    for epoch in range(EPOCHS):
        for ids in shuffled(epoch):
            batch = batch_of(ids)
            plain.append(
                optimizer.step(lambda batch=batch: F.cross_entropy(net(batch["image"]), batch["label"])).item()
            )
    assert train(fresh_net(), saf(weight=0.0)) == plain
    late = train(fresh_net(), saf(start_epoch=5))
    assert late[:15] == plain[:15]
    assert all(drawn > alone for drawn, alone in zip(late[15:16], plain[15:16], strict=True))


def test_in_evaluation_mode_it_is_the_loss_alone_and_keeps_nothing() -> None:
    net, objective = fresh_net(), saf().eval()
    batch = batch_of([0, 1])
    assert objective(net, {"image": batch["image"], "label": batch["label"]}) == F.cross_entropy(
        net(batch["image"]), batch["label"]
    )
    assert not objective._past.state_dict()["marks"].any()


def test_the_loss_learns_its_weights_and_shows_them() -> None:
    loss = UncertaintyWeightedLoss({"region": SoftDiceLoss(), "distribution": CrossEntropyLoss()})
    assert [name for name, _ in SAF(loss, samples=1, classes=2).named_parameters()] == ["loss.log_variances"]
    assert SAF(loss, samples=1, classes=2).loss_weights() == {"region": 0.5, "distribution": 0.5}


def test_logits_of_voxels_are_refused_with_the_reason_and_the_alternative() -> None:
    objective = saf()
    objective.begin_epoch(0)
    with pytest.raises(UsageError, match=r"got logits of shape \(2, 3, 4, 4\): a table of every voxel .* use MESA"):
        objective(nn.Conv2d(1, 3, 1), {"image": torch.zeros(2, 1, 4, 4), "label": torch.zeros(2, 1, 4, 4).long()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_id": None}, r'by batch\["sample_id"\], int64 of shape \(2,\), and got NoneType; let the data set'),
        ({"sample_id": torch.tensor([0.0, 1.0])}, r"and got torch.float32 of shape \(2,\)"),
        ({"sample_id": torch.tensor([[0, 1]])}, r"and got torch.int64 of shape \(1, 2\)"),
        ({"sample_id": torch.tensor([0, SAMPLES])}, "made for 11 samples and got sample ids from 0 to 11"),
        ({"sample_id": torch.tensor([-1, 3])}, "made for 11 samples and got sample ids from -1 to 3"),
    ],
)
def test_sample_ids_that_find_nothing_are_refused(change: dict[str, Any], message: str) -> None:
    objective = saf()
    objective.begin_epoch(0)
    with pytest.raises(UsageError, match=message):
        objective(fresh_net(), batch_of([0, 1]) | change)


def test_other_numbers_of_classes_are_refused() -> None:
    objective = saf(classes=4)
    objective.begin_epoch(0)
    with pytest.raises(UsageError, match="made for 4 classes and got 3"):
        objective(fresh_net(), batch_of([0, 1]))


def test_a_loop_that_never_says_the_epoch_is_refused() -> None:
    with pytest.raises(UsageError, match=r"does not know the epoch; call objective.begin_epoch\(epoch\)"):
        saf()(fresh_net(), batch_of([0, 1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"classes": 1}, "classes must be at least 2, got 1"),
        ({"lag": 0}, "lag must be at least 1, got 0"),
        ({"weight": math.nan}, "weight must be finite and not negative, got nan"),
        ({"temperature": -1.0}, "temperature must be finite and positive, got -1.0"),
        ({"start_epoch": -1}, "start_epoch must not be negative, got -1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        saf(**options)
    with pytest.raises(ValueError, match="epoch must not be negative, got -1"):
        saf().begin_epoch(-1)


def test_a_disk_without_the_room_is_named_with_bytes_needed_and_found_before_anything_is_written(
    tmp_path: Path,
) -> None:
    samples, path = 10**12, tmp_path / "saf.npy"
    needed = samples * 4 * (4 + 2 * 1000)
    with pytest.raises(
        UumambaError, match=rf"saf.npy needs {needed // 10**6}\d{{6}} bytes and its disk has \d+ left; choose"
    ):
        SAF(nn.CrossEntropyLoss(), samples=samples, classes=1000, table=path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_such_table_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "features.npy"
    np.save(path, np.ones((SAMPLES, 3), dtype=np.float16))
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"is no table of 11 samples, 3 epochs and 3 classes; remove it"):
        saf(table=path)
    assert path.read_bytes() == before
    saf(table=tmp_path / "saf.npy")
    with pytest.raises(UsageError, match=r"is no table of 11 samples, 5 epochs and 3 classes"):
        saf(table=tmp_path / "saf.npy", lag=4)


@pytest.fixture(scope="module")
def two_ranks(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two gloo ranks with a reshuffling sampler left losses, weights and tables."""
    folder = tmp_path_factory.mktemp("ranks")
    script = repository / "tests" / "optim" / "two_ranks_saf.py"
    environment = {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], env=environment, capture_output=True, encoding="utf-8", timeout=240
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def one_process(two_ranks: Path) -> Callable[[], tuple[nn.Module, ByHand, list[float]]]:
    """The same run written by hand in one process, on the batches of both ranks put together."""

    def steps() -> Iterator[tuple[int, list[list[int]]]]:
        stored = [load_file(two_ranks / f"{rank}.safetensors") for rank in range(2)]
        for key in sorted(name for name in stored[0] if name.startswith("ids")):
            yield int(key.split("-")[1]), [part[key].tolist() for part in stored]

    def run() -> tuple[nn.Module, ByHand, list[float]]:
        net, reference, losses = fresh_net(), ByHand(), []
        for epoch, of_ranks in steps():
            parts = [(ids, net(batch_of(ids)["image"]), batch_of(ids)["label"]) for ids in of_ranks]
            found = [reference.loss(epoch, *part) for part in parts]
            for ids, logits, _ in parts:
                reference.keep(epoch, ids, logits)
            gradients = torch.autograd.grad(sum(found) / 2, list(net.parameters()))
            with torch.no_grad():
                for param, gradient in zip(net.parameters(), gradients, strict=True):
                    param -= 0.5 * gradient
            losses.append([loss.item() for loss in found])
        return net, reference, losses

    return run


@pytest.mark.slow
def test_two_ranks_that_swap_samples_hold_the_table_and_losses_of_one_process(
    two_ranks: Path, one_process: Callable[[], Any]
) -> None:
    net, reference, losses = one_process()
    assert reference.found > 40
    for rank in range(2):
        stored = load_file(two_ranks / f"{rank}.safetensors")
        torch.testing.assert_close(
            stored["losses"], torch.tensor(losses, dtype=torch.float64)[:, rank], rtol=1e-5, atol=1e-5
        )
        for name, weight in net.state_dict().items():
            torch.testing.assert_close(stored[f"net.{name}"], weight, rtol=1e-5, atol=1e-5)
        for sample in range(SAMPLES):
            for epoch in range(EPOCHS - 3, EPOCHS):
                expected = dict(reference.past[sample]).get(epoch)
                assert bool(stored["marks"][sample, epoch % 3] == epoch + 1) == (expected is not None)
                if expected is not None:
                    torch.testing.assert_close(
                        stored["logits"][sample, epoch % 3].double(), expected, rtol=2e-3, atol=1e-5
                    )


@pytest.mark.slow
def test_every_rank_has_the_whole_table_in_a_file_of_its_own(two_ranks: Path) -> None:
    tables = [(two_ranks / f"saf.rank{rank}.npy").read_bytes() for rank in range(2)]
    assert tables[0] == tables[1]
    samplers = [load_file(two_ranks / f"{rank}.safetensors") for rank in range(2)]
    drawn = [
        {sample for name, ids in stored.items() if name.startswith("ids-0-") for sample in ids.tolist()}
        for stored in samplers
    ]
    later = [
        {sample for name, ids in stored.items() if name.startswith("ids-1-") for sample in ids.tolist()}
        for stored in samplers
    ]
    assert later[0] - drawn[0], "the sampler gives a rank samples that it did not have before"


@pytest.mark.slow
def test_ranks_with_batches_of_different_sizes_gather_all(two_ranks: Path) -> None:
    for rank in range(2):
        stored = load_file(two_ranks / f"{rank}.safetensors")
        assert stored["uneven.known"].tolist() == [1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
        assert stored["uneven.logits"][:5, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_one_that_was_made_before_the_processes_met_is_refused(two_ranks: Path) -> None:
    for rank in range(2):
        text = (two_ranks / f"refusal-{rank}.txt").read_text(encoding="utf-8")
        assert "made with 1 processes and is called with 2; make it after init_process_group" in text
