"""From prepared cases to trained weights, fold by fold."""

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
from uumamba.pipelines.models import newest_checkpoint
from uumamba.pipelines.on_devices import on_devices
from uumamba.pipelines.run_layout import FoldFolder, fold_folders, folds_of, wanted_folders
from uumamba.pipelines.run_manifest import MANIFEST_NAME, RunManifest
from uumamba.pipelines.run_summary import write_run_summary
from uumamba.pipelines.sides import check_sides, sided_run
from uumamba.pipelines.split import check_split, split_cases, unused_cases
from uumamba.pipelines.stored_config import complete_run
from uumamba.pipelines.useful import fed_cases, refuse_unfit_index
from uumamba.runtime.errors import CaseError, UsageError
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
    """Train one fold, all cases together, or the five folds in turn or at once, with one seed or several.

    ``out/summary.json`` says how the validation Dice of the folds and seeds that are there spreads.

    Args:
        config: the run.
        data: a prepared folder.
        out: the run's folder; each fold gets ``out/fold_K`` (or ``out/fold_all``).
        fold: ``"0"`` to ``"4"``, ``"all"`` (no validation) or ``"cv"``.
        seeds: trains all of it once with each, into ``out/seed_S/fold_K``, in place of the configuration's seed.
        resume: go on from the last checkpoint where there is one; finished folds are left alone.
        init: a run folder, a fold's folder or a checkpoint to start the network from.
        device: torch's name of it; several, such as ``"cuda:0,cuda:1"``, train a fold each at the same time.
        force: resume although the configuration changed.
        progress: a bar; None decides by the terminal. Several devices get lines.
        ranks: the processes that train together, each with this same call on a device of its own.

    Returns:
        The folders of the trained folds.

    Raises:
        UsageError: the fold is unknown or has no cases, a domain is not there or cannot be divided as asked, ranks
            cannot share a batch equally, the folder was prepared from another data set or by another recipe, patches
            would be mirrored along left and right although structures have sides, rounding or freezing would begin
            after the last step of a run that is new, a checkpoint stands there and ``resume`` is off, a tracker is not
            installed, or there are more devices than trainings.
        JobFailedError: training failed on one of several devices.
        StoppedOnRequest: a signal asked for it; the run can be resumed.
    """
    check_trackers(config.track)
    config.check()
    wanted, devices = wanted_folders(Path(out), fold=fold, seeds=seeds), device.split(",")
    if len(devices) > len(wanted):
        raise UsageError(
            f"There are {len(devices)} devices for {len(wanted)} trainings, and each is done on one; give fewer, or "
            "--fold cv or --seeds."
        )
    ranks.on_rank_zero(partial(refuse_unreached, config, wanted))
    folder = PreparedFolder(data)
    _check_prepared_for(config, folder)
    folds, domains = folds_of(fold), config.dataset.domains
    check_split(folder.manifest, folds, domains, where=f"{folder.path}")
    if ranks.is_rank_zero:
        _say_unused(folder.manifest, folds[0], domains)  # the same of every fold
    for name in folds:  # what the last fold would be refused for is refused before the first is trained
        sided_run(config, folder, split_cases(folder.manifest, name, domains)[0])
    for each in wanted:
        refuse_unfit_index(config, folder, split_cases(folder.manifest, each.fold, domains)[0], each.path)
    begin = partial(_train_fold, config=config, data=data, resume=resume, init=init, force=force, progress=progress)
    with StopRequest() as stop:
        if len(devices) > 1:
            on_devices(begin, {each.title: each for each in wanted}, devices, say=to_stderr)
        else:
            for each in wanted:
                stop.sync(ranks)
                stop.raise_if_requested(f"before {each.title}; go on with --resume")
                begin(each, device=device, ranks=ranks)
    if ranks.is_rank_zero:
        write_run_summary(Path(out))
    return [each.path for each in wanted]


