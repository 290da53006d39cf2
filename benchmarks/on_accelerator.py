r"""Everything to measure on an accelerator, in short calls.

    python -m benchmarks.on_accelerator --pack runs/acdc_pack.zip --out runs/accelerator --call-minutes 9

Stages run in this order: ``--config`` on fold 0 with a budget of 25 minutes (Dice against minutes), tests marked
`gpu`, the scan and the layer against the memory rate and mamba_ssm, a training step with SAM, and ``--config`` on all
cases with the minutes that are left. A call ends before ``--call-minutes`` with exit code 75, and the same command
continues: training from its checkpoint, other stages from their start. `benchmarks.acdc_pack` makes the pack of cases
that were prepared with ``--config``. Results go to OUT/results, at most eight files. A stage that fails is listed in
OUT/results/stages.json with the end of its output, and the next one runs. ``--rehearse`` does the same in minutes on a
CPU, with a phantom and small sizes.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.acdc_pack import read_pack, write_pack
from benchmarks.result_file import ROOT
from uumamba.runtime.errors import require
from uumamba.runtime.files import make_folder, write_json

CONFIG, MINUTES, CALL_MINUTES = "acdc_best", 25.0, 9.0
STOPPED = 75
LAST_LINES = 40
GRACE_S = 45.0
"""Seconds before the end of a call that training gets to write its checkpoint."""


@dataclass(frozen=True)
class Stage:
    """One measurement, in a process of its own.

    Attributes:
        name: name in the list of stages.
        module: Python module to run.
        options: its command line.
        least_s: seconds that must be left to start it.
        resumes: a call ends it with a checkpoint, and the next one continues.
    """

    name: str
    module: str
    options: tuple[str, ...]
    least_s: float = 60.0
    resumes: bool = False


def main(given: Sequence[str] | None = None) -> int:
    """Run the stages that are left; return 75 if some are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, help="prepared cases in one file")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and results")
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="minutes of training on fold 0")
    parser.add_argument("--call-minutes", type=float, default=CALL_MINUTES, help="minutes after which this call ends")
    parser.add_argument("--rehearse", action="store_true", help="a phantom and small sizes on the CPU")
    options = parser.parse_args(given)
    end = time.monotonic() + 60 * options.call_minutes
    make_folder(options.out / "results")
    prepared = options.out / "prepared"
    if options.rehearse:
        options.pack = options.out / "phantom_pack.zip"
        if not options.pack.is_file():
            write_pack(prepare_phantom(options.out / "phantom", options.config), options.pack)
    require(options.pack, "--pack", got=None, expected="a file of benchmarks.acdc_pack", fix="or add --rehearse")
    read_pack(options.pack, prepared)
    done = _read_done(options.out)
    for stage in list_stages(options, prepared):
        if stage.name in done:
            continue
        left_s = end - time.monotonic()
        if left_s < stage.least_s:
            return STOPPED
        found = run_stage(stage, left_s)
        if found is None:
            return STOPPED
        done[stage.name] = found
        write_json(options.out / "results" / "stages.json", done)
        print(f"{stage.name}: exit code {found['exit_code']}, {found['seconds']} s")
    return int(any(found["exit_code"] for found in done.values()))


def list_stages(options: argparse.Namespace, prepared: Path) -> list[Stage]:
    """List the stages in order."""
    results, quick = options.out / "results", ("--quick",) if options.rehearse else ()
    device = ("--device", "cpu" if options.rehearse else "cuda")
    training = ("--config", options.config, "--prepared", str(prepared), *device, *quick)
    if options.rehearse:
        small = ("training.batch_size=2", "training.batches_per_epoch=2", "dataset.name=phantom")
        training += tuple(word for each in small for word in ("--set", each))

    def save(name: str) -> tuple[str, ...]:
        return ("--json", str(results / f"{name}.json"))

    def train(fold: str, minutes: float) -> tuple[str, ...]:
        own = ("--out", str(options.out / f"fold_{fold}"), "--fold", fold, "--minutes", str(minutes))
        return (*training, *own, *save(f"acdc_minutes_{fold}"))

    return [
        Stage("acdc, fold 0", "benchmarks.acdc_minutes", train("0", options.minutes), 90.0, resumes=True),
        Stage("tests", "pytest", ("-q", "-m", "gpu", "-p", "no:cacheprovider", str(ROOT / "tests"))),
        Stage("scan", "benchmarks.scan", (*device, *quick, *save("scan"))),
        Stage("layer", "benchmarks.layer", (*device, *quick, *save("layer"))),
        Stage("SAM step", "benchmarks.train_step", ("--config", options.config, *device, *quick, *save("train_step"))),
        Stage("acdc, all cases", "benchmarks.acdc_minutes", train("all", options.minutes), 90.0, resumes=True),
    ]


def run_stage(stage: Stage, left_s: float) -> dict[str, Any] | None:
    """Run a stage; None if the time of the call ended it."""
    began = time.monotonic()
    ending = ("--call-minutes", f"{(left_s - GRACE_S) / 60:.2f}") if stage.resumes else ()
    command = [sys.executable, "-m", stage.module, *stage.options, *ending]
    try:
        done = subprocess.run(
            command, cwd=ROOT, timeout=left_s, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
        )
    except subprocess.TimeoutExpired:
        return None
    print(done.stdout)
    if done.returncode == STOPPED:
        return None
    lines = done.stdout.splitlines()[-LAST_LINES:]
    return {"exit_code": done.returncode, "seconds": round(time.monotonic() - began), "output": lines}


def prepare_phantom(folder: Path, config: str) -> Path:
    """Prepare a phantom in ACDC's layout with the configuration's recipe."""
    from benchmarks import train_step
    from uumamba.config import read_config

    return train_step.prepare_phantom(folder, read_config(config)).path


def _read_done(out: Path) -> dict[str, Any]:
    path = out / "results" / "stages.json"
    done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return done


if __name__ == "__main__":
    sys.exit(main())
