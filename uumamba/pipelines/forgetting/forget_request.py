"""Request to forget patients of a run, checked before it starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from uumamba.config import RunConfig
from uumamba.config.load import validate
from uumamba.config.stored_config import find_shared_config
from uumamba.config.stored_net import load_net
from uumamba.data.case import MANIFEST_NAME
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.jobs import Job, list_jobs
from uumamba.pipelines.models import checkpoint_paths
from uumamba.runtime.errors import UsageError, require
from uumamba.training.checkpoint import Checkpoint, read_checkpoint

FEWEST_UNSEEN = 4
"""Patients that the model never saw: half of them give the reference, the others the evidence."""
PREPARED = "prepared"


@dataclass(frozen=True)
class ForgetRequest:
    """Patients to forget, and the cases of each side.

    Attributes:
        path: checkpoint of the trained model.
        checkpoint: its content.
        folder: the prepared cases.
        job: training of the same fold without the patients.
        forget_ids: cases of the patients to forget.
        patients: the patients to forget, sorted.
    """

    path: Path
    checkpoint: Checkpoint
    folder: PreparedFolder
    job: Job
    forget_ids: tuple[str, ...]
    patients: tuple[str, ...]

    @property
    def retain_ids(self) -> tuple[str, ...]:
        """Cases of the other training patients."""
        return self.job.training_ids

    @property
    def unseen_ids(self) -> tuple[str, ...]:
        """Validation cases, which neither model saw."""
        return self.job.validation_ids

    def patient_of(self, case_id: str) -> str:
        """Return the patient of a case."""
        return self.folder.manifest.by_id(case_id).patient_id

    def load_net(self, path: Path | None = None) -> nn.Module:
        """Load the trained network, or that of another checkpoint, in evaluation mode."""
        checkpoint = self.checkpoint if path is None else read_checkpoint(path)
        labels, channels = self.folder.manifest.labels, self.folder.manifest.channels
        where = path or self.path
        return load_net(self.job.config, checkpoint, where, classes=labels.outputs, channels=len(channels))


def read_request(
    run: Path | str,
    *,
    patients: Sequence[str],
    data: Path | str | None,
    out: Path | str,
    fold: str | None = None,
    device: str = "cpu",
) -> ForgetRequest:
    """Read a run and check a request.

    Args:
        run: output folder of ``uumamba run``, run folder or fold folder, of one fold.
        patients: patients to forget.
        data: the prepared cases; None takes the folder ``prepared`` next to the run.
        out: run folder of the result.
        fold: fold of a run with several.
        device: name of the device in torch.

    Raises:
        UsageError: the run has no or several checkpoints, the data are missing or others, a patient is unknown, not
            used for training or named twice, no patient would be left, there are too few unseen patients, or ``out``
            holds a run.
    """
    paths = checkpoint_paths(run, fold=fold, key="RUN")
    require(
        len(paths) == 1,
        "RUN",
        got=f"{run} with {len(paths)} folds",
        expected="one fold",
        fix="choose it with --fold; forget in each fold that trained on the patients",
    )
    checkpoint = read_checkpoint(paths[0])
    stored = find_shared_config({paths[0]: checkpoint.config})
    config = validate(stored["run"], source=str(paths[0]))
    require(
        not stored.get("regions"),
        "RUN",
        got="a model of overlapping regions",
        expected="a model of classes",
    )
    folder = PreparedFolder(_find_data(Path(run), data))
    unused = Path(out) / "unused"
    [trained] = list_jobs(config, folder, fold=stored["fold"], out=unused, device=device)
    named = _check_patients(patients, folder, trained)
    excluded = tuple(sorted({*(config.dataset.exclude_patients or ()), *named}))
    rest = config.model_copy(update={"dataset": config.dataset.model_copy(update={"exclude_patients": excluded})})
    [job] = list_jobs(rest, folder, fold=stored["fold"], out=out, device=device)
    unseen = {folder.manifest.by_id(case_id).patient_id for case_id in job.validation_ids}
    require(
        len(unseen) >= FEWEST_UNSEEN,
        "RUN",
        got=f"{len(unseen)} validation patients of fold {stored['fold']}",
        expected=f"at least {FEWEST_UNSEEN} patients that the model never saw, to compare with",
        fix="use a run of a fold with validation cases",
    )
    forget = tuple(case_id for case_id in trained.training_ids if case_id not in {*job.training_ids})
    return ForgetRequest(paths[0], checkpoint, folder, job, forget, named)


def _find_data(run: Path, data: Path | str | None) -> Path:
    if data is not None:
        return Path(data)
    for parent in (run, *run.absolute().parents[:3]):
        if (parent / PREPARED / MANIFEST_NAME).is_file():
            return parent / PREPARED
    raise UsageError(
        "--data",
        got="nothing",
        expected="the prepared cases of the run",
        fix="add --data with the folder that the run was trained on",
    )


def _check_patients(patients: Sequence[str], folder: PreparedFolder, job: Job) -> tuple[str, ...]:
    """Return the patients, sorted."""
    of_training = {folder.manifest.by_id(case_id).patient_id for case_id in job.training_ids}
    of_data = {case.patient_id for case in folder.manifest.cases}
    require(patients, "--patients", got="nothing", expected="patients that the run trained on")
    for patient in patients:
        held = patient in of_data
        require(
            patient in of_training,
            "--patients",
            got=f"{patient}{', which the run did not train on' if held else ''}",
            expected=f"patients that the run trained on, such as {', '.join(sorted(of_training)[:3])}",
            fix="" if held else "write the patient as in the manifest, without a frame",
        )
        require(patients.count(patient) == 1, "--patients", got=f"{patient} twice", expected="each patient once")
    require(
        {*patients} < of_training,
        "--patients",
        got=f"all {len(of_training)} training patients",
        expected="at least one patient to retain",
        fix="delete the model instead",
    )
    return tuple(sorted(patients))


def same_but_for_patients(config: RunConfig, other: RunConfig) -> bool:
    """Return whether two runs differ in their excluded patients and trackers only."""

    def strip(each: RunConfig) -> object:
        values = each.as_json()
        values["dataset"] = {key: value for key, value in values["dataset"].items() if key != "exclude_patients"}
        return {key: value for key, value in values.items() if key not in ("name", "inference")}

    return strip(config) == strip(other)
