"""Training of folds and seeds on prepared cases."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from uumamba.config import RunConfig
from uumamba.config.data import DomainsConfig
from uumamba.config.track import build_trackers, check_trackers
from uumamba.data.case import Manifest
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.build import build_trainer, calibrate_at_start, check_method_at_start
from uumamba.pipelines.datasets import is_dataset
from uumamba.pipelines.mirrored_sides import check_prepared_sides, check_raw_sides
from uumamba.pipelines.models import complete_run
from uumamba.pipelines.run_layout import (
    RUN_MANIFEST_NAME,
    FoldFolder,
    RunManifest,
    fold_folders,
    newest_checkpoint,
    select_folders,
    stored_run,
    write_run_summary,
)
from uumamba.pipelines.slow_cases import SlowCases, training_case_ids
from uumamba.pipelines.split import select_folds, split_cases, unused_cases, validate_split
from uumamba.runtime.device_jobs import run_on_devices
from uumamba.runtime.errors import CaseError, require
from uumamba.runtime.observer import Observer, to_stderr
from uumamba.runtime.stop import StopRequest
from uumamba.training import ALONE, Ranks, Trainer, standard_observers
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
    """Train one fold, all cases or five folds, with each seed.

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
        UsageError: the fold is unknown or has no cases, a domain is unknown or cannot be split as configured, the batch
            cannot be split equally over the ranks, the folder was prepared from another data set or by another recipe,
            patches would be mirrored left to right although structures have sides, quantization or freezing of a new
            run would only start after the last step, a checkpoint exists and ``resume`` is off, a tracker is not
            installed, or there are more devices than trainings.
        JobFailedError: training failed on one of several devices.
        StoppedOnRequest: a stop was requested; the run can be resumed.
    """
    check_trackers(config.track)
    config.check()
    targets, devices = select_folders(Path(out), fold=fold, seeds=seeds), device.split(",")
    expected = f"at most one device per training, {len(targets)}"
    require(len(devices) <= len(targets), "--device", got=device, expected=expected, fix="add --fold cv or --seeds")
    ranks.on_rank_zero(partial(check_start, config, targets))
    folder = PreparedFolder(data)
    _check_prepared_for(config, folder)
    folds, domains = select_folds(fold), config.dataset.domains
    validate_split(folder.manifest, folds, domains, where=f"{folder.path}")
    if ranks.is_rank_zero:
        _report_unused(folder.manifest, folds[0], domains)  # the same for every fold
    for name in folds:  # every fold before the first is trained
        check_prepared_sides(config, folder, split_cases(folder.manifest, name, domains)[0])
    if config.training.useful is not None:
        for each in targets:
            training = split_cases(folder.manifest, each.fold, domains)[0]
            SlowCases(config, folder, training, each.path).check_index()
    begin = partial(_train_fold, config=config, data=data, resume=resume, init=init, force=force, progress=progress)
    with StopRequest() as stop:
        if len(devices) > 1:
            run_on_devices(begin, {each.title: each for each in targets}, devices, say=to_stderr)
        else:
            for each in targets:
                stop.sync(ranks)
                stop.raise_if_requested(f"before {each.title}; continue with --resume")
                begin(each, device=device, ranks=ranks)
    if ranks.is_rank_zero:
        write_run_summary(Path(out))
    return [each.path for each in targets]


def check_start(config: RunConfig, targets: Sequence[FoldFolder]) -> None:
    """Raise if a new run ends before quantization or freezing starts.

    A run with any checkpoint is resumed with the settings of its start, in all its folds.

    Raises:
        UsageError: the run is too short.
    """
    if not any(newest_checkpoint(each.path) for each in targets):
        config.check_takes_effect()


def check_same_run(config: RunConfig, run: Path) -> None:
    """Raise if a fold of the run was started with another configuration.

    ``uumamba run`` calls this before anything is prepared.

    Raises:
        UsageError: the configurations differ.
    """
    for found in fold_folders(run):
        stored, current = stored_run(found.path), replace_seed(config, found.seed)
        if stored is not None and newest_checkpoint(found.path) is not None:
            check_same_config(stored, current.as_json(), complete=partial(complete_run, current=current))


def check_trainable(config: RunConfig, manifest: Manifest, bad: Sequence[CaseError], folds: Sequence[str]) -> None:
    """Raise if the raw cases show that training would fail.

    ``uumamba run`` calls this before anything is prepared; of a scan only the header is read.

    Args:
        config: the run.
        manifest: the raw cases.
        bad: failed cases of the reader; with any, empty folds are left to preparing, which reports the cases.
        folds: the folds to train.

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


def replace_seed(config: RunConfig, seed: int | None) -> RunConfig:
    """Copy a configuration with another seed; None keeps the seed."""
    return config if seed is None else config.model_copy(update={"seed": seed})


