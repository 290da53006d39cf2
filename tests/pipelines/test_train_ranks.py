"""Training in several processes of SLURM and torchrun."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipelines.run_files import last_of, rows_of, train_arguments

pytestmark = pytest.mark.slow

LEARNS_SOMETHING = (
    "net.features=[8,8,16]",
    "optim.base.lr=0.02",
    "optim.perturbation=global",
    "loss.batch_dice=false",
    "training.epochs=4",
    "training.batches_per_epoch=30",
    "training.batch_size=4",
    "training.validate_every=4",
    "training.ema_decay=0.9",
)
"""Two processes make the steps of one except for rounding, so that results of a short training agree."""

SAGM = "optim={name: SAGM, perturbation: %s, base: {name: SGD, lr: 0.01}}"
"""SGD, since Adam makes a full step for a gradient that is only rounding, so that runs diverge."""
FOUR_BITS = "quantization={weight_bits: 4, act_bits: 4, calibration_batches: 2, gaqat: {every: 3, threshold: 0.6}}"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SCHEDULER = {
    "srun": """#!/bin/bash
echo $$ > srun.pid
trap 'kill -USR1 $(jobs -p)' USR1
for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & done
code=0
for task in $(jobs -p); do
    while kill -0 $task 2>/dev/null; do wait $task; found=$?; done
    if [ $found -gt $code ]; then code=$found; fi
done
exit $code
""",
    "scontrol": """#!/bin/bash
echo "$@" >> scontrol.log
if [ "$1" = show ]; then echo localhost; fi
""",
}
"""Stand-ins for a cluster's commands: srun starts tasks, passes signals on, and ends with the largest code."""


def command(prepared: Path, run: Path, overrides: tuple[str, ...]) -> list[str]:
    return ["-m", "uumamba", *train_arguments(prepared, run, overrides, "--resume")]


def start(arguments: list[str], folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    own = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])} | environment
    with (folder / "errors.txt").open("wb") as errors:
        return subprocess.Popen(arguments, cwd=folder, env=own, stderr=errors)


def finish(process: subprocess.Popen[bytes], folder: Path) -> tuple[int, str]:
    """Return exit code and stderr of all processes."""
    code = process.wait(timeout=600)
    return code, (folder / "errors.txt").read_text(encoding="utf-8")


def wait_for_rows(run: Path, rows: int, process: subprocess.Popen[bytes]) -> None:
    while len(rows_of(run)) < rows and process.poll() is None:
        time.sleep(0.05)


