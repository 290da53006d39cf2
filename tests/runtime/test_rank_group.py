"""Tests of groups of real processes over gloo."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.forked_ranks import read_group
from uumamba.runtime.rank_group import join_group


@pytest.fixture(scope="module")
def groups(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all jobs at the same time; return their parent folder."""
    folder = tmp_path_factory.mktemp("groups")
    script = Path(__file__).with_name("rank_jobs.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    subprocess.run([sys.executable, str(script), str(folder)], env=environment, check=True, timeout=180)
    return folder


@pytest.mark.parametrize(
    ("job", "codes", "message"),
    [
        ("succeeds", [0, 0], ""),
        ("fails", [1, 1], "patient007: its label holds 9; correct it."),
        ("fails on rank zero", [2, 2], "--raw: got an empty folder, expected scans."),
        ("killed", [1, -9], "disappeared|no heartbeat of process 1"),
        ("frozen", [1, -9], "no heartbeat of process 1"),
        ("stopped", [75, 75], "Stopped by SIGUSR1 in its work after training."),
    ],
)
def test_every_rank_ends_with_the_first_ranks_exit_code_and_the_reason_is_printed_once(
    groups: Path, job: str, codes: list[int], message: str
) -> None:
    found, out, err = read_group(groups / job)
    assert found == codes, err
    if job == "succeeds":
        assert (out, err) == (["all calls answered\n"] * 2, "")
    else:
        assert len(re.findall(message, err)) == err.count("\n") == 1, err


@pytest.mark.parametrize("job", ["killed", "frozen"])
def test_a_lost_rank_ends_the_other_within_a_minute(groups: Path, job: str) -> None:
    (_, ended), _ = json.loads((groups / job / "ends.json").read_text(encoding="utf-8"))
    _, (_, lost), _ = read_group(groups / job)
    assert 0 < ended - float(lost) < 60


@pytest.mark.slow
def test_the_processes_of_torchrun_can_join_a_second_group(repository: Path, tmp_path: Path) -> None:
    script = tmp_path / "joins.py"
    script.write_text(
        "from uumamba.runtime.rank_group import join_group\n"
        "for number in range(2):\n"
        "    with join_group('cpu') as ranks:\n"
        "        print(ranks.gather(number), ranks.on_rank_zero(lambda: None), flush=True)\n",
        encoding="utf-8",
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, env=environment, check=False, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["[0, 0] None"] * 2 + ["[1, 1] None"] * 2


def test_a_group_without_an_address_is_refused(monkeypatch: pytest.MonkeyPatch, refused: Any) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with refused("MASTER_ADDR, MASTER_PORT"), join_group("cpu"):
        pass