@dataclass
class FoldTraining:
    """Training of one fold, completed by the steps before ``fit``.

    Args:
        config: the run, with the seed of this training.
        folder: the prepared cases.
        fold: ``"0"`` to ``"4"`` or ``"all"``.
        cases: ids of the training cases, in order.
        run_dir: the fold folder; None stores nothing, as for a probe.
        init: a model to start the network from.
        device: torch's name of the device.
        ranks: the processes that train together.
        force: keep stored slow cases of other settings.
        say: called with each sentence.
        observers: observers of the training.
        validate: validation in place of the fold's.
    """

    config: RunConfig
    folder: PreparedFolder
    fold: str
    cases: Sequence[str]
    run_dir: Path | None
    init: str | None
    device: str
    ranks: Ranks
    force: bool
    say: Callable[[str], None]
    observers: Sequence[Observer] = ()
    validate: Callable[[nn.Module], dict[str, float]] | None = None
    trainer: Trainer = field(init=False)

    def find_slow_cases(self) -> None:
        """List slowly learned cases several times, found by a short training."""
        if self.run_dir is not None:
            run_dir, build_probe, say = self.run_dir, self._build_probe, self.say
            self.cases = training_case_ids(
                self.config,
                self.folder,
                self.cases,
                run_dir=run_dir,
                build_probe=build_probe,
                say=say,
                ranks=self.ranks,
                force=self.force,
            )

    def build(self) -> None:
        """Build the trainer."""
        self.trainer = build_trainer(
            self.config,
            self.folder,
            fold=self.fold,
            run_dir=self.run_dir,
            init=self.init,
            device=self.device,
            cases=self.cases,
            validate=self.validate,
            observers=self.observers,
            ranks=self.ranks,
        )

    def calibrate(self) -> None:
        """Calibrate quantized activations."""
        calibrate_at_start(self.trainer, self.config, self.folder, self.cases)

    def check_method(self) -> None:
        """Check the domain-generalization method against the network."""
        check_method_at_start(self.trainer, self.config)

    def _build_probe(self, config: RunConfig, **options: Any) -> Trainer:
        probe = replace(self, config=config, run_dir=None, ranks=ALONE, **options)
        for step in BEFORE_FIT.values():
            step(probe)
        return probe.trainer


BEFORE_FIT: Mapping[str, Callable[[FoldTraining], None]] = {
    "find slow cases": FoldTraining.find_slow_cases,
    "build": FoldTraining.build,
    "calibrate": FoldTraining.calibrate,
    "check the method": FoldTraining.check_method,
}
"""Steps of a fold's training before ``fit``, in order."""


def _train_fold(
    target: FoldFolder,
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
    """Train one fold.

    ``say`` replaces the progress bar where folds are trained in parallel.
    """
    config, folder = replace_seed(config, target.seed), PreparedFolder(data)
    trackers = build_trackers(
        config.track, run=target.run, fold=target.name, experiment=config.name, parameters=config.as_json()
    )
    manifest = RunManifest(target.path / RUN_MANIFEST_NAME, config, folder, fold=target.fold, device=device)
    training = FoldTraining(
        config,
        folder,
        fold=target.fold,
        cases=split_cases(folder.manifest, target.fold, config.dataset.domains)[0],
        run_dir=target.path,
        init=init,
        device=device,
        ranks=ranks,
        force=force,
        say=say or to_stderr,
        observers=(*standard_observers(progress=progress if say is None else False, log=say), manifest, *trackers),
    )
    for step in BEFORE_FIT.values():
        step(training)
    training.trainer.fit(resume=resume, force=force)


def _report_unused(manifest: Manifest, fold: str, domains: DomainsConfig | None) -> None:
    if unused := unused_cases(manifest, fold, domains):
        counts = f"{sum(unused.values())} of {len(manifest.select(split='training'))}"
        by_domain = ", ".join(f"{count} of {domain}" for domain, count in unused.items())
        to_stderr(f"train: {counts} cases are used neither for training nor for validation: {by_domain}")


def _check_prepared_for(config: RunConfig, folder: PreparedFolder) -> None:
    """Raise if the cases were prepared from another data set or recipe.

    Prediction preprocesses new scans by the configuration.
    """
    name, recipe = config.dataset.name, config.preprocess.build()
    fix = "correct the key, or prepare again"
    expected = f"{folder.manifest.name}, the data set of {folder.path}"
    require(is_dataset(folder.manifest, name), "dataset.name", got=name, expected=expected, fix=fix)
    used, given = folder.recipe.to_json(), recipe.to_json()
    different = [key for key in given if used[key] != given[key]]
    require(
        folder.recipe.completes(recipe),
        "preprocess",
        got={key: given[key] for key in different},
        expected=f"{ {key: used[key] for key in different} }, the recipe of {folder.path}",
        fix=fix,
    )
