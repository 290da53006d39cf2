"""Fold folders of a run, ``fold_K`` or ``seed_S/fold_K``, and its ``manifest.json`` and ``summary.json``."""

import hashlib
import json
import math
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from uumamba.config import RunConfig
from uumamba.data.prepared import PreparedFolder
from uumamba.evaluation.spread import Spread, spread
from uumamba.evaluation.tables import spread_table
from uumamba.pipelines.split import ALL_CASES, FOLDS, folds_of, split_cases
from uumamba.runtime.errors import require
from uumamba.runtime.files import write_json
from uumamba.training.callback_list import Row
from uumamba.training.run_folder import LAST, PREVIOUS
from uumamba.training.run_log import RunLog

MANIFEST_NAME = "manifest.json"
SUMMARY_NAME = "summary.json"
PACKAGES = ("uumamba", "torch", "monai", "numpy", "scipy", "nibabel", "SimpleITK", "safetensors", "triton", "mamba-ssm")
RULE = (
    "Each training's last validation, that of its final weights, on the prepared grid; standard deviations are those "
    "of a sample."
)


@dataclass(frozen=True)
class FoldFolder:
    """Folder of a fold in a run.

    Args:
        run: the run's folder.
        fold: ``"0"`` to ``"4"`` or ``"all"``.
        seed: of a run with several seeds; None where the configuration's own is the only one.

    Example:
        >>> FoldFolder(Path("runs/acdc"), "2", seed=1).path.as_posix()
        'runs/acdc/seed_1/fold_2'
    """

    run: Path
    fold: str
    seed: int | None = None

    @property
    def path(self) -> Path:
        """Path of the folder."""
        return self.run / self.name

    @property
    def name(self) -> str:
        """Path within the run: ``fold_2``, ``seed_1/fold_2``."""
        return f"fold_{self.fold}" if self.seed is None else f"seed_{self.seed}/fold_{self.fold}"

    @property
    def title(self) -> str:
        """Name for a reader: ``fold 2``, ``seed 1, fold 2``."""
        return self.name.replace("_", " ").replace("/", ", ")


def fold_folders(run: Path) -> list[FoldFolder]:
    """List the fold folders of a run: seed by seed, fold by fold."""
    numbers = (folder.name.removeprefix("seed_") for folder in run.glob("seed_*"))
    seeds = sorted(int(number) for number in numbers if number.isdecimal())
    possible = (FoldFolder(run, fold, seed) for seed in (None, *seeds) for fold in (*FOLDS, ALL_CASES))
    return [found for found in possible if found.path.is_dir()]


def wanted_folders(run: Path, *, fold: str, seeds: Sequence[int] | None = None) -> list[FoldFolder]:
    """List the folders that ``--fold`` and ``--seeds`` select.

    Raises:
        UsageError: the fold is unknown, a seed is repeated or negative, or the run was started without ``--seeds``
            where several are given, or with them where none is.
    """
    folds = folds_of(fold)
    if seeds is not None:
        valid = seeds and len(set(seeds)) == len(seeds) and min(seeds) >= 0
        require(valid, "--seeds", got=seeds, expected="different numbers of at least 0")
    for found in fold_folders(run):
        started = "without --seeds" if found.seed is None else "with --seeds"
        require(
            (found.seed is None) == (seeds is None),
            "--seeds",
            got=seeds,
            expected=f"a call {started}, as the one that made {found.path}",
            fix="choose another folder, or the options of the first call",
        )
    return [FoldFolder(run, name, seed) for seed in ((None,) if seeds is None else seeds) for name in folds]


def newest_checkpoint(folder: Path) -> Path | None:
    """Find ``last``, or ``previous`` where a kill left no ``last``; None before the first checkpoint."""
    return next((folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file()), None)


