"""Several processes that train one network: real ones, over gloo."""

import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from uumamba.runtime.errors import UsageError
from uumamba.runtime.rank_group import joined
from uumamba.runtime.rank_watch import BEAT_S, GRACE_S, SILENCE_S, WORD_S, RankWatch
from uumamba.runtime.ranks import ALONE, Place
from uumamba.training import Checkpoint, read_checkpoint
from uumamba.training.run_log import RunLog

SCRIPT = Path(__file__).with_name("rank_runs.py")
RUNS = runpy.run_path(str(SCRIPT))
Finished = list[tuple[int, str, str]]


def start(folder: Path, *names: str, ranks: int = 2) -> list[subprocess.Popen[str]]:
    """The processes of a group, or one alone, with torchrun's variables and without its seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2]), "PATH": os.environ["PATH"]}
    started = []
    for rank in range(ranks):
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        own = environment if ranks == 1 else environment | {key: str(value) for key, value in group.items()}
        command = [sys.executable, str(SCRIPT), str(folder), *names]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
        started.append(subprocess.Popen(command, env=own, **pipes))
    return started


def finish(processes: list[subprocess.Popen[str]], timeout: float = 120) -> Finished:
    """Exit code, output and errors of each, the same moment's."""
    done: Finished = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=timeout)
            done.append((process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return done


def run(folder: Path, *names: str, ranks: int = 2) -> Finished:
    return finish(start(folder, *names, ranks=ranks))


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of every member's run, trained by two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    for code, _, err in run(folder, "equal"):
        assert code == 0, err
    return folder / "equal"


def assert_equal_runs(found: Checkpoint, expected: Checkpoint, *, tolerance: float = 1e-9) -> None:
    assert found.net.keys() == expected.net.keys(), "a checkpoint holds the bare network"
    for part in ("net", "ema", "objective"):
        for name, tensor in getattr(expected, part).items():
            torch.testing.assert_close(getattr(found, part)[name], tensor, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["plain", "global", "looksam", "mesa", "udim"])
def test_two_ranks_with_half_a_batch_equal_one_process_with_the_whole(
    of_two_ranks: Path, tmp_path: Path, name: str
) -> None:
    RUNS["build"](name, run_dir=tmp_path).fit()
    found, expected = (read_checkpoint(folder / "last.safetensors") for folder in (of_two_ranks / name, tmp_path))
    assert_equal_runs(found, expected)
    assert expected.objective["loss.log_variances"].abs().max() > 1e-3
    rows, whole = (RunLog(folder / "metrics.jsonl").rows() for folder in (of_two_ranks / name, tmp_path))
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in whole], rel=1e-6)
    assert [row["dice"] for row in rows] == [0.5, 0.5, 0.5], "the first rank's"


def test_what_udim_adds_is_of_each_rank_s_own_domain(of_two_ranks: Path, tmp_path: Path) -> None:
    """Each rank has one domain above, and one process both; without the domains it would compare all samples."""
    strip = {"augment": lambda batch: {key: value for key, value in batch.items() if key != "domain"}}
    RUNS["build"]("udim", run_dir=tmp_path, **strip).fit()
    found, other = (read_checkpoint(folder / "last.safetensors") for folder in (of_two_ranks / "udim", tmp_path))
    assert found.method["steps"] == other.method["steps"] == RUNS["EPOCHS"] * RUNS["BATCHES"]
    with pytest.raises(AssertionError, match="not close"):
        assert_equal_runs(found, other, tolerance=1e-4)


def test_two_ranks_that_climb_by_themselves_equal_one_process_with_two_neighbourhoods(of_two_ranks: Path) -> None:
    trainer = RUNS["build"]("rank")
    step, whole = trainer.optimizer.step, trainer.objective
    halves = [type(ALONE)(), type(ALONE)()]
    for rank, half in enumerate(halves):
        half.rank, half.count = rank, 2
    for epoch in range(RUNS["EPOCHS"]):
        for parts in zip(*(RUNS["batches"](epoch, half) for half in halves), strict=True):
            step([lambda part=part: whole(trainer.net, part) for part in parts])
            trainer.scheduler.step()
            trainer.average.update_parameters(trainer.net)
    found, expected = read_checkpoint(of_two_ranks / "rank" / "last.safetensors"), trainer.state.checkpoint(None)
    assert_equal_runs(found, expected)
    one_neighbourhood = read_checkpoint(of_two_ranks / "global" / "last.safetensors")
    with pytest.raises(AssertionError, match="not close"):
        assert_equal_runs(found, one_neighbourhood, tolerance=1e-4)


