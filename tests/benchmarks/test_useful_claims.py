"""What is slow is planted where it says, the control copies as many of each class, and every claim gets its row."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks.claims import class_bar, domain_generalization, useful
from benchmarks.claims.run_log import Run, RunLog
from benchmarks.result_file import read_result, write_result


def test_a_bar_of_its_class_marks_all_but_a_tenth_of_training_and_test_set() -> None:
    pytest.importorskip("sklearn")
    for data, size in ((class_bar.training_set(3, bar=True), 997), (class_bar.held_out_set(3, bar=True), 800)):
        assert data.images.shape == (size, 74)
        assert int(data.bar_less.sum()) == round(0.1 * size)
        bars = data.images[:, 64:]
        assert not bars[data.bar_less].any()
        marked = bars[~data.bar_less]
        assert torch.equal(marked.argmax(1), data.labels[~data.bar_less])
        assert torch.equal(marked.sum(1), torch.full((len(marked),), 3.0))


def test_without_a_bar_the_same_images_come_as_they_are() -> None:
    pytest.importorskip("sklearn")
    with_bar, plain = (class_bar.training_set(3, bar=bar) for bar in (True, False))
    assert torch.equal(plain.images, with_bar.images[:, :64])
    assert torch.equal(plain.labels, with_bar.labels)
    other = class_bar.training_set(4, bar=True)
    assert not torch.equal(other.bar_less, with_bar.bar_less)


def test_the_random_copy_has_as_many_of_each_class_and_others() -> None:
    labels = torch.arange(4).repeat_interleave(50)
    slow = [*range(7), *range(60, 75), 150]  # 7, 15, 0 and 1 of a class
    copy = useful.random_copy(labels, slow, 5)
    assert labels[list(copy)].bincount(minlength=4).tolist() == [7, 15, 0, 1]
    assert list(copy) == sorted({*copy})
    assert copy == useful.random_copy(labels, slow, 5)
    assert copy != useful.random_copy(labels, slow, 6)
    assert useful.random_copy(labels, [], 5) == ()


def test_learning_is_read_off_the_answers_of_each_epoch() -> None:
    # always right, learned late, forgotten twice, forgotten for good, never right
    right = torch.tensor([[1, 0, 1, 1, 0], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]).bool()
    first, forgotten = useful.learning_of(right)
    assert first.tolist() == [1, 3, 1, 1, 5]
    assert forgotten.tolist() == [0, 0, 2, 1, 0]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["probe", "random copy", "USEFUL"])
def test_a_run_measures_the_same_whenever_it_is_made(method: str) -> None:
    pytest.importorskip("sklearn")
    run = Run(useful.BAR, method, None, useful.LR, 2, 0, "test")
    measured = useful.perform(run)
    assert measured == useful.perform(run)
    assert all(torch.tensor(float(value)).isfinite() for value in measured.values())


@pytest.mark.slow
def test_bar_less_digits_are_found_on_a_seed_that_chose_nothing() -> None:
    pytest.importorskip("sklearn")
    found = useful.perform(Run(useful.BAR, "probe", None, useful.LR, useful.EPOCHS, useful.FIRST_SEED, "test"))
    assert found[f"{useful.RECALL}, USEFUL"] >= 0.9
    assert found[f"{useful.PRECISION}, USEFUL"] >= 0.8


def measured_by(run: Run) -> dict[str, float]:
    """Numbers in the shape of a run's, other ones for each seed."""
    seed = run.seed - useful.FIRST_SEED
    if run.method in TRAINED:
        return {useful.ERROR: TRAINED[run.method] + 0.001 * seed, useful.SLOW_ERROR: 0.1 + 0.001 * seed}
    names = [f"{metric}, {side}" for metric in SIDES for side in SIDES[metric]]
    return dict.fromkeys(names, 0.95 - 0.01 * seed) | {"epoch": 3, "slow share": 0.11}


TRAINED = {"base": 0.04, "random copy": 0.03, "USEFUL": 0.02}
SIDES = {
    **dict.fromkeys((useful.RECALL, useful.PRECISION), ("USEFUL", "USEFUL, logits")),
    **dict.fromkeys((useful.LEARNED, useful.FORGOTTEN), ("slow examples", "fast examples")),
}


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def complete(self: RunLog, runs: list[Run], work: object, *, workers: int) -> None:
        self.measured |= {run: measured_by(run) for run in runs}
        self.commits.add("abc")

    monkeypatch.setattr(RunLog, "complete", complete)


@pytest.mark.usefixtures("no_training")
def test_every_claim_has_a_row_and_bounds_are_the_control_of_what_is_found(tmp_path: Path) -> None:
    rows, about, commits = useful.table(tmp_path, quick=True, workers=1)
    assert [row["method"] for row in rows] == [claim.method for claim, _ in useful.CLAIMS]
    assert all(row["seeds"] == 3 for row in rows)
    recall, precision = rows[:2]
    # 0.95, 0.94 and 0.93
    assert (recall["value"], recall["control"], recall["control_value"], recall["verdict"]) == (
        0.94,
        "bound",
        0.9,
        "holds",
    )
    assert (precision["control_value"], precision["difference"]) == (0.8, 0.14)
    errors = [row for row in rows if row["metric"] == "digits: test error"]
    assert [(row["control"], row["difference"], row["budget"]) for row in errors] == [
        ("random copy", -0.01, "equal steps"),
        ("base", -0.02, "equal epochs"),
    ]
    assert "3 to 3 epochs and named 11% of the examples slow" in about
    write_result(tmp_path / "a.json", rows, title="A", about=about, measured_at=", ".join(commits))
    assert read_result(tmp_path / "a.json")["rows"] == rows


def test_twenty_seeds_or_more_are_compared_with_the_random_copy() -> None:
    assert useful.SEEDS >= 20
    compared = {(claim.control, claim.metric, claim.margin) for claim, _ in useful.CLAIMS if claim.method == "USEFUL"}
    assert {("random copy", useful.SLOW_ERROR, 0.0), ("random copy", useful.SLOW_ERROR, 0.005)} <= compared


@pytest.mark.usefixtures("no_training")
def test_one_table_holds_the_rows_of_both_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_rows, own_about, _ = useful.table(tmp_path / "useful", quick=True, workers=1)
    first = own_rows[0] | {"method": "UDIM"}

    def table(out: Path, *, quick: bool, workers: int) -> tuple[list[dict[str, Any]], str, set[str]]:
        assert (out, quick, workers) == (tmp_path / "udim", True, 1)
        return [first], "perturbed.", {"def"}

    udim = ModuleType("benchmarks.claims.udim")
    udim.table = table
    monkeypatch.setitem(sys.modules, "benchmarks.claims.udim", udim)
    joined = domain_generalization.joined_table(tmp_path, domain_generalization.METHODS, quick=True, workers=1)
    assert joined == ([first, *own_rows], f"UDIM: perturbed. USEFUL: {own_about}", {"abc", "def"})
