"""Jobs of a run, listed from headers before any file is written.

:func:`list_jobs` raises every error of configuration, options and folders; ``run``, ``prepare`` and ``train`` then
execute the jobs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

from uumamba.config import RunConfig
from uumamba.config.track import check_trackers
from uumamba.config.training import resolve_channels_last
from uumamba.data.case import Manifest
from uumamba.data.geometry import Geometry, find_geometry
from uumamba.data.loader import share_batch
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.datasets import FRAMES_NAME, Read, check_out_option, has_cines, is_dataset, read_dataset
from uumamba.pipelines.mirrored_sides import MirroredSides, check_sides
from uumamba.pipelines.models import complete_run
from uumamba.pipelines.run_layout import (
    FoldFolder,
    fold_folders,
    newest_checkpoint,
    select_folders,
    select_folds,
    stored_run,
)
from uumamba.pipelines.slow_cases import SlowCases, check_raw_slow_cases
from uumamba.pipelines.split import split_cases
from uumamba.runtime.errors import require
from uumamba.training.run_folder import check_new_run, check_same_config


@dataclass(frozen=True)
class Job:
    """Training of one fold with one seed.

    Args:
        config: the run's configuration with the job's seed.
        folder: the fold folder, which may not exist yet.
        training_ids: ids of the training cases, in the order of the manifest.
        validation_ids: ids of the validation cases; empty for fold ``"all"``.
        sides: left/right axes and swapped labels; None if no structure has a side.
    """

    config: RunConfig
    folder: FoldFolder
    training_ids: tuple[str, ...]
    validation_ids: tuple[str, ...]
    sides: MirroredSides | None


class Cases(Protocol):
    """Cases of jobs, raw or prepared, known from headers."""

    @property
    def manifest(self) -> Manifest:
        """Manifest of the cases."""

    @property
    def where(self) -> str:
        """Name or path of the data set, for messages."""

    @property
    def is_complete(self) -> bool:
        """Success of the reader with every case."""

    def check_recipe(self, config: RunConfig) -> None:
        """Raise if the cases are of another data set or recipe."""

    def geometries(self, case_ids: Sequence[str]) -> Iterator[Geometry]:
        """Yield the geometry of each case with a readable header."""

    def check_slow_cases(self, job: Job, *, force: bool) -> None:
        """Raise if the job's slow cases can be neither read nor found."""


class RawCases:
    """Cases of a public data set as its owner ships it.

    Args:
        name: the data set's name in a configuration.
        raw: its folder, only read.
        out: output folder, outside of ``raw``; :meth:`read` cuts the frames of cines into ``frames`` of it.

    Raises:
        UsageError: ``out`` is inside ``raw``.
    """

    def __init__(self, name: str, raw: Path | str, *, out: Path) -> None:
        check_out_option(out, raw)
        self.name, self.raw, self.frames = name, raw, out / FRAMES_NAME

    @cached_property
    def listed(self) -> Read:
        """Cases and failures of the reader; nothing is written."""
        return read_dataset(self.name, self.raw, frames=self.frames, cut=False)

    @property
    def manifest(self) -> Manifest:
        """Manifest of the cases; frames of cines may not exist yet."""
        return self.listed[0]

    @property
    def where(self) -> str:
        """Name of the data set."""
        return self.manifest.name

    @property
    def is_complete(self) -> bool:
        """Success of the reader with every case."""
        return not self.listed[1]

    def read(self) -> Read:
        """Read cases and failures; the frames of cines are cut first."""
        if has_cines(self.name, self.raw):
            return read_dataset(self.name, self.raw, frames=self.frames)
        return self.listed

    def check_recipe(self, config: RunConfig) -> None: ...  # noqa: D102 every recipe fits raw cases

    def geometries(self, case_ids: Sequence[str]) -> Iterator[Geometry]:
        """Yield geometries; an unreadable header is left to preparing, which reports it."""
        from data_prep.scan_files import read_grid

        for case_id in case_ids:
            try:
                grid = read_grid(self.manifest.by_id(case_id).image, case_id=case_id)
                yield find_geometry(grid.array.shape, spacing_mm=grid.spacing_mm, affine=grid.affine)
            except ValueError:
                continue

    def check_slow_cases(self, job: Job, *, force: bool) -> None:
        """Check the index file's case names, or the groups."""
        check_raw_slow_cases(job.config, self.manifest, job.training_ids)


