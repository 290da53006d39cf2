"""Time to predict ACDC frames on a CPU, against nnU-Net.

    python -m benchmarks.predict --acdc ACDC/database/training --json benchmarks/results/predict.json

Measured are the shipped model on one frame and on a folder of frames, and nnU-Net's default 2-D network of the ACDC
plan (random weights, patch 256 x 224, 1.5625 mm) on the folder, with and without mirroring on both sides. Each
measurement is a process of its own, from its start to the written files, with the same number of threads. Rounds
alternate. nnU-Net needs the package nnunetv2, in this environment or in that of ``--peer-python``; without it only
uumamba is measured. The exit code is 1 if a claim of the project does not hold.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.result_file import ROOT, write_result
from benchmarks.scan import print_rows

OURS, THEIRS = "uumamba", "nnU-Net"
FRAMES, QUICK_FRAMES, ROUNDS = 20, 1, 3
MOST_SECONDS, LEAST_TIMES = 8.0, 3.0
MIRRORED = {True: "mirrored", False: "not mirrored"}
PEER = Path(__file__).with_name("predict_peer.py")


def main(given: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acdc", type=Path, required=True, help="ACDC's folder of patients")
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--quick", action="store_true", help="one frame, not mirrored, one round")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of each process")
    parser.add_argument("--model", default="acdc", help="our model")
    parser.add_argument("--peer-python", default=sys.executable, help="Python with nnunetv2")
    options = parser.parse_args(given)
    frames = sorted(options.acdc.glob("patient*/*_frame[0-9][0-9].nii.gz"))
    frames = frames[:: max(1, len(frames) // FRAMES)][: QUICK_FRAMES if options.quick else FRAMES]
    if not frames:
        parser.error(f"--acdc: got {options.acdc}, expected folders patient001, ... with frames")
    version = find_peer_version(options.peer_python)
    if version is None:
        print("nnU-Net is not installed and left out")
    with tempfile.TemporaryDirectory(prefix="uumamba-predict-") as folder:
        commands = dict(list_commands(frames, options, Path(folder), has_peer=version is not None))
        found: dict[tuple[str, str, str], list[dict[str, float]]] = {key: [] for key in commands}
        for _ in range(1 if options.quick else options.rounds):
            for key, command in commands.items():
                found[key].append(measure(command, Path(folder) / "out", threads=options.threads))
    rows = [make_row(key, found, options.threads) for key in found]
    print_rows(rows)
    if options.json is not None:
        write_result(options.json, rows, title="Predicting hearts on a CPU", about=describe_table(version))
    broken = [] if options.quick else list(find_broken_claims(rows))
    print(*broken, sep="\n", file=sys.stderr)
    return 1 if broken else 0


def describe_table(peer_version: str | None) -> str:
    """Describe the table."""
    peer = "" if peer_version is None else f" nnU-Net is {peer_version}."
    return (
        "ACDC frames from the start of a process to the written label maps, medians of alternating rounds; the ratio "
        f"is nnU-Net's time for the same frames, equally mirrored, divided by the row's.{peer}"
    )


def list_commands(
    frames: Sequence[Path], options: argparse.Namespace, folder: Path, *, has_peer: bool
) -> Iterator[tuple[tuple[str, str, str], list[str]]]:
    """Yield each command by tool, frames and mirroring."""
    inputs, out = folder / "frames", str(folder / "out")
    inputs.mkdir()
    for frame in frames:  # with nnU-Net's number of the channel, which uumamba drops
        (inputs / f"{frame.name.removesuffix('.nii.gz')}_0000.nii.gz").symlink_to(frame.resolve())
    ours = [sys.executable, "-m", "uumamba", "predict", options.model, "--device", "cpu", "--out", out]
    if not options.quick:
        yield (OURS, "1 frame", MIRRORED[True]), [*ours, "--mirror", "--input", str(frames[0])]
    shape = f"{len(frames)} frames" if len(frames) > 1 else "the frame"
    for is_mirrored in (False,) if options.quick else (True, False):
        flag = "--mirror" if is_mirrored else "--no-mirror"
        yield (OURS, shape, MIRRORED[is_mirrored]), [*ours, flag, "--input", str(inputs)]
        if has_peer:
            peer = [options.peer_python, str(PEER), str(inputs), out, str(options.threads), flag]
            yield (THEIRS, shape, MIRRORED[is_mirrored]), peer


def measure(command: Sequence[str], out: Path, *, threads: int) -> dict[str, float]:
    """Run a command; return its seconds, CPU seconds and peak memory."""
    with tempfile.TemporaryDirectory(dir=out.parent) as own:
        command = [own if part == str(out) else part for part in command]
        threaded = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        folders = dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), own)
        code = (
            "import json, resource, subprocess, sys; done = subprocess.run(sys.argv[1:], stdout=2);"
            "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
            "print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss / 1024])); sys.exit(done.returncode)"
        )
        begin = perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, *command],
            cwd=ROOT,
            env=os.environ | threaded | folders,
            capture_output=True,
            encoding="utf-8",
        )
        seconds = perf_counter() - begin
        if done.returncode != 0 or not any(Path(own).glob("*.nii.gz")):
            sys.exit(f"failed: {' '.join(command)}\n{done.stderr}")
        cpu_s, peak_mb = json.loads(done.stdout)
    return {"seconds": seconds, "cpu_s": cpu_s, "peak_mb": peak_mb}


def make_row(
    key: tuple[str, str, str], found: dict[tuple[str, str, str], list[dict[str, float]]], threads: int
) -> dict[str, Any]:
    """Return the row of a tool, with the ratio to nnU-Net."""
    tool, shape, mirroring = key
    seconds = {each: [one["seconds"] for one in found[each]] for each in found}
    peer = seconds.get((THEIRS, shape, mirroring))
    return {
        "name": f"{tool}, {mirroring}",
        "shape": shape,
        "threads": threads,
        "median_s": round(median(seconds[key]), 2),
        "min_s": round(min(seconds[key]), 2),
        "cpu_s": round(median(one["cpu_s"] for one in found[key]), 2),
        "peak_mb": round(max(one["peak_mb"] for one in found[key])),
        "ratio_to": THEIRS if peer else None,
        "ratio": round(median(peer) / median(seconds[key]), 2) if peer else None,
    }


def find_broken_claims(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the claims that do not hold."""
    for row in rows:
        if row["name"].startswith(OURS):
            if row["shape"] == "1 frame" and row["median_s"] > MOST_SECONDS:
                yield f"{row['name']}: one frame takes {row['median_s']} s, expected at most {MOST_SECONDS}"
            if row["ratio"] is not None and row["ratio"] < LEAST_TIMES:
                yield f"{row['name']}: {row['ratio']} times as fast as nnU-Net, expected at least {LEAST_TIMES}"


def find_peer_version(python: str) -> str | None:
    """Return the version of nnunetv2 in a Python environment, None without it."""
    code = "from importlib.metadata import version; print(version('nnunetv2'))"
    done = subprocess.run([python, "-c", code], capture_output=True, encoding="utf-8")
    return done.stdout.strip() or None


if __name__ == "__main__":
    sys.exit(main())
