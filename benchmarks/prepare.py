"""Time and memory to prepare a large CT and ACDC, against nnU-Net.

    python -m benchmarks.prepare --acdc ACDC/database --json benchmarks/results/prepare.json

nnU-Net preprocesses the same files in the same run. The CT is generated: 512 x 512 x 600 voxels of 0.4 x 0.4 x 0.6 mm
in int16 Hounsfield units, with a label, resampled to 0.5 mm. It fills its field of view, so that cropping saves no
work. Both tools get the same CT statistics, and resample ACDC's 200 frames to 1.5 mm in plane, as both do in 2-D. Each
measurement is a process of its own; time begins after its imports, memory includes them. Rounds alternate, so that a
slow period of the machine affects both. Needs nnunetv2 (the extra `bench`); without it only uumamba is measured. The
exit code is 1 if a claim of the project does not hold.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.result_file import ROOT, write_result
from benchmarks.scan import print_rows
from uumamba.data.case import Case, Manifest
from uumamba.runtime.files import write_json

VOLUME = (512, 512, 600)
QUICK_VOLUME = (160, 160, 160)
QUICK_FRAMES = 12
ROUNDS = 3
SPACING_MM = (0.4, 0.4, 0.6)
STATISTICS = {"low_hu": -50.0, "high_hu": 550.0, "mean_hu": 330.0, "std_hu": 110.0}
RECIPES: dict[str, dict[str, Any]] = {
    "CT": {"spacing_mm": (0.5, 0.5, 0.5), "normalisation": "ct", "ct_statistics": STATISTICS},
    "ACDC": {"spacing_mm": (None, 1.5, 1.5)},
}
PROCESSES = {"CT": 0, "ACDC": 2}  # worker processes; 0 uses only the measured process, without a limit of threads
LEAST_TIMES = {"CT": 2.0, "ACDC": 3.0}
MOST_MB = 4096
OURS, THEIRS = "uumamba", "nnU-Net"


def main(given: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acdc", type=Path, help="the downloaded ACDC folder; without it only the CT is prepared")
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--quick", action="store_true", help="a small volume and few frames, one round")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(given)
    tools = [OURS, THEIRS] if find_spec("nnunetv2") else [OURS]
    if THEIRS not in tools:
        print("nnU-Net is not installed and left out")
    rounds = 1 if options.quick else options.rounds
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="uumamba-prepare-") as folder:
        for name, shape, manifest in list_data_sets(Path(folder), options.acdc, quick=options.quick):
            rows += measure(name, shape, manifest, tools, Path(folder), rounds=rounds)
    print_rows(rows)
    if options.json is not None:
        write_result(options.json, rows, title="Preparing scans", about=describe_table(tools, rounds=rounds))
    broken = [] if options.quick else list(find_broken_claims(rows))
    print(*broken, sep="\n", file=sys.stderr)
    return 1 if broken else 0


def describe_table(tools: Sequence[str], *, rounds: int) -> str:
    """Describe the table."""
    peer = f" nnU-Net is {version('nnunetv2')}, its `DefaultPreprocessor`." if THEIRS in tools else ""
    return (
        "The CT is a phantom of 0.4 x 0.4 x 0.6 mm with a label of three structures, resampled to 0.5 mm in one "
        "process; ACDC's frames are resampled to 1.5 mm in plane in two processes. Times are from files to files, "
        f"medians of {rounds} alternating rounds; the ratio is nnU-Net's time divided by the row's. Memory is the "
        f"largest peak of a process, with imports.{peer}"
    )


def list_data_sets(folder: Path, acdc: Path | None, *, quick: bool) -> Iterator[tuple[str, str, Manifest]]:
    """Yield name, size and manifest of each data set to prepare.

    These are the CT volume, and ACDC if its folder is given.
    """
    shape = QUICK_VOLUME if quick else VOLUME
    yield "CT", str(shape), write_volume(folder, shape)
    if acdc is not None:
        from data_prep.acdc import read_acdc

        manifest, bad = read_acdc(acdc)
        if bad:
            sys.exit(f"--acdc: {bad[0]}")
        cases = manifest.select(split="training")[: QUICK_FRAMES if quick else None]
        yield "ACDC", f"{len(cases)} frames", replace(manifest, cases=cases)


def write_volume(folder: Path, shape: tuple[int, int, int]) -> Manifest:
    """Write a CT phantom of a chest with aorta and branches.

    It has soft tissue, lungs, a spine, contrast in the vessels, and noise of 20 HU.
    """
    image = np.empty(shape, dtype=np.int16, order="F")
    label = np.zeros(shape, dtype=np.uint8, order="F")
    x, y = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    still = np.where(np.hypot((np.abs(x) - 0.55) / 0.3, (y + 0.1) / 0.5) < 1, -820.0, 40.0)
    still[np.hypot(x, y - 0.75) < 0.12] = 500
    noise = np.random.default_rng(0)
    for z in range(shape[2]):
        turn = 6 * z / shape[2]
        aorta = (0.1 * np.cos(turn), 0.1 * np.sin(turn))
        plane = still + noise.normal(0, 20, still.shape)
        for value, shift, radius in ((1, 0.0, 0.08), (2, 0.16, 0.012), (3, -0.16, 0.012)):
            inside = np.hypot(x - aorta[0] - shift, y - aorta[1] - shift / 2) < radius
            plane[inside] += 330 - still[inside]
            label[:, :, z][inside] = value
        image[:, :, z] = np.round(plane)
    affine = np.diag([*SPACING_MM, 1.0])
    paths = folder / "volume.nii.gz", folder / "volume_label.nii.gz"
    for path, array in zip(paths, (image, label), strict=True):
        nib.save(nib.Nifti1Image(array, affine), path)
    case = Case("volume", "volume", "here", *paths)
    return Manifest("CT", "CT", {"aorta": 1, "left": 2, "right": 3}, (case,))


def measure(
    name: str, shape: str, manifest: Manifest, tools: Sequence[str], folder: Path, *, rounds: int
) -> Iterator[dict[str, Any]]:
    """Yield one row per tool; rounds alternate between the tools."""
    manifest.write(folder / f"{name}.json")
    found: dict[str, list[dict[str, float]]] = {tool: [] for tool in tools}
    for _ in range(rounds):
        for tool in tools:
            found[tool].append(measure_in_process(tool, name, folder))
    seconds = {tool: [each["seconds"] for each in found[tool]] for tool in tools}
    for tool in tools:
        yield {
            "name": f"{tool}, {name}",
            "shape": shape,
            "processes": max(1, PROCESSES[name]),
            "median_s": round(median(seconds[tool]), 2),
            "min_s": round(min(seconds[tool]), 2),
            "peak_mb": round(max(each["peak_mb"] for each in found[tool])),
            "ratio_to": THEIRS if THEIRS in tools else None,
            "ratio": round(median(seconds[THEIRS]) / median(seconds[tool]), 2) if THEIRS in tools else None,
        }


def measure_in_process(tool: str, name: str, folder: Path) -> dict[str, float]:
    """Measure one preparation in a child process.

    The result holds its seconds and peak memory.
    """
    function = {OURS: "prepare_with_ours", THEIRS: "prepare_with_nnunet"}[tool]
    code = f"import sys; from benchmarks.prepare import {function}; {function}(*sys.argv[1:])"
    with tempfile.TemporaryDirectory(dir=folder) as out:
        settings = {key: str(Path(out) / key) for key in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        command = [sys.executable, "-c", code, name, str(folder / f"{name}.json"), out]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | settings, capture_output=True, encoding="utf-8")
    if done.returncode != 0:
        sys.exit(f"{tool} failed on {name}:\n{done.stderr}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def prepare_with_ours(name: str, listed: str, out: str) -> None:
    """Prepare a data set with uumamba; print seconds and peak memory."""
    import warnings

    from uumamba.config.data import PreprocessConfig
    from uumamba.pipelines.prepare import prepare

    warnings.simplefilter("ignore")
    recipe, manifest = PreprocessConfig(**RECIPES[name]).build(), Manifest.read(Path(listed))
    begin = perf_counter()
    result = prepare(manifest, recipe=recipe, out=Path(out) / "prepared", workers=PROCESSES[name])
    _print_measurement(begin)
    assert not result.failures, result.failures


def prepare_with_nnunet(name: str, listed: str, out: str) -> None:
    """Prepare a data set with nnU-Net; print seconds and peak memory.

    nnU-Net's planning is not timed and therefore not run. Its results (statistics, target spacing, and the patch size,
    which decides how files are packed) are given.
    """
    preprocessing = import_module("nnunetv2.preprocessing.preprocessors.default_preprocessor")
    handling = import_module("nnunetv2.utilities.plans_handling.plans_handler")
    manifest, plans = Manifest.read(Path(listed)), make_plans(name)
    folder = Path(out) / "nnUNet_preprocessed" / "Dataset001_Timed"
    (Path(out) / "nnUNet_raw" / folder.name).mkdir(parents=True)
    cases = {case.case_id: {"images": [*map(str, case.images)], "label": str(case.label)} for case in manifest.cases}
    data_set = {
        "channel_names": {"0": name},
        "labels": {"background": 0} | dict(manifest.structures),
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        "dataset": cases,
    }
    write_json(folder / "dataset.json", data_set)
    write_json(folder / "plans.json", plans)
    preprocessor = preprocessing.DefaultPreprocessor(verbose=False)
    preprocessor.show_progress_bar = False
    begin = perf_counter()
    if PROCESSES[name]:
        preprocessor.run(1, "timed", "plans", PROCESSES[name])
    else:
        manager = handling.PlansManager(plans)
        for case_id, case in cases.items():
            files = case["images"], case["label"]
            timed = manager.get_configuration("timed")
            preprocessor.run_case_save(str(folder / case_id), *files, manager, timed, data_set)
    _print_measurement(begin)


def make_plans(name: str) -> dict[str, Any]:
    """Make nnU-Net's plans for the recipe of a data set."""
    ct = RECIPES[name].get("ct_statistics")
    names = {"low_hu": "percentile_00_5", "high_hu": "percentile_99_5", "mean_hu": "mean", "std_hu": "std"}
    spacing = [mm for mm in RECIPES[name]["spacing_mm"] if mm is not None]  # in 2-D the spacing of the slices is kept
    configuration: dict[str, Any] = {
        "data_identifier": "timed",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [128, 128, 128] if len(spacing) == 3 else [256, 224],
        "spacing": spacing,
        "normalization_schemes": ["CTNormalization" if ct else "ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {},
    }
    for part, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        configuration[f"resampling_fn_{part}"] = "resample_data_or_seg_to_shape"
        options = {"is_seg": part == "seg", "order": order, "order_z": 0, "force_separate_z": None}
        configuration[f"resampling_fn_{part}_kwargs"] = options
    return {
        "dataset_name": "Dataset001_Timed",
        "plans_name": "plans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {names[key]: value for key, value in (ct or {}).items()}},
        "configurations": {"timed": configuration},
    }


def find_broken_claims(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a message per claim that the rows contradict."""
    for row in rows:
        tool, _, name = row["name"].partition(", ")
        if tool != OURS:
            continue
        if row["ratio"] is not None and row["ratio"] < LEAST_TIMES[name]:
            yield f"{name}: {row['ratio']} times as fast as nnU-Net, claimed at least {LEAST_TIMES[name]:g}"
        if name == "CT" and row["peak_mb"] >= MOST_MB:
            yield f"{name}: a peak of {row['peak_mb']} MiB, claimed below {MOST_MB}"


def _print_measurement(begin: float) -> None:
    """Print the seconds since ``begin`` and the peak memory in MiB.

    The peak is the largest of this process and of its finished children. Linux's value for a process includes the peak
    of its parent, so the own peak is read from ``/proc``, where it does not.
    """
    seconds = perf_counter() - begin
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    own = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    others = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak_mb": max(own, others) / 1024}))


if __name__ == "__main__":
    sys.exit(main())