def test_a_process_alone_is_the_first_of_one() -> None:
    net = torch.nn.Linear(1, 1)
    assert (ALONE.rank, ALONE.count, ALONE.first) == (0, 1, True)
    assert ALONE.wrap(net) is net
    assert ALONE.first_alone(lambda: 5) == 5
    assert ALONE.total([1.0, 2.0]) == [1.0, 2.0]


def test_torchruns_variables_place_a_process() -> None:
    assert Place.from_environment({}) == Place.from_environment({"WORLD_SIZE": "4"}) == Place(0, 1, 0)
    place = Place.from_environment({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert place == Place(rank=5, count=8, local_rank=1)
    assert place.device("cpu", found=0) == "cpu"
    assert place.device("cuda", found=2) == "cuda:1"
    with pytest.raises(UsageError, match="Process 2 of this machine has no CUDA device of its own, torch finds 1"):
        place.device("cuda", found=1)
    with pytest.raises(UsageError, match="--device cuda:0 is one device for 8 processes"):
        place.device("cuda:0", found=2)
    for wrong in ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, {"RANK": "a", "WORLD_SIZE": "2"}):
        with pytest.raises(UsageError, match="name no process of a group"):
            Place.from_environment(wrong)


@pytest.fixture
def watches() -> Callable[..., RankWatch]:
    """``watches(rank, silence_s=..., ended=[])``: of two ranks, over a real store."""
    port = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def make(rank: int, *, ended: list[int], silence_s: float = 0.4) -> RankWatch:
        store = TCPStore("127.0.0.1", port.port, is_master=False)
        watch = RankWatch(store, rank=rank, count=2, silence_s=silence_s, grace_s=0.2, end=ended.append)
        watch.keeps = port  # type: ignore[attr-defined]  # the server lives as long as its clients
        return watch

    return make


def ended_within(ended: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not ended and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(ended)


def test_a_rank_without_a_sign_of_life_ends_the_other_and_is_named(
    watches: Callable[..., RankWatch], capfd: pytest.CaptureFixture[str]
) -> None:
    ended: list[int] = []
    watch = watches(0, ended=ended)
    watch.begin()
    assert ended_within(ended, 10)
    assert ended == [1]
    assert "no sign of life of process 1" in capfd.readouterr().err


def test_ranks_that_live_go_on_and_the_first_that_ends_tells_the_other(
    watches: Callable[..., RankWatch], capfd: pytest.CaptureFixture[str]
) -> None:
    ended: list[int] = []
    first, second = watches(0, ended=ended, silence_s=2.0), watches(1, ended=[], silence_s=2.0)
    first.begin()
    second.begin()
    assert not ended_within(ended, 3.0), "both show signs of life"
    assert second.claim("the disk is full", exit_code=2) is None, "it was the first"
    second.leave()
    word = first.claim("the connection is closed", exit_code=1)
    assert word is not None
    assert (word.rank, word.exit_code, word.message) == (1, 2, "the disk is full")
    assert ended_within(ended, 10)
    assert ended == [2], "with the code of the one that spoke"
    assert not capfd.readouterr().err, "and without a word of its own"


def test_a_rank_that_leaves_in_time_is_not_ended(watches: Callable[..., RankWatch]) -> None:
    ended: list[int] = []
    watch = watches(0, ended=ended)
    watch.begin()
    watch.claim("something", exit_code=1)
    watch.leave()
    assert not ended_within(ended, 0.5)
    assert not any(thread.name == "rank watch" for thread in threading.enumerate())


@pytest.mark.slow
def test_stopped_at_one_rank_all_stop_and_any_number_goes_on(tmp_path: Path, bits: Callable[..., Any]) -> None:
    assert [code for code, _, _ in run(tmp_path / "whole", "whole")] == [0, 0]
    stopped = run(tmp_path / "same", "stopped")
    assert [code for code, _, _ in stopped] == [75, 75], stopped
    said = "".join(err for _, _, err in stopped)
    assert said.count("Stopped by SIGTERM in epoch 2 after 2 steps, with a checkpoint") == 1
    shutil.copytree(tmp_path / "same", tmp_path / "one")
    assert [code for code, _, _ in run(tmp_path / "same", "whole")] == [0, 0]
    found, expected = (bits(tmp_path / name / "last.safetensors") for name in ("same", "whole"))
    assert found == expected, "dropout and running statistics of both ranks included"
    assert len(expected["rest"]["random"]["others"]) == 1
    RUNS["build_random"](tmp_path / "one").fit(resume=True)
    assert [row["epoch"] for row in RunLog(tmp_path / "one" / "metrics.jsonl").rows()] == [0, 1, 2]


@pytest.mark.slow
def test_stopped_ranks_end_when_the_checkpoint_is_written_however_long_that_takes(tmp_path: Path) -> None:
    assert [code for code, _, _ in run(tmp_path, "stopped while saving")] == [75, 75]
    progress = read_checkpoint(tmp_path / "last.safetensors").progress
    assert (progress["epochs_done"], progress["steps_in_epoch"]) == (1, 2)


@pytest.mark.slow
def test_a_request_to_stop_after_training_ends_every_rank_as_one_that_can_be_resumed(tmp_path: Path) -> None:
    processes = start(tmp_path, "asked at the end")
    while not all((tmp_path / f"ready_{rank}").exists() for rank in (0, 1)):
        time.sleep(0.05)
    time.sleep(0.5)  # the second rank waits for the first
    for process in reversed(processes):
        process.send_signal(signal.SIGUSR1)
    done = finish(processes)
    assert [code for code, _, _ in done] == [75, 75]
    assert "".join(err for _, _, err in done) == "Stopped by SIGUSR1 in its work after training.\n"


def test_a_rank_that_is_gone_is_noticed_within_a_minute_by_default() -> None:
    assert SILENCE_S + GRACE_S + WORD_S + 2 * BEAT_S < 60


def test_a_group_without_a_meeting_place_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"MASTER_ADDR expected.*start all with torchrun"), joined("cpu"):
        pass


@pytest.mark.slow
def test_under_a_budget_the_first_ranks_clock_sets_every_ranks_learning_rate(tmp_path: Path) -> None:
    assert [code for code, _, _ in run(tmp_path, "budgeted")] == [0, 0]
    first, second = (json.loads((tmp_path / f"rates_{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1))
    assert len(set(first)) > 2, "the rate followed the clock"
    assert first == second


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message", "expected"),
    [
        ("failing", "patient007: its label holds 9; correct it.", 1),
        ("waiting", "the raw folder is empty; give another.", 2),
    ],
)
def test_the_first_error_is_said_once_and_ends_every_rank(
    tmp_path: Path, name: str, message: str, expected: int
) -> None:
    done = run(tmp_path, name)
    assert [code for code, _, _ in done] == [expected, expected]
    assert "".join(err for _, _, err in done) == f"{message}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"), [("killed", "gone without a word|no sign of life"), ("frozen", "no sign of life of process 1")]
)
def test_a_rank_that_is_gone_ends_the_other_within_a_minute(tmp_path: Path, name: str, reason: str) -> None:
    processes = start(tmp_path, name)
    try:
        _, err = processes[0].communicate(timeout=120)
        ended = time.time()
        processes[1].kill()
        gone, _ = processes[1].communicate()
    finally:
        for process in processes:
            process.kill()
    assert processes[0].returncode == 1
    assert len(re.findall(reason, err)) == 1, err
    assert ended - float(gone.split()[-1]) < 60
