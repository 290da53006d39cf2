r"""ACDC on an accelerator within a given number of minutes.

    python -m benchmarks.acdc_minutes --prepared PREPARED --out RUN --minutes 25 --call-minutes 9 \
        --json benchmarks/results/acdc_minutes.json

The table shows Dice against minutes, the GPU's use, and the time waiting for data. Training is by `schedule:
{name: budget}`, so the learning rate ends at 0 with the minutes. A call stops after --call-minutes with a checkpoint
and exit code 75, and the same command continues, so a short loan of an accelerator is enough. The last call predicts
the validation cases into RUN/predictions, writes the weights in float16 (RUN/weights.safetensors), and scores on the
native grids if the labels named in PREPARED/dataset.json exist. `--only-score` repeats this scoring on a machine that
has the labels. With `--fold all` every case is for training, and nothing is scored. Without an accelerator nothing is
trained, and the table reports "not measured".
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from statistics import fmean
from typing import Any

import torch

from benchmarks.result_file import write_result
from benchmarks.ship_model import LARGEST_MB, strip_checkpoint
from uumamba.config import RunConfig, read_config
from uumamba.data.prepared import PreparedFolder
from uumamba.runtime.stop import StoppedOnRequest, StopRequest
from uumamba.training import read_checkpoint, save_checkpoint
from uumamba.training.run_folder import RunLog

CONFIG = "acdc_2d"
SAMPLE_EVERY_S = 2.0
NOT_MEASURED = "not measured"


def main(given: Sequence[str] | None = None) -> int:
    """Train, predict, score and write; return 75 if training must continue."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, help="ACDC, prepared by the configuration's recipe")
    parser.add_argument("--out", type=Path, help="the run's folder")
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--fold", default="0", choices=("0", "all"), help="fold to train, or all cases")
    parser.add_argument("--minutes", type=float, default=25.0, help="total minutes of training")
    parser.add_argument("--call-minutes", type=float, help="minutes after which this call stops with a checkpoint")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only-score", action="store_true", help="score the existing predictions")
    parser.add_argument("--quick", action="store_true", help="a tenth of a minute, as a test")
    parser.add_argument("--json", type=Path, help="file for the table")
    options = parser.parse_args(given)
    minutes = 0.1 if options.quick else options.minutes
    overrides = (*options.overrides, f"schedule={{name: budget, minutes: {minutes}}}")
    config = read_config(options.config, overrides)
    if options.device.startswith("cuda") and not torch.cuda.is_available() and not options.only_score:
        print("No accelerator found: nothing is trained.", file=sys.stderr)
        return publish([make_row(minutes=minutes)], options, overrides, minutes)
    if options.prepared is None or options.out is None:
        parser.error("--prepared, --out: got none, expected both to train or score. Fix: give both options.")
    if not options.only_score:
        try:
            with stop_after(options.call_minutes), record_gpu_use(options.out):
                train(config, prepared=options.prepared, out=options.out, device=options.device, fold=options.fold)
        except StoppedOnRequest as stopped:
            print(stopped, file=sys.stderr)
            return stopped.exit_code
        print(f"weights: {write_weights(options.out, options.fold):.1f} MB (at most {LARGEST_MB} to ship)")
        if options.fold == "all":
            return publish([make_row(minutes=minutes, name="all cases, not scored")], options, overrides, minutes)
        predict(options.out, prepared=options.prepared, device=options.device)
    rows = summarize_validations(options.out / "run" / "fold_0")
    native = compute_native_dice(options.out, options.prepared)
    rows.append(make_row(minutes=minutes, dice=native, name="on the scans' own grids"))
    return publish(rows, options, overrides, minutes)


def train(config: RunConfig, *, prepared: Path, out: Path, device: str, fold: str) -> None:
    """Train one fold, or all cases, for the rest of the budget."""
    from uumamba.pipelines.train import train

    train(config, data=prepared, out=out / "run", fold=fold, resume=True, device=device)


def predict(out: Path, *, prepared: Path, device: str) -> None:
    """Predict the validation cases of fold 0 on their native grids."""
    from uumamba.pipelines.predict import predict

    how: dict[str, Any] = {"fold": "0", "split": "training", "case_fold": 0}
    predict(out / "run", [prepared], out=out / "predictions", device=device, **how)


