"""``manifest.json``: what a training was made with, an entry for its start and one for each time it was resumed."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from uumamba.config import RunConfig
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.split import split_cases
from uumamba.runtime.files import write_json
from uumamba.training.callback_list import Row

MANIFEST_NAME = "manifest.json"
PACKAGES = ("uumamba", "torch", "monai", "numpy", "scipy", "nibabel", "SimpleITK", "safetensors", "triton", "mamba-ssm")


class RunManifest:
    """Adds an entry to ``manifest.json`` when training begins or goes on; a finished run gets none.

    It names no user, no machine and no patient: of every path its last part alone.

    Args:
        path: the file.
        config: of the run.
        folder: the prepared cases.
        fold: the one that is trained.
        device: where it is trained.
    """

    def __init__(self, path: Path, config: RunConfig, folder: PreparedFolder, *, fold: str, device: str) -> None:
        self.path = path
        self._config, self._folder = config, folder
        self._fold, self._device = fold, device

    def begin(self, rows: Sequence[Row], *, done: int, epochs: int) -> None:
        """Add the entry."""
        if done < epochs:
            entry = {"started": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "epochs_done": done, "epochs": epochs}
            write_json(self.path, {"starts": [*_starts(self.path), entry | self._made_with()]})

    def epoch(self, row: Row) -> None:
        """An epoch changes nothing of it."""

    def end(self) -> None:
        """Nor does the end."""

    def _made_with(self) -> dict[str, Any]:
        config = json.dumps(self._config.as_json(), sort_keys=True)
        return {
            "command": command_line(sys.argv),
            "fold": self._fold,
            "seed": self._config.seed,
            "config": {"name": self._config.name, "sha256": hashlib.sha256(config.encode()).hexdigest()},
            "data": {"name": self._folder.manifest.name, "sha256": self._folder.sha256()},
            "cases": self._cases_by_domain(),
            "git": git_commit(Path(__file__).parent),
            "versions": {"python": platform.python_version()} | _versions(),
            "machine": _machine(self._device),
        }

    def _cases_by_domain(self) -> dict[str, dict[str, int]]:
        """How many cases of each domain are trained on and validated on."""
        manifest, sides = self._folder.manifest, ("training", "validation")
        chosen = split_cases(manifest, self._fold, self._config.dataset.domains)
        counts = (Counter(case.domain for case in manifest.select(case_ids=ids)) for ids in chosen)
        return {side: dict(sorted(count.items())) for side, count in zip(sides, counts, strict=True)}


def command_line(argv: Sequence[str]) -> list[str] | None:
    """A command with the last part of each path; None where the program is not uumamba's.

    Example:
        >>> command_line(["/home/ada/bin/uumamba", "train", "demo", "--data=/home/ada/prepared", "--out", "runs/demo"])
        ['uumamba', 'train', 'demo', '--data=prepared', '--out', 'demo']
    """
    shortened = [_shortened(argument) for argument in argv]
    return shortened if shortened and shortened[0] in ("uumamba", "cli.py") else None


def git_commit(folder: Path) -> dict[str, Any] | None:
    """Commit of the clone that holds a folder's code, and whether its files differ from it; None outside of a clone.

    An environment that lies in somebody's clone is none of it.
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


def _shortened(argument: str) -> str:
    option, separator, value = argument.partition("=")
    if separator and os.sep in value:
        return f"{option}={Path(value).name}"
    return Path(argument).name if os.sep in argument and not separator else argument


def _git(folder: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, encoding="utf-8", timeout=30)
    return done.stdout.strip() if done.returncode == 0 else None


def _starts(path: Path) -> list[Any]:
    """The entries so far; none where the file is absent or somebody has broken it."""
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return starts if isinstance(starts, list) else []


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
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": device,
        "accelerator": f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}" if cuda else None,
    }


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
