"""Tests of the protocol of converged runs on hearts."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.claims import hearts
from benchmarks.claims.acdc import prepare_patients
from benchmarks.claims.heart_contrasts import PATIENTS, STAGES, list_contrasts
from benchmarks.claims.heart_methods import METHODS, PLAIN, UDIM_RANDOM, UDIM_STYLE
from benchmarks.claims.heart_queue import BASE, RATES, TUNING_SEED, Queue
from benchmarks.claims.heart_runs import (
    INNER_FOLD,
    TEST_FOLD,
    Cell,
    compute_calibration_error,
    compute_mean_dice,
    list_cases,
    perform,
)
from benchmarks.claims.measures import largest_eigenvalue, largest_eigenvalue_by_differences
from benchmarks.claims.run_log import Measured, Run, RunLog, copy_lines
from benchmarks.claims.shifted_patients import ORIGINAL, prepare_styles
from benchmarks.which_method import make_page
from uumamba.data.prepared import PreparedFolder
from uumamba.data.vendor_styles import STYLES

Replace = Callable[[Callable[[Run], Measured]], None]
PATIENTS_OF_TEST = ("a", "b", "c", "d")
SMALL = Cell(patients=2, net="ResEncUNet")


@pytest.fixture(scope="module")
def prepared(phantom: PreparedFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare five phantom patients, one per fold."""
    raw, out = phantom.path.parent / "raw", tmp_path_factory.mktemp("hearts") / "prepared"
    return prepare_patients(raw, out, BASE.read_config(), training=None, validation=None, workers=0)


@pytest.fixture(scope="module")
def plain_eigenvalue(prepared: Path) -> float:
    return float(perform(make_run(PLAIN, SMALL), prepared=prepared, styles={})["eigenvalue"])


@pytest.fixture(scope="module")
def styles(prepared: Path) -> dict[str, Path]:
    return prepare_styles(prepared, prepared.parent / "styles", BASE.read_config())


def make_run(method: str = PLAIN, cell: Cell = BASE, *, steps: int = 6, measures: str = "test") -> Run:
    return Run(str(cell), method, None, 0.001, steps, 0, measures)


def measure(run: Run) -> Measured:
    """Score four patients: better with more steps, a middle value and rate, and with SAM."""
    base = 0.5 + 1e-5 * run.steps + 0.05 * (run.method == "SAM") - 0.02 * abs(RATES.index(run.lr) - 2)
    if run.value is not None and run.method != UDIM_RANDOM:
        base -= 0.1 * abs(METHODS[run.method].grid.index(run.value) - 2)
    dice = {name: base + 0.01 * index + 1e-4 * run.seed for index, name in enumerate(PATIENTS_OF_TEST)}
    noise = {name: 1e-3 * (crc32(f"{run} {name}".encode()) % 7) for name in PATIENTS_OF_TEST}
    dice = {name: dice[name] + noise[name] for name in dice}
    averages = {"ema": dice, "swad": {name: value + noise[name] for name, value in dice.items()}}
    found = {"dice": dice, "ece": dice, "training dice": dice, "eigenvalue": 1.0, "training_seconds": 60.0, **averages}
    return found | ({"styles": dict.fromkeys((ORIGINAL, *STYLES), dice)} if run.measures == "styles" else {})


@pytest.fixture
def queue(tmp_path: Path, replace_training: Replace) -> Queue:
    replace_training(measure)
    made = Queue(RunLog(tmp_path), measure, workers=1, steps=100, seeds=(0, 1, 2))
    made.tune_rate()
    return made


def test_folds_and_patients_of_a_run_are_those_of_the_protocol(prepared: Path) -> None:
    manifest = PreparedFolder(prepared).manifest
    by_fold = {fold: list_cases(prepared, (fold,)) for fold in range(5)}
    assert sorted(case for cases in by_fold.values() for case in cases) == sorted(c.case_id for c in manifest.cases)
    assert all(manifest.by_id(case).fold == fold for fold, cases in by_fold.items() for case in cases)
    assert len({manifest.by_id(case).patient_id for case in list_cases(prepared, (2, 3, 4), 2)}) == 2