def _say_unused(manifest: Manifest, fold: str, domains: DomainsConfig | None) -> None:
    unused = unused_cases(manifest, fold, domains)
    if unused:
        counts = f"{sum(unused.values())} of {len(manifest.select(split='training'))}"
        of_each = ", ".join(f"{number} of {domain}" for domain, number in unused.items())
        to_stderr(f"train: {counts} cases are neither trained nor validated on by dataset.domains: {of_each}")


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
    """Train one fold; where there is a ``say``, others are trained beside it, and a bar would be in their way."""
    config, folder = of_seed(config, place.seed), PreparedFolder(data)
    trackers = build_trackers(
        config.track, run=place.run, fold=place.name, experiment=config.name, parameters=config.as_json()
    )
    manifest = RunManifest(place.path / MANIFEST_NAME, config, folder, fold=place.fold, device=device)
    cases = fed_cases(
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
        followers=(manifest, *trackers) if ranks.is_rank_zero else (),
        progress=progress if say is None else False,
        log=say,
        ranks=ranks,
    )
    trainer.fit(resume=resume, force=force)


def of_seed(config: RunConfig, seed: int | None) -> RunConfig:
    """The configuration with another seed; None keeps its own."""
    return config if seed is None else config.model_copy(update={"seed": seed})


def refuse_unreached(config: RunConfig, wanted: Sequence[FoldFolder]) -> None:
    """Refuse a new run that would end before what it asks for begins; one that was begun so goes on, fold by fold.

    Raises:
        UsageError: rounding or freezing would begin after the last step.
    """
    if any(newest_checkpoint(each.path) is not None for each in wanted):
        return
    try:
        config.check_takes_effect()
    except ValueError as error:
        raise UsageError(f"{error}.") from None


def refuse_another_run(config: RunConfig, run: Path) -> None:
    """Refuse at once what resuming would refuse when everything has been prepared anew.

    Raises:
        UsageError: a fold of the run was begun with another configuration.
    """
    for found in fold_folders(run):
        if newest_checkpoint(found.path) is None:
            continue
        try:
            stored = json.loads((found.path / "config.json").read_text(encoding="utf-8"))["run"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it is a copy for people; the checkpoint's own is compared when training resumes
        now = of_seed(config, found.seed)
        check_same_config(stored, now.as_json(), complete=partial(complete_run, today=now))


def refuse_untrainable(config: RunConfig, manifest: Manifest, bad: Sequence[CaseError], folds: Sequence[str]) -> None:
    """Refuse at once what training would refuse when every scan has been prepared, as far as their headers tell.

    Args:
        config: the run.
        manifest: the raw cases.
        bad: those that the reader refused; a fold may lack them, which preparing says better.
        folds: to train.

    Raises:
        UsageError: a fold has no cases, a domain is not there or cannot be divided as asked, patches would be mirrored
            along left and right although structures have sides, or a class is weighted that the data set lacks.
    """
    config.training.sampling.build(structures=manifest.structures)
    domains = config.dataset.domains
    if not bad:
        check_split(manifest, folds, domains, where=manifest.name)
    for name in folds:
        check_sides(config, manifest, split_cases(manifest, name, domains)[0])


def _check_prepared_for(config: RunConfig, folder: PreparedFolder) -> None:
    """A network sees at prediction what its configuration prepares, so it must be trained on the same."""
    if not is_dataset(folder.manifest, config.dataset.name):
        raise UsageError(
            f"{folder.path} holds the data set {folder.manifest.name}, the configuration names {config.dataset.name}; "
            "prepare again, or correct dataset.name."
        )
    wanted = config.preprocess.build()
    if not folder.recipe.completes(wanted):
        there, here = folder.recipe.to_json(), wanted.to_json()
        different = [f"{key} is {there[key]} there, {here[key]} here" for key in here if there[key] != here[key]]
        raise UsageError(
            f"{folder.path} was prepared by another recipe than the configuration's ({', '.join(different)}); prepare "
            "again, or correct preprocess."
        )