class PreparedCases:
    """Cases of a prepared folder.

    Args:
        folder: the prepared folder.
    """

    is_complete = True

    def __init__(self, folder: PreparedFolder) -> None:
        self.folder, self.manifest, self.where = folder, folder.manifest, str(folder.path)

    def check_recipe(self, config: RunConfig) -> None:
        """Raise if the cases are of another data set or recipe.

        Prediction preprocesses new scans by the configuration.
        """
        name, recipe, stored = config.dataset.name, config.preprocess.build(), self.folder.recipe
        fix = "correct the key, or prepare again"
        expected = f"{self.manifest.name}, the data set of {self.where}"
        require(is_dataset(self.manifest, name), "dataset.name", got=name, expected=expected, fix=fix)
        used, given = stored.to_json(), recipe.to_json()
        different = [key for key in given if used[key] != given[key]]
        require(
            stored.completes(recipe),
            "preprocess",
            got={key: given[key] for key in different},
            expected=f"{ {key: used[key] for key in different} }, the recipe of {self.where}",
            fix=fix,
        )

    def geometries(self, case_ids: Sequence[str]) -> Iterator[Geometry]:
        """Yield the geometry of each case."""
        return (self.folder.case(case_id).geometry for case_id in case_ids)

    def check_slow_cases(self, job: Job, *, force: bool) -> None:
        """Check the stored file, or what is needed to find slow cases."""
        if job.config.training.useful is not None:
            SlowCases(job.config, self.folder, job.training_ids, job.folder.path).check(force=force)


def list_jobs(
    config: RunConfig,
    cases: Cases,
    *,
    fold: str,
    out: Path | str,
    seeds: Sequence[int] | None = None,
    resume: bool = False,
    force: bool = False,
    device: str | None = None,
    ranks: int = 1,
) -> list[Job]:
    """List the trainings of a run, and raise every configuration error.

    Only headers are read, and nothing is written. The configuration is checked before the cases are read.

    Args:
        config: the run.
        cases: raw or prepared cases.
        fold: ``"0"`` to ``"4"``, ``"all"`` (no validation) or ``"cv"``.
        out: the run folder.
        seeds: one job per fold and seed; None takes the configuration's seed.
        resume: folders may have checkpoints.
        force: the run may have been started with another configuration.
        device: name of the training device in torch, or several; None does not check the device.
        ranks: number of processes that train together.

    Raises:
        UsageError: any key of the configuration or option is wrong, a package of a tracker is missing, the fold is
            unknown or has no cases, a domain is unknown or cannot be split as configured, patches would be mirrored
            left to right although structures have sides, the cases are of another data set or recipe, the index file
            is of other cases, the batch cannot be split equally over the ranks, there are more devices than jobs, a
            checkpoint exists and ``resume`` is off, the run was started with another configuration, or quantization or
            freezing of a new run would only start after the last step.
    """
    config.check()
    check_trackers(config.track)
    targets = select_folders(Path(out), fold=fold, seeds=seeds)
    share_batch(config.training.batch_size, ranks)
    if device is not None:
        _check_devices(config, device, jobs=len(targets))
    _check_folders(config, targets, resume=resume, force=force)
    cases.check_recipe(config)
    manifest = cases.manifest
    config.training.sampling.build(structures=manifest.structures)
    splits = split_cases(
        manifest,
        select_folds(fold),
        config.dataset.domains,
        where=cases.where,
        may_be_empty=not cases.is_complete,
    )
    sides = {name: check_sides(config, manifest, cases.geometries(training)) for name, (training, _) in splits.items()}
    jobs = [Job(replace_seed(config, each.seed), each, *splits[each.fold], sides[each.fold]) for each in targets]
    for job in jobs:
        cases.check_slow_cases(job, force=force)
    return jobs


def check_same_run(config: RunConfig, run: Path) -> None:
    """Raise if a fold of the run was started with another configuration.

    Raises:
        UsageError: the configurations differ.
    """
    for found in fold_folders(run):
        stored, current = stored_run(found.path), replace_seed(config, found.seed)
        if stored is not None and newest_checkpoint(found.path) is not None:
            check_same_config(stored, current.as_json(), complete=partial(complete_run, current=current))


def replace_seed(config: RunConfig, seed: int | None) -> RunConfig:
    """Copy a configuration with another seed; None keeps the seed."""
    return config if seed is None else config.model_copy(update={"seed": seed})


def _check_devices(config: RunConfig, device: str, *, jobs: int) -> None:
    devices, expected = device.split(","), f"at most one device per training, {jobs}"
    require(len(devices) <= jobs, "--device", got=device, expected=expected, fix="add --fold cv or --seeds")
    for each in devices:
        resolve_channels_last(config.training.channels_last, each)


def _check_folders(config: RunConfig, targets: Sequence[FoldFolder], *, resume: bool, force: bool) -> None:
    """Raise if the jobs can neither start nor resume in their folders.

    A run with any checkpoint is resumed with the settings of its start, in all its folds.
    """
    if not resume:
        for each in targets:
            check_new_run(each.path)
    if not force:
        check_same_run(config, targets[0].run)
    if not any(newest_checkpoint(each.path) for each in targets):
        config.check_takes_effect()
