"""Files of a run: fold folders, ``manifest.json`` and ``summary.json``.

- Output folder: ``--out`` of ``uumamba run``; its run folder is ``run``.
- Run folder: ``--out`` of ``uumamba train``, with the fold folders and ``summary.json``.
- Fold folder: ``fold_K``, or ``seed_S/fold_K`` in a run with several seeds, with the checkpoints, ``metrics.jsonl``,
  ``config.json`` and ``manifest.json`` of one training.
"""

import hashlib
import json
import math
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

from uumamba.config import RunConfig
from uumamba.config.case_split import ALL_CASES, EVERY_FOLD, FOLDS
from uumamba.data.prepared import PreparedFolder
from uumamba.evaluation.spread import Spread, spread
from uumamba.evaluation.tables import spread_table
from uumamba.runtime.errors import require
from uumamba.runtime.files import write_json
from uumamba.runtime.observer import Observer, RunView
from uumamba.runtime.terminal import make_console
from uumamba.runtime.text_files import load_json
from uumamba.training.run_folder import RunLog, list_checkpoints

Section = TypeVar("Section")
RUN_MANIFEST_NAME, RUN_SUMMARY_NAME = "manifest.json", "summary.json"
PACKAGES = ("uumamba", "torch", "monai", "numpy", "scipy", "nibabel", "SimpleITK", "safetensors", "triton", "mamba-ssm")
RULE = (
    "Each training's last validation, that of its final weights, on the prepared grid; standard deviations are those "
    "of a sample."
)


@dataclass(frozen=True)
class FoldFolder:
    """Fold folder of a run.

    Args:
        run: the run folder.
        fold: ``"0"`` to ``"4"`` or ``"all"``.
        seed: one of several seeds; None where the configuration's seed is the only one.

    Example:
        >>> FoldFolder(Path("runs/acdc"), "2", seed=1).path.as_posix()
        'runs/acdc/seed_1/fold_2'
    """

    run: Path
    fold: str
    seed: int | None = None

    @property
    def path(self) -> Path:
        """Path of the fold folder."""
        return self.run / self.name

    @property
    def name(self) -> str:
        """Path within the run folder: ``fold_2``, ``seed_1/fold_2``."""
        return f"fold_{self.fold}" if self.seed is None else f"seed_{self.seed}/fold_{self.fold}"

    @property
    def title(self) -> str:
        """Name in messages: ``fold 2``, ``seed 1, fold 2``."""
        return self.name.replace("_", " ").replace("/", ", ")


def fold_folders(run: Path) -> list[FoldFolder]:
    """List the existing fold folders of a run, by seed and fold."""
    names = (folder.name.removeprefix("seed_") for folder in run.glob("seed_*"))
    seeds = sorted(int(name) for name in names if name.isdecimal())
    possible = (FoldFolder(run, fold, seed) for seed in (None, *seeds) for fold in (*FOLDS, ALL_CASES))
    return [found for found in possible if found.path.is_dir()]


def select_folders(run: Path, *, fold: str, seeds: Sequence[int] | None = None) -> list[FoldFolder]:
    """List the fold folders that ``--fold`` and ``--seeds`` select.

    Raises:
        UsageError: the fold is unknown, a seed is repeated or negative, or ``--seeds`` is given for a run that was
            started without it, or missing for a run that was started with it.
    """
    known = (*FOLDS, ALL_CASES, EVERY_FOLD)
    require(fold in known, "--fold", got=fold, expected=f"one of {', '.join(known)}")
    folds = FOLDS if fold == EVERY_FOLD else (fold,)
    if seeds is not None:
        require(
            seeds and len(set(seeds)) == len(seeds) and min(seeds) >= 0,
            "--seeds",
            got=seeds,
            expected="different integers of at least 0",
        )
    for found in fold_folders(run):
        require(
            (found.seed is None) == (seeds is None),
            "--seeds",
            got=seeds,
            expected=f"{'no seeds' if found.seed is None else 'seeds'}, as at the start of {found.path}",
            fix="choose another run folder, or repeat the options of the first call",
        )
    return [FoldFolder(run, name, seed) for seed in ((None,) if seeds is None else seeds) for name in folds]


def newest_checkpoint(folder: Path) -> Path | None:
    """Find a fold folder's newest checkpoint; None before the first one.

    This is ``last``, or ``previous`` where a kill left no ``last``.
    """
    return next(iter(list_checkpoints(folder)), None)


