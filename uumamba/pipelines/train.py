"""Training of folds and seeds on prepared cases."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from uumamba.config import RunConfig
from uumamba.config.track import build_trackers
from uumamba.data.case import Manifest
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.build import build_trainer, calibrate_at_start
from uumamba.pipelines.jobs import Job, list_jobs, resolve_config
from uumamba.pipelines.models import load_predictor
from uumamba.pipelines.postprocessing import CHOICE_NAME, choose_for_fold
from uumamba.pipelines.run_layout import RUN_MANIFEST_NAME, RunManifest, write_run_summary
from uumamba.pipelines.sites.federated_build import build_federated_trainer
from uumamba.pipelines.slow_cases import training_case_ids
from uumamba.runtime.device_jobs import run_on_devices
from uumamba.runtime.observer import Observer, describe_failure, to_stderr
from uumamba.runtime.progress_bar import track
from uumamba.runtime.stop import StopRequest
from uumamba.runtime.terminal import is_terminal
from uumamba.training import ALONE, FederatedTrainer, Ranks, Trainer, standard_observers

_VERIFIED_AT_ONCE = 8
"""Cases verified between two looks at a stop request; some seconds for large scans."""


def train(
    config: RunConfig,
    *,
    data: Path | str,
    out: Path | str,
    fold: str = "0",
    seeds: Sequence[int] | None = None,
    resume: bool = False,
    init: str | None = None,
    device: str = "cpu",
    force: bool = False,
    progress: bool | None = None,
    ranks: Ranks = ALONE,
) -> list[Path]:
    """Train one fold, all cases or every fold, with each seed.

    Folds and seeds are trained one after the other, or in parallel on several devices. ``out/summary.json`` holds the
    validation Dice of the trained folds and seeds, and its spread.

    Args:
        config: the run.
        data: a prepared folder.
        out: the run folder; each fold gets ``out/fold_K`` (or ``out/fold_all``).
        fold: ``"0"`` to ``"4"``, ``"all"`` (no validation) or ``"cv"``.
        seeds: train every fold with each seed, in ``out/seed_S/fold_K``; None takes the configuration's seed.
        resume: continue from the last checkpoint if it exists; finished folds are kept.
        init: a model to start the network from: a run folder, a fold folder or a checkpoint file.
        device: name of the device in torch; several, such as ``"cuda:0,cuda:1"``, train one fold each in parallel.
        force: resume although the configuration changed.
        progress: a bar; None shows one on a terminal. Several devices print lines.
        ranks: the processes that train together; each makes this call on its own device.

    Returns:
        The fold folders.

    Raises:
        UsageError: one of :func:`uumamba.pipelines.jobs.list_jobs`, before any file is written.
        CaseError: an array of a case is missing or was changed after it was prepared.
        JobFailedError: training failed on one of several devices.
        StoppedOnRequest: a stop was requested; the run can be resumed.
    """
    folder = PreparedFolder(data)
    jobs = list_jobs(
        resolve_config(config, folder, say=to_stderr if ranks.is_rank_zero else None),
        folder,
        fold=fold,
        seeds=seeds,
        out=out,
        resume=resume,
        force=force,
        init=init,
        device=device,
        ranks=ranks.count,
    )
    train_jobs(jobs, folder, resume=resume, init=init, device=device, force=force, progress=progress, ranks=ranks)
    return [job.folder.path for job in jobs]


def train_jobs(
    jobs: Sequence[Job],
    folder: PreparedFolder,
    *,
    resume: bool = False,
    init: str | None = None,
    device: str = "cpu",
    force: bool = False,
    progress: bool | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Train the jobs of one run, and write its ``summary.json``.

    The arrays of all cases of the jobs are verified first, also if a run resumes. For the arguments see :func:`train`.
    """
    used = list(dict.fromkeys(case_id for job in jobs for case_id in (*job.training_ids, *job.validation_ids)))
    if ranks.is_rank_zero:
        _report_unused(folder.manifest, jobs[0])  # the same for every fold
        _report_missing_classes(folder, jobs)
    begin = partial(_train_job, folder=folder, resume=resume, init=init, force=force, progress=progress)
    with StopRequest() as stop:
        ranks.on_rank_zero(partial(_verify, folder, used, stop=stop, progress=progress))
        if len(devices := device.split(",")) > 1:
            run_on_devices(begin, {job.folder.title: job for job in jobs}, devices, say=to_stderr)
        else:
            for job in jobs:
                stop.sync(ranks)
                stop.raise_if_requested(f"before {job.folder.title}; continue with --resume")
                begin(job, device=device, ranks=ranks)
    if ranks.is_rank_zero:
        write_run_summary(jobs[0].folder.run)