class RunManifest:
    """Callback that adds an entry to ``manifest.json`` whenever training starts or continues.

    The file names no user, no machine and no patient: of every path only the last part. A finished run gets no entry.

    Args:
        path: the file.
        config: of the run.
        folder: the prepared cases.
        fold: the trained fold.
        device: the training device.
    """

    def __init__(self, path: Path, config: RunConfig, folder: PreparedFolder, *, fold: str, device: str) -> None:
        self.path = path
        self._config, self._folder = config, folder
        self._fold, self._device = fold, device

    def begin(self, rows: Sequence[Row], *, done: int, epochs: int) -> None:
        """Add the entry."""
        if done < epochs:
            entry = {"started": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "epochs_done": done, "epochs": epochs}
            starts = _read_json(self.path).get("starts")
            before = starts if isinstance(starts, list) else []
            write_json(self.path, {"starts": [*before, entry | self._describe_run()]})

    def epoch(self, row: Row) -> None:
        """Change nothing."""

    def end(self) -> None:
        """Change nothing."""

    def _describe_run(self) -> dict[str, Any]:
        config = json.dumps(self._config.as_json(), sort_keys=True)
        return {
            "command": command_line(sys.argv),
            "fold": self._fold,
            "seed": self._config.seed,
            "config": {"name": self._config.name, "sha256": hashlib.sha256(config.encode()).hexdigest()},
            "data": {"name": self._folder.manifest.name, "sha256": self._folder.sha256()},
            "cases": self._count_cases(),
            "git": git_commit(Path(__file__).parent),
            "versions": {"python": platform.python_version()} | _versions(),
            "machine": _machine(self._device),
        }

    def _count_cases(self) -> dict[str, dict[str, int]]:
        """Count the cases of each domain for training and for validation."""
        manifest = self._folder.manifest
        chosen = split_cases(manifest, self._fold, self._config.dataset.domains)
        counts = (Counter(case.domain for case in manifest.select(case_ids=ids)) for ids in chosen)
        return {
            side: dict(sorted(count.items())) for side, count in zip(("training", "validation"), counts, strict=True)
        }


def command_line(argv: Sequence[str]) -> list[str] | None:
    """Shorten each path of a command to its last part; None for a program other than uumamba.

    Example:
        >>> command_line(["/home/ada/bin/uumamba", "train", "demo", "--data=/home/ada/prepared", "--out", "runs/demo"])
        ['uumamba', 'train', 'demo', '--data=prepared', '--out', 'demo']
    """
    shortened = [_shorten(argument) for argument in argv]
    return shortened if shortened and shortened[0] in ("uumamba", "cli.py") else None


def git_commit(folder: Path) -> dict[str, Any] | None:
    """Commit of the clone with a folder's code, and whether its files differ from it; None outside of a clone.

    Code that the clone does not track, as that of an environment inside it, has no commit.
    """
    try:
        if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
            return None
        described = _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except OSError:  # there is no git
        return None
    if described is None:
        return None
    return {"commit": described.removesuffix("-dirty"), "modified": described.endswith("-dirty")}


def write_run_summary(run: Path) -> None:
    """Write ``summary.json``: the validation Dice of every fold and seed, and its spread; nothing without any."""
    trainings = validated_trainings(run)
    if trainings:
        spreads = spread_of(trainings)
        stored = {"rule": RULE, "validation_dice": {name: found.as_dict() for name, found in spreads.items()}}
        write_json(run / SUMMARY_NAME, stored | {"trainings": trainings})


def print_run_summary(run: Path) -> None:
    """Print the table of a run with more than one training."""
    trainings = validated_trainings(run)
    if len(trainings) > 1:
        Console().print(spread_table(spread_of(trainings)))


def validated_trainings(run: Path) -> list[dict[str, Any]]:
    """Seed, fold, epochs done and last validation Dice of each validated training of a run."""
    found = []
    for folder in fold_folders(run):
        rows = RunLog(folder.path / "metrics.jsonl").rows()
        if dice := _last_dice(rows):
            seed = folder.seed if folder.seed is not None else _seed_of_config(folder.path)
            found.append({"seed": seed, "fold": folder.fold, "epochs": rows[-1]["epoch"] + 1, "dice": dice})
    return found


def spread_of(trainings: Sequence[Mapping[str, Any]]) -> dict[str, Spread]:
    """Spread of the mean Dice and of each structure's, by name."""
    names = dict.fromkeys(name for training in trainings for name in training["dice"])
    return {
        name: spread({(each["seed"], each["fold"]): each["dice"][name] for each in trainings if name in each["dice"]})
        for name in names
    }


def _last_dice(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """``{"mean": ..., "RV": ...}`` of the last validated row."""
    row: Mapping[str, Any] = next((row for row in reversed(rows) if row.get("dice") is not None), {})
    dice = {key.removeprefix("dice_"): value for key, value in row.items() if key.startswith("dice_")}
    dice = {"mean": row.get("dice")} | dice
    return {name: value for name, value in dice.items() if value is not None and math.isfinite(value)}


def _seed_of_config(folder: Path) -> int:
    stored = _read_json(folder / "config.json")
    try:
        return int(stored["run"]["seed"])
    except (KeyError, TypeError):
        return 0


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty where the file is absent or damaged."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _shorten(argument: str) -> str:
    option, separator, value = argument.partition("=")
    if separator and os.sep in value:
        return f"{option}={Path(value).name}"
    return Path(argument).name if os.sep in argument and not separator else argument


def _git(folder: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, encoding="utf-8", timeout=30)
    return done.stdout.strip() if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _machine(device: str) -> dict[str, Any]:
    cuda = device.startswith("cuda")
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": device,
        "accelerator": f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}" if cuda else None,
    }


def processor_name() -> str:
    """Name of the processor, as far as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