def compute_native_dice(out: Path, prepared: Path) -> float | None:
    """Return the mean Dice of the predictions, None without labels."""
    from uumamba.evaluation import mean_dice_of
    from uumamba.pipelines.evaluate import evaluate_folder

    cases = PreparedFolder(prepared).manifest.select(split="training", fold=0)
    if not all(case.label is not None and Path(case.label).is_file() for case in cases):
        return None
    scores = evaluate_folder(out / "predictions", prepared, out, split="training", fold=0, failed=())
    return float(mean_dice_of(scores.rows).as_dict()["dice"])


def write_weights(out: Path, fold: str) -> float:
    """Write the weights in float16 and return their size in MB.

    The file is a checkpoint, so it predicts.
    """
    path = out / "weights.safetensors"
    save_checkpoint(path, strip_checkpoint(read_checkpoint(out / "run" / f"fold_{fold}" / "last.safetensors")))
    return path.stat().st_size / 1e6


def summarize_validations(fold: Path) -> list[dict[str, Any]]:
    """Make a row per validation: minutes of training so far and Dice.

    GPU use and time waiting for data are means since the previous row.
    """
    rows, elapsed_s, first = [], 0.0, 0
    log, used = RunLog(fold / "metrics.jsonl").rows(), read_gpu_use(fold.parent.parent)
    for epoch, row in enumerate(log):
        elapsed_s += row["seconds"]
        if row.get("dice") is None:
            continue
        found = [percent for at, percent in used if first <= at <= epoch]
        waited = fmean(each["data_wait"] for each in log[first : epoch + 1])
        rows.append(
            make_row(minutes=elapsed_s / 60, dice=row["dice"], use=fmean(found) if found else None, wait=100 * waited)
        )
        first = epoch + 1
    return rows


def make_row(
    *,
    minutes: float,
    dice: float | None = None,
    use: float | None = None,
    wait: float | None = None,
    name: str = "on the prepared grid",
) -> dict[str, Any]:
    return {
        "mean Dice of fold 0": name,
        "minutes": round(minutes, 1),
        "value": NOT_MEASURED if dice is None else round(dice, 4),
        "GPU in use %": NOT_MEASURED if use is None else round(use),
        "waited for data %": NOT_MEASURED if wait is None else round(wait, 1),
    }


def publish(
    rows: Sequence[Mapping[str, Any]], options: argparse.Namespace, overrides: Sequence[str], minutes: float
) -> int:
    """Print the table, and write it if ``--json`` is given."""
    for row in rows:
        print(row)
    if options.json is not None:
        about = (
            f"{options.config}, fold {options.fold} of the 100 training patients, {minutes:g} minutes of training "
            "(`python -m benchmarks.acdc_minutes`). Minutes are those of training with validation; GPU use and waiting "
            "time are means since the previous row. The aim is 0.91 on the native grids within 25 minutes."
        )
        title = "ACDC in minutes on an accelerator"
        write_result(options.json, rows, title=title, about=about, configs=[(options.config, overrides)])
    return 0


@contextmanager
def stop_after(minutes: float | None) -> Iterator[None]:
    """Send SIGTERM to this process after some minutes, as a cluster would."""
    if minutes is None:
        yield
        return
    timer = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    with StopRequest():  # for signals before the training handles them itself
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


@contextmanager
def record_gpu_use(out: Path) -> Iterator[None]:
    """Record the GPU's use and the current epoch every two seconds.

    Nothing is recorded without nvidia-smi.
    """
    over, program = threading.Event(), which("nvidia-smi")

    def watch() -> None:
        out.mkdir(parents=True, exist_ok=True)
        query = [str(program), "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        with (out / "gpu.jsonl").open("a", encoding="utf-8") as notes:
            while not over.wait(SAMPLE_EVERY_S):
                output = subprocess.run(query, capture_output=True, encoding="utf-8", check=False).stdout.split()
                epoch = sum(len(RunLog(path).rows()) for path in out.glob("run/fold_*/metrics.jsonl"))
                if output and output[0].isdigit():
                    print(json.dumps({"epoch": epoch, "percent": int(output[0])}), file=notes, flush=True)

    thread = threading.Thread(target=watch, daemon=True)
    if program is not None:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if thread.is_alive():
            thread.join()


def read_gpu_use(out: Path) -> list[tuple[int, int]]:
    """Read epoch and percent of each record."""
    path = out / "gpu.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [(note["epoch"], note["percent"]) for note in map(json.loads, lines)]


if __name__ == "__main__":
    sys.exit(main())
