"""Bitwise comparison of two commits on eight tiny runs.

    python -m benchmarks.same_numbers --against COMMIT

It proves that a restructuring changes no number. Both commits use this environment, one thread, and the command lines
of their own checkouts. Compared are the phantom and its prepared cases, the rows of metrics.jsonl and every tensor of
last.safetensors. Then the newer code predicts with the older runs and resumes copies of them, and must give the older
code's results. The first row is the complete demo. The exit code is 1 if anything differs, and the first difference is
printed.
"""

import argparse
import gzip
import hashlib
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from safetensors import deserialize

from benchmarks.checkouts import CommandFailed, check_packages, checkout, provide_native_scan, run_git, run_python
from benchmarks.result_file import write_result
from benchmarks.scan import print_rows

NET = ("features=[8, 16, 24]", "strides=[[1, 1], [2, 2], [2, 2]]", "encoder_blocks=[1, 1, 1]", "decoder_blocks=[1, 1]")
LENGTH = ("epochs=4", "batches_per_epoch=5", "batch_size=4", "patch_size=[48, 48]", "validate_every=2")
TINY = (
    *(f"net.{each}" for each in NET),
    *(f"training.{each}" for each in (*LENGTH, "precision=float32")),
    "inference.precision=float32",
)
MORE_EPOCHS = ("--resume", "--force", "--set", "training.epochs=6")
PATIENTS = 10  # of the 60 of the demo
TIMES = {"seconds", "data_wait"}
COMPARED = ("data", "losses", "weights", "predict", "resume")


@dataclass(frozen=True)
class Run:
    """Training with changes of the demo's configuration.

    ``init`` names the run that gives the initial weights, ``ranks`` the number of processes.
    """

    name: str
    overrides: tuple[str, ...] = ()
    init: str | None = None
    ranks: int = 1


ADAMW = "base: {name: AdamW, lr: 0.003}, max_grad_norm: 12.0"
UDIM = "name: UDIM, lambda1: 0.3, lambda2: 0.03, second_order: finite_difference, perturbation: {name: style}"
RUNS = (
    Run("SAM"),
    Run("MESA", ("objective={name: MESA, decay: 0.9}",)),
    Run("TRAM", (f"optim={{name: TRAM, {ADAMW}}}",)),
    Run("UDIM", (f"domain_generalization={{{UDIM}}}",)),
    Run("USEFUL", ("training.useful={most_epochs: 2, views: 2, group_by: phase}",)),
    Run("GAQAT", (f"optim={{name: SAGM, {ADAMW}}}", "quantization={calibration_batches: 4, gaqat: {every: 5}}"), "SAM"),
    Run("micro-batches", ("training.samples_at_once=2",)),
    Run("two ranks", ranks=2),
)
QUICK = ("SAM", "UDIM", "GAQAT")


@dataclass(frozen=True)
class Side:
    """Checkout of one commit, and the folder for its results."""

    code: Path
    work: Path

    def make_data(self) -> None:
        """Run the demo; prepare its first patients for the other runs."""
        demo, raw = self.work / "demo", self.work / "raw"
        run_python(self.code, "-m", "uumamba", "demo", "--out", demo, *make_arguments(RUNS[0]))
        for patient in sorted((demo / "raw" / "training").iterdir())[:PATIENTS]:
            shutil.copytree(patient, raw / "training" / patient.name)
        run_python(self.code, "-m", "uumamba", "prepare", "demo", "--raw", raw, "--out", self.work / "prepared")

    def train(self, run: Run, data: Path, out: Path, *more: str) -> Path:
        """Train or resume fold 0; return the fold's folder."""
        launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={run.ranks}")
        start = () if run.init is None else ("--init", self.work / "runs" / run.init)
        words = ("train", "demo", "--data", data, "--out", out, "--device", "cpu", *start, *make_arguments(run), *more)
        run_python(self.code, *(launcher if run.ranks > 1 else ()), "-m", "uumamba", *words)
        return out / "fold_0"

    def predict(self, model: Path, data: Path) -> dict[str, str]:
        """Predict the validation cases; return the hashes of the label maps."""
        out = self.work / "predictions" / model.name
        words = ("predict", model, "--input", data, "--case-fold", 0, "--out", out, "--device", "cpu")
        run_python(self.code, "-m", "uumamba", *words)
        return hash_files(out, "*.nii.gz")