class RunManifest(Observer):
    """Observer that adds an entry to ``manifest.json`` at each start.

    A resume is also a start; a finished training gets no entry. The file names no user, no machine and no patient:
    paths are shortened to their last part.

    Args:
        path: the file.
        config: the run's configuration.
        folder: the prepared cases.
        fold: the trained fold.
        case_ids: ids of the cases by use, training or validation.
        device: the training device.
    """

    def __init__(
        self,
        path: Path,
        config: RunConfig,
        folder: PreparedFolder,
        *,
        fold: str,
        case_ids: Mapping[str, Sequence[str]],
        device: str,
    ) -> None:
        self.path = path
        self._config, self._folder = config, folder
        self._fold, self._case_ids, self._device = fold, case_ids, device

    def on_start(self, run: RunView) -> None:
        """Add an entry."""
        if run.epochs_done < run.epochs:
            entry = {
                "started": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
                "epochs_done": run.epochs_done,
                "epochs": run.epochs,
            }
            starts = _read_section(self.path, "starts", list) or []
            write_json(self.path, {"starts": [*starts, entry | self._describe_run()]})

    def _describe_run(self) -> dict[str, Any]:
        config = json.dumps(self._config.as_json(), sort_keys=True)
        manifest, device = self._folder.manifest, self._device
        return {
            "command": command_line(sys.argv),
            "fold": self._fold,
            "seed": self._config.seed,
            "config": {"name": self._config.name, "sha256": hashlib.sha256(config.encode()).hexdigest()},
            "data": {"name": manifest.name, "sha256": self._folder.sha256()},
            "cases": {
                use: dict(sorted(Counter(case.domain for case in manifest.select(case_ids=case_ids)).items()))
                for use, case_ids in self._case_ids.items()
            },
            "git": git_commit(Path(__file__).parent),
            "versions": {"python": platform.python_version()} | _versions(),
            "machine": {
                "system": f"{platform.system()} {platform.release()} {platform.machine()}",
                "processor": _processor_name(),
                "cores": count_cores(),
                "device": device,
                "accelerator": describe_accelerator(device) if device.startswith("cuda") else None,
            },
        }


def command_line(argv: Sequence[str]) -> list[str] | None:
    """Shorten a command's paths to their last parts; None for another program.

    Args:
        argv: program and arguments; the program is ``uumamba``, or ``uumamba/__main__.py`` of ``python -m uumamba``.

    Example:
        >>> command_line(["/home/ada/bin/uumamba", "train", "demo", "--data=/home/ada/prepared", "--out", "runs/demo"])
        ['uumamba', 'train', 'demo', '--data=prepared', '--out', 'demo']
    """
    program = argv[0].removesuffix("/__main__.py") if argv else ""
    return [_shorten(argument) for argument in (program, *argv[1:])] if Path(program).name == "uumamba" else None


def git_commit(folder: Path) -> dict[str, Any] | None:
    """Return the git commit of a folder's code.

    The result is None outside of a clone.
    ``modified`` is true if files differ from the commit. Code that the clone does not track, such as that of a virtual
    environment inside it, has no commit.
    """
    try:
        tracked = _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        described = tracked and _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except OSError:  # there is no git
        return None
    if not described:
        return None
    return {"commit": described.removesuffix("-dirty"), "modified": described.endswith("-dirty")}


def write_run_summary(run: Path) -> None:
    """Write ``summary.json``: validation Dice per fold and seed, and its spread.

    Without any validated training nothing is written.
    """
    trainings = validated_trainings(run)
    if trainings:
        spreads = {name: found.as_dict() for name, found in compute_spreads(trainings).items()}
        write_json(run / RUN_SUMMARY_NAME, {"rule": RULE, "validation_dice": spreads, "trainings": trainings})


def print_run_summary(run: Path) -> None:
    """Print the spread of the validation Dice of several trainings."""
    trainings = validated_trainings(run)
    if len(trainings) > 1:
        make_console().print(spread_table(compute_spreads(trainings)))


def validated_trainings(run: Path) -> list[dict[str, Any]]:
    """List the trainings of a run with a validation Dice.

    Returns:
        Seed, fold, number of epochs and last validation Dice of each.
    """
    found = []
    for folder in fold_folders(run):
        rows = RunLog(folder.path / "metrics.jsonl").rows()
        if dice := _last_dice(rows):
            seed = folder.seed if folder.seed is not None else (stored_run(folder.path) or {}).get("seed", 0)
            found.append({"seed": seed, "fold": folder.fold, "epochs": rows[-1]["epoch"] + 1, "dice": dice})
    return found


def compute_spreads(trainings: Sequence[Mapping[str, Any]]) -> dict[str, Spread]:
    """Compute the spread of the mean Dice and of each structure's Dice.

    Args:
        trainings: those of :func:`validated_trainings`.
    """
    names = dict.fromkeys(name for training in trainings for name in training["dice"])
    return {
        name: spread({(each["seed"], each["fold"]): each["dice"][name] for each in trainings if name in each["dice"]})
        for name in names
    }


def _last_dice(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return ``{"mean": ..., "RV": ...}`` of the last validated epoch."""
    row: Mapping[str, Any] = next((row for row in reversed(rows) if row.get("dice") is not None), {})
    by_structure = {key.removeprefix("dice_"): value for key, value in row.items() if key.startswith("dice_")}
    dice = {"mean": row.get("dice")} | by_structure
    return {name: value for name, value in dice.items() if value is not None and math.isfinite(value)}


def stored_run(folder: Path) -> dict[str, Any] | None:
    """Read ``run`` of a fold folder's ``config.json``.

    None if the file is absent or damaged. The file is a copy for people: a resumed training compares the configuration
    in the checkpoint.
    """
    return _read_section(folder / "config.json", "run", dict)


def _read_section(path: Path, key: str, kind: type[Section]) -> Section | None:
    """Read one value of a JSON object.

    None if the file or the value is absent, damaged or of another type.
    """
    try:
        found = load_json(path)[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, kind) else None


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
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def count_cores() -> int:
    """Count the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_accelerator(device: str) -> str:
    """Return the name of a CUDA device and the CUDA version."""
    return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"


def _processor_name() -> str:
    """Return the processor's name, or its architecture without a name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else ()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
