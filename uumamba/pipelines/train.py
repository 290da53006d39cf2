"""Trained weights from prepared cases, fold by fold."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from uumamba.config import RunConfig
from uumamba.config.data import DomainsConfig
from uumamba.config.track import build_trackers, check_trackers
from uumamba.data.case import Manifest
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.build import build_trainer
from uumamba.pipelines.datasets import is_dataset
from uumamba.pipelines.mirrored_sides import check_prepared_sides, check_raw_sides
from uumamba.pipelines.models import complete_run
from uumamba.pipelines.run_layout import (
    MANIFEST_NAME,
    FoldFolder,
    RunManifest,
    fold_folders,
    newest_checkpoint,
    wanted_folders,
    write_run_summary,
)
from uumamba.pipelines.slow_cases import SlowCases, training_case_ids
from uumamba.pipelines.split import folds_of, split_cases, unused_cases, validate_split
from uumamba.runtime.device_jobs import run_on_devices
from uumamba.runtime.errors import CaseError, UsageError, require
from uumamba.runtime.stop import StopRequest
from uumamba.training import ALONE, Ranks
from uumamba.training.display import to_stderr
from uumamba.training.run_folder import check_same_config


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
    """Train one fold, all cases, or the five folds in turn or in parallel, with one seed or several.

    ``out/summary.json`` holds the validation Dice of the trained folds and seeds, and its spread.

    Args:
        config: the run.
        data: a prepared folder.
        out: the run's folder; each fold gets ``out/fold_K`` (or ``out/fold_all``).
        fold: ``"0"`` to ``"4"``, ``"all"`` (no validation) or ``"cv"``.
        seeds: trains all of it once with each, into ``out/seed_S/fold_K``, in place of the configuration's seed.
        resume: continue from the last checkpoint where there is one; finished folds stay as they are.
        init: a run folder, a fold's folder or a checkpoint to start the network from.
        device: torch's name of it; several, such as ``"cuda:0,cuda:1"``, train a fold each in parallel.
        force: resume although the configuration changed.
        progress: a bar; None shows one on a terminal. Several devices print lines.
        ranks: the processes that train together, each with this same call on a device of its own.

    Returns:
        The folders of the trained folds.

    Raises:
        UsageError: the fold is unknown or has no cases, a domain is unknown or cannot be split as configured, ranks
            cannot share a batch equally, the folder was prepared from another data set or by another recipe, patches
            would be mirrored left to right although structures have sides, quantization or freezing of a new run would
            only start after the last step, there is a checkpoint and ``resume`` is off, a tracker is not installed, or
            there are more devices than trainings.
        JobFailedError: training failed on one of several devices.
        StoppedOnRequest: a signal requested it; the run can be resumed.
    """
    check_trackers(config.track)
    config.check()
    wanted, devices = wanted_folders(Path(out), fold=fold, seeds=seeds), device.split(",")
    expected = f"at most {len(wanted)}, one for each training"
    require(len(devices) <= len(wanted), "--device", got=device, expected=expected, fix="add --fold cv or --seeds")
    ranks.on_rank_zero(partial(check_start, config, wanted))
    folder = PreparedFolder(data)
    _check_prepared_for(config, folder)
    folds, domains = folds_of(fold), config.dataset.domains
    validate_split(folder.manifest, folds, domains, where=f"{folder.path}")
    if ranks.is_rank_zero:
        _report_unused(folder.manifest, folds[0], domains)  # the same for every fold
    for name in folds:  # also check the last fold before the first is trained
        check_prepared_sides(config, folder, split_cases(folder.manifest, name, domains)[0])
    if config.training.useful is not None:
        for each in wanted:
            training = split_cases(folder.manifest, each.fold, domains)[0]
            SlowCases(config, folder, training, each.path).check_index()
    begin = partial(_train_fold, config=config, data=data, resume=resume, init=init, force=force, progress=progress)
    with StopRequest() as stop:
        if len(devices) > 1:
            run_on_devices(begin, {each.title: each for each in wanted}, devices, say=to_stderr)
        else:
            for each in wanted:
                stop.sync(ranks)
                stop.raise_if_requested(f"before {each.title}; continue with --resume")
                begin(each, device=device, ranks=ranks)
    if ranks.is_rank_zero:
        write_run_summary(Path(out))
    return [each.path for each in wanted]


def check_start(config: RunConfig, wanted: Sequence[FoldFolder]) -> None:
    """Raise if quantization or freezing of a new run would only start after the last step.

    A run with any checkpoint continues as it was started, with all its folds.

    Raises:
        UsageError: the run is too short.
    """
    if not any(newest_checkpoint(each.path) for each in wanted):
        config.check_takes_effect()


def check_same_run(config: RunConfig, run: Path) -> None:
    """Raise before anything is prepared if a fold of the run was started with another configuration.

    Raises:
        UsageError: the configurations differ.
    """
    for found in fold_folders(run):
        if newest_checkpoint(found.path) is None:
            continue
        try:
            stored = json.loads((found.path / "config.json").read_text(encoding="utf-8"))["run"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a copy for people; the checkpoint's own is compared when training resumes
        current = with_seed(config, found.seed)
        check_same_config(stored, current.as_json(), complete=partial(complete_run, current=current))


def check_trainable(config: RunConfig, manifest: Manifest, bad: Sequence[CaseError], folds: Sequence[str]) -> None:
    """Raise before anything is prepared if training would fail, as far as the scans' headers show.

    Args:
        config: the run.
        manifest: the raw cases.
        bad: cases that the reader refused; a fold may lack them, which preparing reports better.
        folds: to train.

    Raises:
        UsageError: a fold has no cases, a domain is unknown or cannot be split as configured, patches would be
            mirrored left to right although structures have sides, or a weighted class is not in the data set.
    """
    config.training.sampling.build(structures=manifest.structures)
    domains = config.dataset.domains
    if not bad:
        validate_split(manifest, folds, domains, where=manifest.name)
    for name in folds:
        check_raw_sides(config, manifest, split_cases(manifest, name, domains)[0])


def with_seed(config: RunConfig, seed: int | None) -> RunConfig:
    """Copy a configuration with another seed; None keeps its own."""
    return config if seed is None else config.model_copy(update={"seed": seed})


def _train_fold(
    place: FoldFolder,
    *,
    config: RunConfig,
    data: Path | str,
    resume: bool,
    init: str | None,
    force: bool,
    progress: bool | None,
    device: str,
    say: Callable[[str], None] | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Train one fold; ``say`` replaces the progress bar where others are trained in parallel."""
    config, folder = with_seed(config, place.seed), PreparedFolder(data)
    trackers = build_trackers(
        config.track, run=place.run, fold=place.name, experiment=config.name, parameters=config.as_json()
    )
    manifest = RunManifest(place.path / MANIFEST_NAME, config, folder, fold=place.fold, device=device)
    cases = training_case_ids(
        config,
        folder,
        split_cases(folder.manifest, place.fold, config.dataset.domains)[0],
        run_dir=place.path,
        build_probe=partial(build_trainer, folder=folder, fold=place.fold, run_dir=None, init=init, device=device),
        say=say or to_stderr,
        ranks=ranks,
        force=force,
    )
    trainer = build_trainer(
        config,
        folder,
        fold=place.fold,
        run_dir=place.path,
        init=init,
        device=device,
        cases=cases,
        callbacks=(manifest, *trackers) if ranks.is_rank_zero else (),
        progress=progress if say is None else False,
        log=say,
        ranks=ranks,
    )
    trainer.fit(resume=resume, force=force)


def _report_unused(manifest: Manifest, fold: str, domains: DomainsConfig | None) -> None:
    unused = unused_cases(manifest, fold, domains)
    if unused:
        counts = f"{sum(unused.values())} of {len(manifest.select(split='training'))}"
        of_each = ", ".join(f"{number} of {domain}" for domain, number in unused.items())
        to_stderr(f"train: {counts} cases are used neither for training nor for validation: {of_each}")


def _check_prepared_for(config: RunConfig, folder: PreparedFolder) -> None:
    """Raise if the cases were not prepared by the configuration, which prediction uses for new scans."""
    name, wanted = config.dataset.name, config.preprocess.build()
    expected = f"{folder.manifest.name}, the data set of {folder.path}"
    require(
        is_dataset(folder.manifest, name),
        "dataset.name",
        got=name,
        expected=expected,
        fix="correct the key, or prepare again",
    )
    if not folder.recipe.completes(wanted):
        there, here = folder.recipe.to_json(), wanted.to_json()
        different = [key for key in here if there[key] != here[key]]
        raise UsageError(
            "preprocess",
            got={key: here[key] for key in different},
            expected=f"{ {key: there[key] for key in different} }, with which {folder.path} was prepared",
            fix="correct the key, or prepare again",
        )
