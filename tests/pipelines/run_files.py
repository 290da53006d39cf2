"""Files and command lines of runs, for the tests of the verbs."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from uumamba.config import RunConfig
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.jobs import Job, list_jobs
from uumamba.training.checkpoint import Checkpoint, read_checkpoint
from uumamba.training.run_folder import RunLog

MakeConfig = Callable[..., RunConfig]
Refused = Callable[..., Any]
StateOf = Callable[[Path], dict[str, Any]]
LAST = Path("fold_0", "last.safetensors")
"""Final checkpoint of fold 0 in a run folder."""


def job_of(config: RunConfig, prepared: Path | PreparedFolder, *, fold: str = "0") -> Job:
    """Return the job of one fold; its folder is not used."""
    folder = prepared if isinstance(prepared, PreparedFolder) else PreparedFolder(prepared)
    [job] = list_jobs(config, folder, fold=fold, out=folder.path / "run")
    return job


def set_options(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def train_arguments(prepared: Path, run: Path, overrides: Sequence[str], *options: str) -> list[str]:
    given = ["train", "demo", "--device", "cpu", "--data", str(prepared), "--out", str(run)]
    return [*given, *set_options(*overrides), *options]


def save_nifti(path: Path, array: np.ndarray, affine: Sequence[float] | np.ndarray) -> Path:
    """Write a NIfTI file; three numbers are the diagonal of the affine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine if np.ndim(affine) == 2 else np.diag([*affine, 1.0])), path)
    return path


def contents(folder: Path) -> dict[Path, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def failed_in(folder: Path) -> list[str]:
    """List the case ids in ``failures.json``."""
    return [entry["case_id"] for entry in read_json(folder / "failures.json")]


def last_of(run: Path) -> Checkpoint:
    return read_checkpoint(run / LAST)


def rows_of(run: Path) -> list[dict[str, Any]]:
    """Read fold 0's rows of ``metrics.jsonl``."""
    return RunLog(run / "fold_0" / "metrics.jsonl").rows()