def main(given: Sequence[str] | None = None) -> int:
    """Compare, print and write; return 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", required=True, metavar="COMMIT", help="the older commit")
    parser.add_argument("--here", action="store_true", help="compare the working tree instead of HEAD")
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--quick", action="store_true", help=f"only the demo and {', '.join(QUICK)}")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="empty folder for all results")
    options = parser.parse_args(given)
    if options.keep is not None and options.keep.exists() and any(options.keep.iterdir()):
        parser.error(f"--keep: got files in {options.keep}, expected an empty folder. Fix: choose another folder.")
    runs = [run for run in RUNS if run.name in QUICK or not options.quick]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # exit through the cleanup of the checkouts
    try:
        older, head = (run_git("rev-parse", "--verify", f"{name}^{{commit}}") for name in (options.against, "HEAD"))
        with (
            tempfile.TemporaryDirectory(prefix="uumamba-same-") as temporary,
            checkout(older, Path(temporary, "older")) as old_code,
            checkout(None if options.here else head, Path(temporary, "newer")) as new_code,
        ):
            provide_native_scan((old_code, new_code), commits=(older, head))
            work = Path(temporary, "made") if options.keep is None else options.keep.absolute()
            rows, problems = compare_all(Side(old_code, work / "older"), Side(new_code, work / "newer"), runs)
    except CommandFailed as error:
        sys.exit(str(error))
    print_rows(rows)
    if options.json is not None:
        about = f"Commit {older[:12]} and {'the working tree at ' if options.here else ''}{head[:12]}, bit for bit."
        configs = [("demo", (*TINY, *run.overrides)) for run in runs]
        write_result(options.json, rows, title="The same numbers", about=about, configs=configs)
    print(*problems, sep="\n", file=sys.stderr)
    return 1 if problems else 0


def compare_all(older: Side, newer: Side, runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return one row per run and a message per difference.

    A command that fails ends its row.
    """
    rows, problems = [], []
    steps = {"demo": compare_demo(older, newer)} | {run.name: compare_run(run, older, newer) for run in runs}
    for name, comparisons in steps.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        row: dict[str, Any] = {"run": name} | dict.fromkeys(COMPARED, "-")
        begin = perf_counter()
        try:
            for what, difference in comparisons:
                row[what] = "differs" if difference else "equal"
                problems += [f"{name}, {what}: {difference}"] if difference else []
        except CommandFailed as error:
            problems.append(f"{name}: {error}")
        rows.append(row | {"seconds": round(perf_counter() - begin, 1)})
    return rows, problems


def compare_demo(older: Side, newer: Side) -> Iterator[tuple[str, str]]:
    """Compare the demo's data, losses, weights, predictions and scores."""
    for side in (older, newer):
        check_packages(side.code)
        side.make_data()
    yield (
        "data",
        describe_difference(*(hash_files(side.work, "*/raw/**/*", "**/prepared/**/*") for side in (older, newer))),
    )
    there, here = older.work / "demo", newer.work / "demo"
    yield from compare_training(there / "run" / "fold_0", here / "run" / "fold_0")
    predicted = ("predictions/*.nii.gz", "*.csv", "baselines.json")
    yield "predict", describe_difference(hash_files(there, *predicted), hash_files(here, *predicted))


def compare_run(run: Run, older: Side, newer: Side) -> Iterator[tuple[str, str]]:
    """Compare both trainings, then predictions and resumed copies of the older."""
    there, here = (side.train(run, side.work / "prepared", side.work / "runs" / run.name) for side in (older, newer))
    yield from compare_training(there, here)
    data, trained = older.work / "prepared", there.parent
    yield "predict", describe_difference(older.predict(trained, data), newer.predict(trained, data))
    copies = [shutil.copytree(trained, side.work / "resumed" / run.name) for side in (older, newer)]
    folds = (older.train(run, data, copies[0], *MORE_EPOCHS), newer.train(run, data, copies[1], *MORE_EPOCHS))
    yield "resume", describe_difference(*(read_losses(fold) | hash_tensors(fold) for fold in folds))


def compare_training(there: Path, here: Path) -> Iterator[tuple[str, str]]:
    """Compare losses and weights of two fold folders."""
    yield "losses", describe_difference(read_losses(there), read_losses(here))
    yield "weights", describe_difference(hash_tensors(there), hash_tensors(here))


def describe_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Describe the number of differing entries and the first of them.

    The result is empty if all entries are equal.

    Example:
        >>> describe_difference({"epoch 0, loss": 0.5, "epoch 1, loss": 0.25}, {"epoch 0, loss": 0.5})
        '1 of 2 differ, first epoch 1, loss: 0.25 in the older, absent in the newer'
    """
    names = dict.fromkeys((*there, *here))
    if not names:
        return "nothing to compare"
    pairs = {name: (there.get(name, "absent"), here.get(name, "absent")) for name in names}
    different = [name for name, (old, new) in pairs.items() if repr(old) != repr(new)]  # 0.0 is not -0.0
    if not different:
        return ""
    old, new = pairs[different[0]]
    by = f" (by {new - old:.3g})" if isinstance(old, float) and isinstance(new, float) else ""
    return f"{len(different)} of {len(names)} differ, first {different[0]}: {old} in the older, {new} in the newer{by}"


def read_losses(fold: Path) -> dict[str, Any]:
    """Read all numbers of ``metrics.jsonl`` except times."""
    found: dict[str, Any] = {}
    for row in map(json.loads, (fold / "metrics.jsonl").read_text(encoding="utf-8").splitlines()):
        for key, value in row.items():
            parts = {f"{key}.{part}": each for part, each in value.items()} if isinstance(value, dict) else {key: value}
            found |= {f"epoch {row['epoch']}, {name}": each for name, each in parts.items() if name not in TIMES}
    return found


def hash_tensors(fold: Path) -> dict[str, str]:
    """Return type, shape and hash of every tensor of the last checkpoint."""
    found = deserialize((fold / "last.safetensors").read_bytes())  # type: ignore[no-untyped-call]
    return {name: f"{each['dtype']} {each['shape']} {hash_bytes(each['data'])}" for name, each in sorted(found)}


def hash_files(folder: Path, *patterns: str) -> dict[str, str]:
    """Hash the decompressed content of every file except locks, by path."""
    paths = sorted({path for each in patterns for path in folder.glob(each) if path.is_file() and path.name != ".lock"})
    unpack = {".gz": gzip.decompress}
    return {
        str(each.relative_to(folder)): hash_bytes(unpack.get(each.suffix, bytes)(each.read_bytes())) for each in paths
    }


def hash_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_arguments(run: Run) -> list[str]:
    """Return a run's overrides as command-line arguments."""
    return [word for each in (*TINY, *run.overrides) for word in ("--set", each)]


if __name__ == "__main__":
    sys.exit(main())