def slurm_script(repository: Path, folder: Path, arguments: list[str]) -> Path:
    """Write the manual's script with this test's command, and stand-ins for SLURM's commands."""
    page = (repository / "docs" / "how_to" / "slurm.md").read_text("utf-8")
    text = re.search(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", page, re.DOTALL)
    assert text is not None
    words = " ".join(f'"{word}"' for word in [sys.executable, *arguments])
    script, changed = re.subn(r"\buumamba train .*(?=')", lambda _: words, text[1])
    assert changed == 1
    for name, content in SCHEDULER.items():
        (folder / name).write_text(content, encoding="utf-8")
        (folder / name).chmod(0o755)
    (folder / "slurm.sh").write_text(script.replace("29500", "29517"), encoding="utf-8")
    return folder / "slurm.sh"


def test_a_run_resumed_with_two_processes_then_one_then_two_ends_with_the_same_dice(
    repository: Path, tiny_prepared: Path, tiny_overrides: tuple[str, ...], tmp_path: Path
) -> None:
    overrides, run = (*tiny_overrides, *LEARNS_SOMETHING), tmp_path / "shared"
    arguments = command(tiny_prepared, run, overrides)

    script = slurm_script(repository, tmp_path, arguments)
    job = {"SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "here", "SLURM_JOB_ID": "41"}
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    process = start(["bash", str(script)], tmp_path, PATH=path, **job)
    wait_for_rows(run, 1, process)
    assert process.poll() is None, finish(process, tmp_path)
    os.kill(int((tmp_path / "srun.pid").read_text(encoding="utf-8")), signal.SIGUSR1)  # as --signal does
    code, said = finish(process, tmp_path)
    assert code == 75, said
    assert said.count("Stopped by SIGUSR1") == 1
    assert "requeue 41" in (tmp_path / "scontrol.log").read_text(encoding="utf-8")
    assert not any(name.startswith("module.") for name in last_of(run).net)

    process = start([sys.executable, *arguments], tmp_path)
    wait_for_rows(run, 2, process)
    process.terminate()
    code, said = finish(process, tmp_path)
    assert code == 75, said

    code, said = finish(start([*TORCHRUN, *arguments], tmp_path), tmp_path)
    assert code == 0, said
    assert said.count("trained ") == 1, "one process prints"
    assert [row["epoch"] for row in rows_of(run)] == list(range(4))

    alone = command(tiny_prepared, tmp_path / "alone", overrides)
    code, said = finish(start([sys.executable, *alone], tmp_path), tmp_path)
    assert code == 0, said
    shared, single = rows_of(run)[-1], rows_of(tmp_path / "alone")[-1]
    assert shared["dice"] == pytest.approx(single["dice"], abs=0.02), json.dumps([shared, single])
    assert single["dice"] > 0.2, "the network has learned"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("training.batch_size=3",), "batch"),
        ((SAGM % "rank", FOUR_BITS), "optim.perturbation"),
    ],
)
def test_an_error_of_all_ranks_is_reported_once(
    tiny_prepared: Path, tiny_overrides: tuple[str, ...], tmp_path: Path, overrides: tuple[str, ...], words: str
) -> None:
    """Choose an indivisible batch, and scales frozen by one rank's gradients."""
    arguments = command(tiny_prepared, tmp_path / "run", (*tiny_overrides, *overrides))
    code, said = finish(start([*TORCHRUN, *arguments], tmp_path), tmp_path)
    assert code == 1, "torchrun's"
    ours = [line for line in said.splitlines() if line.startswith("uumamba: ") and "warning" not in line]
    assert len(ours) == 1, said
    assert words in said


def test_a_process_of_several_keeps_its_exit_code_where_the_interpreters_teardown_aborts(tmp_path: Path) -> None:
    # A thread of gloo may abort the teardown, about once in a hundred runs; here an object does at its deletion.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nclass Late:\n    def __del__(self, abort=os.abort): abort()\nsys.late = Late()\n",
        encoding="utf-8",
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29533",
    }
    arguments = [sys.executable, "-m", "uumamba", "train", "demo", "--data", "nowhere", "--out", "run"]
    processes = [
        subprocess.Popen(
            arguments,
            cwd=tmp_path,
            env=environment | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], said
    assert sum("nowhere" in each for each in said) == 1, said


def test_two_processes_train_in_four_bits_as_one_does(
    tiny_prepared: Path, tiny_overrides: tuple[str, ...], tmp_path: Path
) -> None:
    overrides = (*tiny_overrides, "loss.batch_dice=false", SAGM % "global", FOUR_BITS)
    rows, scales = [], []
    for name, launcher in (("shared", TORCHRUN), ("alone", [sys.executable])):
        arguments = command(tiny_prepared, tmp_path / name, overrides)
        code, said = finish(start([*launcher, *arguments], tmp_path), tmp_path)
        assert code == 0, said
        rows.append(rows_of(tmp_path / name))
        state = last_of(tmp_path / name).net
        scales.append({key: float(value) for key, value in state.items() if key.endswith("input_quantizer.scale")})
    assert scales[0] == pytest.approx(scales[1], rel=0.05)
    for shared, alone in zip(*rows, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=0.02)
        assert shared["gaqat"]["frozen_fraction"] == pytest.approx(alone["gaqat"]["frozen_fraction"], abs=0.2)