@pytest.mark.filterwarnings("ignore:The validation loss did not settle:UserWarning")  # SWAD's, in six steps
def test_a_run_measures_the_patients_of_its_fold_and_is_repeatable(prepared: Path, styles: dict[str, Path]) -> None:
    work = partial(perform, prepared=prepared, styles=styles)
    patients = {
        fold: {PreparedFolder(prepared).manifest.by_id(case).patient_id for case in list_cases(prepared, (fold,))}
        for fold in (INNER_FOLD, TEST_FOLD)
    }
    first, again = work(make_run()), work(make_run())
    assert first.keys() == {"training_seconds", "dice", "ema", "swad", "ece", "training dice", "eigenvalue"}
    assert first["dice"].keys() == first["ema"].keys() == first["ece"].keys() == patients[TEST_FOLD]
    assert {key: first[key] for key in first if key != "training_seconds"} == {
        key: again[key] for key in again if key != "training_seconds"
    }
    inner = work(make_run(measures="validation"))
    assert inner["dice"].keys() == patients[INNER_FOLD]
    assert "eigenvalue" not in inner


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The validation loss did not settle:UserWarning")
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_differs_from_the_plain_optimizer(
    name: str, prepared: Path, plain_eigenvalue: float
) -> None:
    found = perform(make_run(name, SMALL), prepared=prepared, styles={})
    assert 0 <= fmean(found["dice"].values()) <= 1
    assert np.isfinite(found["eigenvalue"])
    assert (found["eigenvalue"] != plain_eigenvalue) == (name != PLAIN)


@pytest.mark.slow
def test_a_run_for_styles_is_scored_in_each_of_them(prepared: Path, styles: dict[str, Path]) -> None:
    found = perform(make_run("SAM", SMALL, measures="styles"), prepared=prepared, styles=styles)
    assert found["styles"].keys() == {ORIGINAL, *STYLES}
    assert found["styles"][ORIGINAL] == found["dice"]


