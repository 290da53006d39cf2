"""Two processes train one network, over gloo."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.forked_ranks import read_group
from tests.training.rank_runs import BATCHES, EPOCHS, EVENTS, batches, build, build_random
from tests.training.tiny_run import bits, rows_of, without_domain
from uumamba.runtime.ranks import Alone
from uumamba.training import Checkpoint, read_checkpoint


@pytest.fixture(scope="module")
def groups(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("groups")
    script = Path(__file__).with_name("rank_runs.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    subprocess.run([sys.executable, str(script), str(folder)], env=environment, check=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def members(groups: Path) -> Path:
    codes, _, err = read_group(groups / "members")
    assert codes == [0, 0], err
    return groups / "members"


def assert_equal_runs(found: Checkpoint, expected: Checkpoint, *, tolerance: float = 1e-9) -> None:
    assert found.net.keys() == expected.net.keys(), "a checkpoint holds the bare network"
    for part in ("net", "ema", "objective"):
        for name, tensor in getattr(expected, part).items():
            torch.testing.assert_close(getattr(found, part)[name], tensor, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["plain", "global", "looksam", "mesa", "udim"])
def test_two_ranks_with_half_a_batch_equal_one_process_with_the_whole(members: Path, tmp_path: Path, name: str) -> None:
    build(name, run_dir=tmp_path).fit()
    found, expected = (read_checkpoint(folder / "last.safetensors") for folder in (members / name, tmp_path))
    assert_equal_runs(found, expected)
    assert expected.objective["loss.log_variances"].abs().max() > 1e-3
    rows, whole = rows_of(members / name), rows_of(tmp_path)
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in whole], rel=1e-6)
    assert [row["dice"] for row in rows] == [0.5, 0.5, 0.5], "rank 0's"


def test_udims_penalty_compares_samples_of_one_domain(members: Path, tmp_path: Path) -> None:
    # Each rank has one domain and a single process has both; without domains UDIM would compare all samples.
    build("udim", run_dir=tmp_path, augment=without_domain).fit()
    found, other = (read_checkpoint(folder / "last.safetensors") for folder in (members / "udim", tmp_path))
    assert found.method["steps"] == other.method["steps"] == EPOCHS * BATCHES
    with pytest.raises(AssertionError, match="not close"):
        assert_equal_runs(found, other, tolerance=1e-4)


def test_per_rank_perturbations_equal_one_process_with_two_closures(members: Path) -> None:
    trainer = build("rank")
    halves = [Alone(), Alone()]
    for rank, half in enumerate(halves):
        half.rank, half.count = rank, 2
    for epoch in range(EPOCHS):
        for parts in zip(*(batches(epoch, half) for half in halves), strict=True):
            trainer.optimizer.step([lambda part=part: trainer.objective(trainer.net, part) for part in parts])
            trainer.state.scheduler.step()
            trainer.average.update_parameters(trainer.net)
    found = read_checkpoint(members / "rank" / "last.safetensors")
    assert_equal_runs(found, trainer.state.checkpoint(None))
    with pytest.raises(AssertionError, match="not close"):
        assert_equal_runs(found, read_checkpoint(members / "global" / "last.safetensors"), tolerance=1e-4)


def test_a_stop_of_one_rank_stops_all_and_any_number_of_ranks_resumes(groups: Path, tmp_path: Path) -> None:
    codes, _, err = read_group(groups / "stopped")
    assert codes == [75, 75]
    assert err.count("Stopped by SIGTERM in epoch 2 after 2 steps") == err.count("\n") == 1
    shutil.copytree(groups / "stopped" / "run", tmp_path / "run")
    build_random(tmp_path / "run").fit(resume=True)
    assert [row["epoch"] for row in rows_of(tmp_path / "run")] == [0, 1, 2]


def test_two_resumed_ranks_equal_two_uninterrupted_ranks_bit_for_bit(groups: Path) -> None:
    for name in ("whole", "resumed"):
        codes, _, err = read_group(groups / name)
        assert codes == [0, 0], err
    found, expected = (bits(groups / name / "run" / "last.safetensors") for name in ("resumed", "whole"))
    assert found == expected, "including dropout and running statistics of both ranks"
    assert len(expected["rest"]["random"]["others"]) == 1


def test_observers_that_fail_on_either_rank_change_and_end_no_run(groups: Path) -> None:
    codes, _, err = read_group(groups / "observed")
    assert codes == [0, 0], err
    found, expected = (bits(groups / name / "run" / "last.safetensors") for name in ("observed", "whole"))
    assert found == expected
    assert err.count("LineDisplay failed (OSError: the terminal is closed)") == 1
    lines = err.splitlines()
    for event in EVENTS:
        report = f"{event.title().replace('_', '')}Fails failed (OSError: no space left) and is left out"
        for line in (report, f"rank 1: {report}"):
            assert lines.count(f"{line}; training continues.") == 1, "each rank reports its own failure, once"
    assert err.count("rank 1: LoadStateDictFails failed") == err.count("LoadStateDictFails") == 1


def test_stopped_ranks_wait_for_the_checkpoint_of_a_slow_disk(groups: Path) -> None:
    codes, _, err = read_group(groups / "slow disk")
    assert codes == [75, 75], err
    progress = read_checkpoint(groups / "slow disk" / "run" / "last.safetensors").progress
    assert (progress["epochs_done"], progress["steps_in_epoch"]) == (1, 2)


def test_under_a_budget_rank_zeros_clock_sets_the_learning_rate_of_all_ranks(groups: Path) -> None:
    first, second = (json.loads((groups / "budget" / f"rates_{rank}.json").read_text("utf-8")) for rank in (0, 1))
    assert len(set(first)) > 2, "the rate followed the clock"
    assert first == second