def _verify(folder: PreparedFolder, case_ids: Sequence[str], *, stop: StopRequest, progress: bool | None) -> None:
    """Verify arrays with a bar or a line; large sets take minutes."""
    if not (is_terminal(sys.stderr) if progress is None else progress):
        to_stderr(f"train: verifying the arrays of {len(case_ids)} cases")
    begins = range(0, len(case_ids), _VERIFIED_AT_ONCE)
    for begin in track(begins, description="verify", enabled=progress):
        stop.raise_if_requested(
            f"after verifying {begin} of {len(case_ids)} cases; run the same command to start again"
        )
        folder.verify(case_ids[begin : begin + _VERIFIED_AT_ONCE])


def _train_job(
    job: Job,
    *,
    folder: PreparedFolder,
    resume: bool,
    init: str | None,
    force: bool,
    progress: bool | None,
    device: str,
    say: Callable[[str], None] | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Train one fold with one seed.

    ``say`` replaces the progress bar where folds are trained in parallel.
    """
    target, show = job.folder, say or to_stderr
    build = partial(_build_ready, folder=folder, init=init, device=device)

    def build_probe(config: RunConfig, **options: Any) -> Trainer:
        return build(replace(job, config=config), cases=job.training_ids, run_dir=None, **options)

    cases = training_case_ids(
        job.config,
        folder,
        job.training_ids,
        run_dir=target.path,
        build_probe=build_probe,
        say=show,
        ranks=ranks,
        force=force,
    )
    observers = (
        *standard_observers(progress=progress if say is None else False, log=say),
        RunManifest(
            target.path / RUN_MANIFEST_NAME,
            job.config,
            folder,
            fold=target.fold,
            case_ids={"training": job.training_ids, "validation": job.validation_ids},
            device=device,
        ),
        *_build_trackers(job, say=show if ranks.is_rank_zero else None),
    )
    trainer: Trainer | FederatedTrainer
    if job.sites:
        trainer = build_federated_trainer(
            job, folder, init=init, device=device, run_dir=target.path, observers=observers
        )
    else:
        trainer = build(job, cases=cases, run_dir=target.path, observers=observers, ranks=ranks)
    trainer.fit(resume=resume, force=force)
    if not ranks.is_rank_zero:
        return
    if job.config.inference.postprocess == "auto" and job.validation_ids:
        predictor = load_predictor(target.path, device=device)
        choose_for_fold(target.path, predictor, folder, job.validation_ids, steps=trainer.progress.steps_done)
    else:
        (target.path / CHOICE_NAME).unlink(missing_ok=True)  # of an earlier call with other options


def _build_ready(job: Job, *, folder: PreparedFolder, cases: Sequence[str], **options: Any) -> Trainer:
    """Build a trainer and calibrate its network."""
    trainer = build_trainer(job, folder, cases=cases, **options)
    calibrate_at_start(trainer, job.config, folder, cases)
    return trainer


def _build_trackers(job: Job, *, say: Callable[[str], None] | None) -> Iterator[Observer]:
    """Build the trackers of a training; report those that fail."""
    config, target = job.config, job.folder
    for name in dict.fromkeys(config.track):
        try:
            yield from build_trackers(
                [name], run=target.run, fold=target.name, experiment=config.name, parameters=config.as_json()
            )
        except Exception as error:  # noqa: BLE001 a record is worth less than the training, as in ObserverList
            if say is not None:
                say(describe_failure(name, error))


def _report_unused(manifest: Manifest, job: Job) -> None:
    """Print how many cases are used neither for training nor for validation."""
    used, cases = {*job.training_ids, *job.validation_ids}, manifest.select(split="training")
    if unused := Counter(case.domain for case in cases if case.case_id not in used):
        by_domain = ", ".join(f"{count} of {domain}" for domain, count in sorted(unused.items()))
        to_stderr(
            f"train: {unused.total()} of {len(cases)} cases are used neither for training nor for validation: "
            f"{by_domain}"
        )


def _report_missing_classes(folder: PreparedFolder, jobs: Sequence[Job]) -> None:
    """Print the structures that no training case of a fold has."""
    splits = {job.folder.fold: job.training_ids for job in jobs}
    classes = {case_id: folder.find_classes(case_id) for case_id in {each for ids in splits.values() for each in ids}}
    for fold, training in splits.items():
        found = [classes[case_id] for case_id in training]
        known = {*folder.manifest.classes.values()} if None in found else {0}.union(*filter(None, found))
        missing = [name for name, value in folder.manifest.classes.items() if value not in known]
        if missing:
            to_stderr(f"train: no training case of fold {fold} has a voxel of {', '.join(missing)}")