def test_the_queue_tunes_each_number_once_on_the_inner_fold(queue: Queue) -> None:
    assert queue.rate == RATES[2]
    assert queue.tune("SAM") == METHODS["SAM"].grid[2]
    assert queue.tune(UDIM_RANDOM) == queue.tune(UDIM_STYLE) == METHODS[UDIM_STYLE].grid[2]
    assert queue.tune(PLAIN) is None
    tuning = [run for run in queue.log.measured if run.seed == TUNING_SEED]
    assert len(tuning) == len(queue.log.measured) == 3 * 4
    assert {(run.measures, run.setting) for run in tuning} == {("validation", str(BASE))}
    assert {(run.method == PLAIN, run.steps) for run in tuning} == {(True, queue.steps), (False, queue.steps // 3)}
    assert {run.seed for run in queue.list_runs("SAM")} == {0, 1, 2}


def test_the_stages_need_at_most_thirty_core_hours_if_a_plain_run_takes_seven_minutes(queue: Queue) -> None:
    for stage in STAGES:
        for each in list_contrasts(queue, stage):
            queue.complete(each.list_runs())
    units = sum(METHODS[run.method].passes * run.steps / queue.steps for run in queue.log.measured)
    assert units * 7 / 60 <= 30


def test_contrasts_hold_everything_equal_but_what_they_compare(queue: Queue) -> None:
    found = [each for stage in STAGES for each in list_contrasts(queue, stage)]
    assert len({(each.claim, each.budget) for each in found}) == len(found)
    assert [each.kind for each in found].count("primary") == 1
    for each in found:
        own, control = each.own.runs[0], each.control.runs[0]
        assert [run.seed for run in each.own.runs] == [run.seed for run in each.control.runs]
        assert own.lr == control.lr == queue.rate
        if each.budget == "equal time":
            assert control.steps == METHODS[own.method].passes * own.steps
        elif each.kind != "plateau":
            assert control.steps == own.steps
        changed = [own.method != control.method, *np.not_equal(own.setting.split(", "), control.setting.split(", "))]
        is_of_average = each.claim.method in ("moving average", "SWAD")
        assert sum(changed) == (2 if each.claim.method == "UU-Mamba" else not (is_of_average or each.kind == "plateau"))
    cells = {each.own.runs[0].setting for each in list_contrasts(queue, "factors")}
    assert len(cells) == 2 * 2 * len(PATIENTS)


def test_secondary_verdicts_follow_holm_and_the_primary_one_its_interval(queue: Queue) -> None:
    found = [each for stage in ("plateau", "primary", "factors") for each in list_contrasts(queue, stage)]
    for each in found:
        queue.complete(each.list_runs())
    rows = hearts.make_rows(found, queue.log.measured)
    assert [row["p_holm"] is None for row in rows] == [True, True, True, *[False] * (len(rows) - 3)]
    assert (rows[2]["method"], rows[2]["budget"], rows[2]["verdict"]) == ("UU-Mamba", "equal time", "holds")
    for row in rows[3:]:
        is_told = row["p_holm"] < 0.05
        expected = "holds" if row["difference"] > 0 else "does not hold here"
        assert row["verdict"] == (expected if is_told else "not distinguishable")
    assert {row["verdict"] for row in rows} >= {"holds", "not distinguishable"}
    levels = hearts.make_levels(found, queue.log.measured)
    assert {(row["setting"], row["steps"]) for row in levels} == {
        (run.setting, run.steps) for each in found[2:] for run in each.list_runs()
    }


def test_holm_s_method_multiplies_the_sorted_p_values_by_the_number_left() -> None:
    # sorted: 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1, which may not fall below the one before
    assert hearts.adjust_by_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert hearts.adjust_by_holm([0.9, 0.8]) == [1.0, 1.0]


def test_lines_are_copied_between_logs_once_and_whole(tmp_path: Path) -> None:
    source, target = tmp_path / "runs.jsonl", tmp_path / "kept" / "runs.jsonl"
    source.write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    for _ in range(2):
        copy_lines(source, target)
    assert [json.loads(line) for line in target.read_text().splitlines()] == [{"a": 1}, {"a": 2}]


def test_a_later_call_reads_finished_runs_and_writes_both_tables(tmp_path: Path, queue: Queue, refused: Any) -> None:
    found = list_contrasts(queue, "primary")
    for each in found:
        queue.complete(each.list_runs())
    queue.log.commits.add("abc")
    hearts.write_tables(tmp_path / "hearts.json", queue, found)
    table, levels = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("hearts", "hearts_levels"))
    assert [row["budget"] for row in table["rows"]] == ["equal time", "equal steps"]
    assert {row["method"] for row in levels["rows"]} == {"SAM", PLAIN}
    assert table["configs"][0]["name"] == "benchmarks/claims/hearts.yaml"


def test_calibration_error_and_dice_have_hand_computed_values() -> None:
    foreground = np.array([[0.9, 0.6, 0.2, 0.1]])  # predictions: 1 1 0 0
    probabilities, label = np.stack([1 - foreground, foreground]), np.array([[1, 0, 1, 0]])
    # counted are the first three voxels, with confidence 0.9 (right), 0.6 (wrong) and 0.8 (wrong), each in its own bin
    assert compute_calibration_error(probabilities, label) == pytest.approx((0.1 + 0.6 + 0.8) / 3)
    assert compute_mean_dice(probabilities, label) == pytest.approx(0.5)


def test_eigenvalues_by_differences_equal_those_of_second_derivatives() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    images, labels = torch.randn(20, 3), torch.arange(20) % 2
    before = [param.detach().clone() for param in net.parameters()]

    def compute_loss(each: nn.Module) -> torch.Tensor:
        return nn.functional.cross_entropy(each(images), labels)

    expected = largest_eigenvalue(net, compute_loss)
    found = largest_eigenvalue_by_differences(net, compute_loss, iterations=200, tolerance=1e-5)
    assert found == pytest.approx(expected, rel=0.01)
    assert all(torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))


def test_the_page_says_in_words_what_each_row_shows(queue: Queue, tmp_path: Path) -> None:
    found = [each for stage in ("plateau", "primary", "factors") for each in list_contrasts(queue, stage)]
    for each in found:
        queue.complete(each.list_runs())
    rows = hearts.make_rows(found, queue.log.measured)
    ((path, text),) = make_page(
        {tmp_path / "hearts.json": {"rows": rows}, tmp_path / "other.json": {"rows": []}}
    ).items()
    assert path.name == "which_method.md"
    parts = text.split("\n## ")
    verdicts = [row["verdict"] for row in rows[3:]]
    assert [part.count("\n- ") for part in parts[1:]] == [
        3,
        *(max(verdicts.count(verdict), 1) for verdict in ("holds", "does not hold here", "not distinguishable")),
    ]
    assert "**UU-Mamba** against U-Mamba at equal time (40 patients: Dice): " in parts[1]
    assert "no gain of 0.005 or more: holds" in parts[1]
    assert make_page({tmp_path / "other.json": {"rows": rows}}) == {}
