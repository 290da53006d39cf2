"""``uumamba train`` in a process of its own, with one fault after the other: nothing is lost, and the fix is printed.

Tests of the faults of a training run:

| fault | injected by | test, where it is not here |
|---|---|---|
| killed while a checkpoint is written | SIGKILL, halfway and between its two moves | training/test_kill.py |
| killed anywhere | SIGKILL at 20 random moments | test_killed_train.py |
| disk full | a tmpfs of 2.5 checkpoints; where none may be mounted, a quota | |
| read-only output | permissions, which root has to obey too | |
| checkpoint altered | a flipped byte; every byte and cut: | training/test_checkpoint.py |
| configuration changed | ``--set`` | |
| loader's worker killed | SIGKILL | |
| loader's worker raises | truncated prepared arrays | |
| out of memory | a limit of the address space; every optimizer: | training/test_out_of_memory.py |
| NaN in the second pass | the loss, times NaN in that pass alone | |
| SIGTERM, SIGUSR1 | signals; at many moments: | training/test_resume.py |
| two processes in one folder | a second one beside the first | |
| clock jumps, files of any age | a clock that goes back and forth, ``utime`` | training/test_save_by_clock.py |
| small or read-only ``/dev/shm`` | a tmpfs in its place, or the quota | |
"""

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uumamba.runtime.errors import EXIT_FAILED, EXIT_STOPPED_RESUMABLE, EXIT_WRONG_USE
from uumamba.training import RunLog, read_checkpoint

pytestmark = pytest.mark.slow

SHORT = ("training.epochs=3", "training.save_every_minutes=0")
LONG = ("training.epochs=500", "training.batches_per_epoch=200")
MAY_NOT_MOUNT = 77
State = Callable[[Path], dict[str, Any]]


class Runs:
    """Trainings of the tiny phantom, each in its own process."""

    def __init__(self, cli: Any, prepared: Path, tiny: tuple[str, ...], folder: Path) -> None:
        self.cli, self.prepared, self.tiny, self.folder = cli, prepared, tiny, folder
        self.stderr = folder / "stderr"

    def start(self, run: Path, *options: str, overrides: tuple[str, ...] = SHORT, **code: str) -> int:
        """Start a training; return its process id."""
        settings = [word for key in (*self.tiny, *overrides) for word in ("--set", key)]
        arguments = ["train", "demo", "--device", "cpu", "--data", str(self.prepared), "--out", str(run), *settings]
        return self.cli.start(*arguments, *options, stderr=self.stderr, **code)

    def run(self, run: Path, *options: str, **how: Any) -> tuple[int | None, str]:
        """Return exit code and stderr."""
        code = self.cli.wait(self.start(run, *options, **how))
        return code, self.stderr.read_text(encoding="utf-8")

    def end(self, pid: int, seconds: float = 60) -> tuple[int | None, str]:
        """Return exit code and stderr of a running process."""
        return self.cli.wait(pid, seconds=seconds), self.stderr.read_text(encoding="utf-8")


@pytest.fixture
def runs(forked_cli: Any, tiny_prepared: Path, tiny_overrides: tuple[str, ...], tmp_path: Path) -> Runs:
    return Runs(forked_cli, tiny_prepared, tiny_overrides, tmp_path)


@pytest.fixture(scope="module")
def whole(
    forked_cli: Any, tiny_prepared: Path, tiny_overrides: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run without a fault."""
    folder = tmp_path_factory.mktemp("whole")
    code, said = Runs(forked_cli, tiny_prepared, tiny_overrides, folder).run(folder / "run")
    assert code == 0, said
    return folder / "run"


STOP_IN_SECOND_EPOCH = """
import os, signal
from uumamba.training.trainer import Trainer
count = Trainer._count_step
def count_and_signal(self, loss):
    count(self, loss)
    if self.state.progress.steps_done == 4:
        os.kill(os.getpid(), signal.{name})
Trainer._count_step = count_and_signal
"""


@pytest.fixture(scope="module")
def stopped(
    forked_cli: Any, tiny_prepared: Path, tiny_overrides: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run stopped after four of its nine steps, to be copied."""
    folder = tmp_path_factory.mktemp("stopped")
    runs = Runs(forked_cli, tiny_prepared, tiny_overrides, folder)
    code, said = runs.run(folder / "run", before=STOP_IN_SECOND_EPOCH.format(name="SIGTERM"))
    assert code == EXIT_STOPPED_RESUMABLE, said
    return folder / "run"


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def wait_for(found: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.01)
    raise AssertionError("it did not come")


def workers_of(pid: int) -> list[int]:
    """List the loader's workers; a run starts other processes too, such as git."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if name_of(child) == "pt_data_worker"]


def name_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:  # it has ended
        return ""


def test_a_signal_ends_it_with_a_checkpoint_and_the_code_for_a_requeue(
    runs: Runs, whole: Path, stopped: Path, state_of: State, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, said = runs.run(run, before=STOP_IN_SECOND_EPOCH.format(name="SIGUSR1"))
    assert code == EXIT_STOPPED_RESUMABLE
    assert "Stopped by SIGUSR1 in epoch 2 after 1 steps" in said
    assert state_of(run) == state_of(stopped), "which SIGTERM stopped"
    assert runs.run(run, "--resume")[0] == 0
    assert state_of(run) == state_of(whole)


def test_a_flipped_byte_is_noticed_and_the_run_goes_on_from_the_checkpoint_before(
    runs: Runs, run: Path, whole: Path, state_of: State
) -> None:
    last = run / "fold_0" / "last.safetensors"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    code, said = runs.run(run, "--resume")
    assert code == 0
    assert re.search(r"last\.safetensors .*previous\.safetensors", said)
    assert (run / "fold_0" / "damaged.safetensors").read_bytes() == bytes(content), "set aside, not deleted"
    assert state_of(run) == state_of(whole)


def test_another_configuration_is_refused_unless_forced_or_without_effect_on_the_result(
    runs: Runs, run: Path, whole: Path, state_of: State
) -> None:
    before = state_of(run)
    code, said = runs.run(run, "--resume", overrides=(*SHORT, "optim.rho=0.1"))
    assert code == EXIT_WRONG_USE
    assert "optim.rho" in said
    assert state_of(run) == before
    forced = Path(shutil.copytree(run, run.with_name("forced")))
    assert runs.run(forced, "--resume", "--force", overrides=(*SHORT, "optim.rho=0.1"))[0] == 0
    free = ("training.epochs=3", "training.save_every_minutes=7", "training.workers=2")
    code, said = runs.run(run, "--resume", overrides=free)
    assert code == 0, said
    assert state_of(run) == state_of(whole)


def test_a_second_process_in_the_folder_is_refused_and_the_first_goes_on(runs: Runs, tmp_path: Path) -> None:
    first = runs.start(tmp_path / "run", overrides=LONG)
    wait_for(lambda: (tmp_path / "run" / "fold_0" / "config.json").is_file())
    code, said = runs.run(tmp_path / "run", "--resume", overrides=LONG)
    assert code == EXIT_WRONG_USE
    assert f"process {first}" in said
    assert runs.end(first, seconds=0.05)[0] is None, "it runs"
    os.kill(first, signal.SIGKILL)
    assert runs.end(first)[0] == -signal.SIGKILL


FILL_AFTER_ONE = """
import resource
from uumamba.training.run_folder import RunFolder
save = RunFolder.save
def save_within_quota(self, checkpoint, *, best=False):
    if (self.path / "last.safetensors").exists():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    save(self, checkpoint, best=best)
RunFolder.save = save_within_quota
"""


def test_a_full_disk_ends_it_with_the_old_files_whole_and_it_goes_on_when_there_is_room(
    runs: Runs, whole: Path, state_of: State, tmp_path: Path
) -> None:
    run, disk = tmp_path / "run", tmp_path / "disk"
    disk.mkdir()
    kilobytes = (whole / "fold_0" / "last.safetensors").stat().st_size * 5 // 2 // 1024
    mount = f"mount({str(disk)!r}, 'size={kilobytes}k')"
    keep = f"import shutil; shutil.copytree({str(disk / 'run')!r}, {str(run)!r})"
    code, said = runs.run(disk / "run", before=mount, after=keep)
    if code == MAY_NOT_MOUNT:
        code, said = runs.run(run, before=FILL_AFTER_ONE)
    assert code == EXIT_FAILED
    assert re.search(r"uumamba: .*\.safetensors could not be written", said)
    assert "Traceback" not in said
    kept = {path.name for path in (run / "fold_0").iterdir()}
    assert not [name for name in kept if name.startswith(".unfinished")]
    assert read_checkpoint(run / "fold_0" / "last.safetensors").progress["steps_done"] >= 1
    assert runs.run(run, "--resume")[0] == 0
    assert state_of(run) == state_of(whole)


def test_a_folder_that_may_not_be_written_to_is_refused_before_any_step(runs: Runs, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    code, said = runs.run(locked / "run", before="obey_permissions()")
    assert code == EXIT_WRONG_USE
    assert "Permission denied" in said
    assert "epoch 1" not in said
    assert not list(locked.iterdir())


def test_a_killed_worker_ends_it_within_seconds_and_names_the_case(runs: Runs, tmp_path: Path) -> None:
    pid = runs.start(tmp_path / "run", overrides=(*LONG, "training.workers=2"))
    worker = wait_for(lambda: workers_of(pid))[0]
    time.sleep(1)  # for its first case
    begin = time.monotonic()
    os.kill(worker, signal.SIGKILL)
    code, said = runs.end(pid, seconds=30)
    assert code == EXIT_FAILED
    assert time.monotonic() - begin < 30
    assert re.search(r"SIGKILL.* patient\d+_frame\d+.*training\.workers=0", said, re.DOTALL)
    assert "Traceback" not in said


@pytest.mark.parametrize("workers", [0, 2])
def test_an_array_that_cannot_be_read_ends_it_with_the_case(runs: Runs, tmp_path: Path, workers: int) -> None:
    runs.prepared = Path(shutil.copytree(runs.prepared, tmp_path / "prepared"))
    for image in runs.prepared.glob("cases/*/image.npy"):
        image.write_bytes(image.read_bytes()[:2000])
    code, said = runs.run(tmp_path / "run", overrides=(*SHORT, f"training.workers={workers}"))
    assert code == EXIT_FAILED
    assert re.search(r"uumamba: patient\d+_frame\d+: .*image\.npy", said)


NAN_IN_PASSES = """
from itertools import count
from uumamba.losses import DeepSupervisionLoss
forward, calls = DeepSupervisionLoss.forward, count(1)
def broken(self, logits, label):
    return forward(self, logits, label) * (float("nan") if next(calls) in {calls} else 1.0)
DeepSupervisionLoss.forward = broken
"""


def test_nan_in_the_second_pass_is_skipped_counted_and_leaves_the_weights_unclimbed(
    runs: Runs, stopped: Path, tmp_path: Path
) -> None:
    """Step 4 has passes 7 and 8. The checkpoint before it has the weights that the skipped step must leave."""
    run = tmp_path / "run"
    stop = STOP_IN_SECOND_EPOCH.format(name="SIGTERM")
    code, _ = runs.run(run, before=NAN_IN_PASSES.replace("{calls}", "{8}") + stop)
    assert code == EXIT_STOPPED_RESUMABLE
    after, before = (read_checkpoint(run / "fold_0" / f"{name}.safetensors") for name in ("last", "previous"))
    assert after.progress["steps_done"] == 4
    assert after.progress["skipped_steps"] == 1
    assert before.progress["steps_done"] == 3
    learned = [name for name in before.net if not name.endswith("num_batches_tracked")]
    assert all(after.net[name].equal(before.net[name]) for name in learned)
    assert runs.run(run, "--resume")[0] == 0
    assert [row["skipped_steps"] for row in RunLog(run / "fold_0" / "metrics.jsonl").rows()] == [0, 1, 1]


def test_nan_in_too_many_steps_in_a_row_ends_it_and_names_the_step(runs: Runs, tmp_path: Path) -> None:
    code, said = runs.run(
        tmp_path / "run",
        overrides=(*SHORT, "training.max_skipped_in_a_row=2"),
        before=NAN_IN_PASSES.replace("{calls}", "{2, 8, 10}"),
    )
    assert code == EXIT_FAILED
    assert "step 2 of epoch 2" in said
    kept = read_checkpoint(tmp_path / "run" / "fold_0" / "last.safetensors")
    assert all(weight.isfinite().all() for weight in kept.net.values())


LITTLE_MEMORY = """
import re, resource
from pathlib import Path
import torch
from uumamba.training.adaptive_microbatch import AdaptiveMicrobatch
torch.backends.mkldnn.set_flags(False)  # without room for its own code it may crash the process
step = AdaptiveMicrobatch.step
def step_in_little(self, batch, **how):
    used = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    resource.setrlimit(resource.RLIMIT_AS, (used + 130 * 2**20, resource.RLIM_INFINITY))
    try:
        return step(self, batch, **how)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
AdaptiveMicrobatch.step = step_in_little
"""


def test_memory_that_really_runs_out_halves_the_batch_and_training_goes_on(runs: Runs, tmp_path: Path) -> None:
    """Torch's own allocator fails: the step gets 130 MB of addresses, and 64 patches need more."""
    large = ("training.batch_size=64", "training.patch_size=[96,96]", "training.batches_per_epoch=1")
    code, said = runs.run(tmp_path / "run", overrides=("training.epochs=2", *large), before=LITTLE_MEMORY)
    assert code == 0, said
    assert said.count("Memory ran out with 64 samples at once") == 1
    at_once = read_checkpoint(tmp_path / "run" / "fold_0" / "last.safetensors").progress["samples_at_once"]
    assert 4 <= at_once <= 32


def test_without_shared_memory_workers_are_refused_with_the_fix_and_none_are_needed(runs: Runs, tmp_path: Path) -> None:
    before = "mount('/dev/shm', 'size=64k')"
    code, said = runs.run(tmp_path / "run", overrides=(*SHORT, "training.workers=2"), before=before)
    if code == MAY_NOT_MOUNT:
        before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
        code, said = runs.run(tmp_path / "run", overrides=(*SHORT, "training.workers=2"), before=before)
    else:
        assert runs.run(tmp_path / "alone", before=before)[0] == 0
    assert code == EXIT_WRONG_USE
    assert re.search(r"/dev/shm.*training\.workers=0", said, re.DOTALL)
    code, said = runs.run(tmp_path / "run", overrides=(*SHORT, "training.workers=2"), before="mount('/dev/shm', 'ro')")
    if code != MAY_NOT_MOUNT:
        assert code == EXIT_WRONG_USE
        assert "training.workers=0" in said
