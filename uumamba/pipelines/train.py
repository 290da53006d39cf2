"""From prepared cases to trained weights, fold by fold."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from uumamba.config import RunConfig
from uumamba.config.training import resolve_precision
from uumamba.data.case import Manifest
from uumamba.data.dataset import PatchDataset, batches
from uumamba.data.prepared import PreparedFolder
from uumamba.data.share import BatchShare
from uumamba.errors import CaseError, UsageError
from uumamba.pipelines.datasets import is_dataset
from uumamba.pipelines.initial_weights import load_initial_weights
from uumamba.pipelines.models import ALL_CASES, FOLDS, check_fold_name, newest_checkpoint
from uumamba.pipelines.sides import check_sides, sided_run
from uumamba.pipelines.stored_config import complete_config, complete_run, stored_config
from uumamba.pipelines.validation import WholeCaseValidation
from uumamba.seeding import seed_everything
from uumamba.training import ALONE, Ranks, Trainer
from uumamba.training.run_folder import refuse_other_config
from uumamba.training.stop_request import StopRequest

EVERY_FOLD = "cv"


def train(
    config: RunConfig,
    *,
    data: Path | str,
    out: Path | str,
    fold: str = "0",
    resume: bool = False,
    init: str | None = None,
    device: str = "cpu",
    force: bool = False,
    progress: bool | None = None,
    ranks: Ranks = ALONE,
) -> list[Path]:
    """Train one fold, all cases together, or the five folds in turn.

    Args:
        config: the run.
        data: a prepared folder.
        out: the run's folder; each fold gets ``out/fold_K`` (or ``out/fold_all``).
        fold: ``"0"`` to ``"4"``, ``"all"`` (no validation) or ``"cv"``.
        resume: go on from the last checkpoint where there is one; finished folds are left alone.
        init: a run folder, a fold's folder or a checkpoint to start the network from.
        device: torch's name of it.
        force: resume although the configuration changed.
        progress: a bar; None decides by the terminal.
        ranks: the processes that train together, each with this same call on a device of its own.

    Returns:
        The folders of the trained folds.

    Raises:
        UsageError: the fold is unknown or has no cases, ranks cannot share a batch equally, the folder was made from
            another data set or by another recipe, patches would be mirrored along left and right although structures
            have sides, or a checkpoint stands there and ``resume`` is off.
        StoppedOnRequest: a signal asked for it; the run can be resumed.
    """
    wanted = folds_of(fold)
    folder = PreparedFolder(data)
    _check_prepared_for(config, folder)
    for name in wanted:  # what the last fold would be refused for is refused before the first is trained
        _check_cases(folder.manifest, name, where=f"{folder.path}")
        sided_run(config, folder, split_cases(folder.manifest, name)[0])
    made: list[Path] = []
    with StopRequest() as stop:
        for name in wanted:
            stop.agree(ranks)
            stop.follow(f"before fold {name}; go on with --resume")
            run_dir = Path(out) / f"fold_{name}"
            trainer = build_trainer(
                config, folder, fold=name, run_dir=run_dir, init=init, device=device, progress=progress, ranks=ranks
            )
            trainer.fit(resume=resume, force=force)
            made.append(run_dir)
    return made


def folds_of(fold: str) -> tuple[str, ...]:
    """The folds that ``--fold`` stands for.

    Raises:
        UsageError: it is none.
    """
    check_fold_name(fold, (*FOLDS, ALL_CASES, EVERY_FOLD))
    return FOLDS if fold == EVERY_FOLD else (fold,)


def refuse_another_run(config: RunConfig, run: Path) -> None:
    """Refuse at once what resuming would refuse when everything has been prepared anew.

    Raises:
        UsageError: a fold of the run was begun with another configuration.
    """
    for name in (*FOLDS, ALL_CASES):
        folder = run / f"fold_{name}"
        if newest_checkpoint(folder) is None:
            continue
        try:
            stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))["run"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it is a copy for people; the checkpoint's own is compared when training resumes
        refuse_other_config(stored, config.as_json(), complete=complete_run)


def refuse_untrainable(config: RunConfig, manifest: Manifest, bad: Sequence[CaseError], folds: Sequence[str]) -> None:
    """Refuse at once what training would refuse when every scan has been prepared, as far as their headers tell.

    Args:
        config: the run.
        manifest: the raw cases.
        bad: those that the reader refused; a fold may lack them, which preparing says better.
        folds: to train.

    Raises:
        UsageError: a fold has no cases, patches would be mirrored along left and right although structures have sides,
            or a class is weighted that the data set lacks.
    """
    config.training.sampling.build(structures=manifest.structures)
    for name in folds:
        if not bad:
            _check_cases(manifest, name, where=manifest.name)
        check_sides(config, manifest, split_cases(manifest, name)[0])


def build_trainer(
    config: RunConfig,
    folder: PreparedFolder,
    *,
    fold: str,
    run_dir: Path | None,
    init: str | None = None,
    device: str = "cpu",
    progress: bool | None = None,
    ranks: Ranks = ALONE,
) -> Trainer:
    """Build every object of a fold's training once, and join them."""
    training, validation = split_cases(folder.manifest, fold)
    structures = dict(folder.manifest.structures)
    sides = sided_run(config, folder, training)
    swaps = None if sides is None else sides.swaps(config.training.patch_size)
    seed_everything(config.seed)
    net = build_net(config, classes=len(structures) + 1)
    if init is not None:
        load_initial_weights(net, init)
    net = ranks.wrap(net.to(device))
    objective = config.objective.build(build_loss(config), net, outputs=config.optim.needs_logits).to(device)
    precision = resolve_precision(config.training.precision, device)
    scaler = torch.amp.GradScaler(device) if precision == "float16" else None
    optimizer = config.optim.build(net, objective, scaler=scaler)
    dataset = PatchDataset(
        folder,
        training,
        patch_size=config.training.patch_size,
        batch_size=config.training.batch_size,
        batches_per_epoch=config.training.batches_per_epoch,
        foreground_fraction=config.training.foreground_fraction,
        sampling=config.training.sampling.build(structures=structures),
        seed=config.seed,
        margin=config.training.read_margin,
    )
    share = BatchShare(dataset, rank=ranks.rank, ranks=ranks.count)
    return Trainer(
        net,
        objective,
        optimizer,
        ascent=config.optim.build_ascent(),
        epochs=config.training.epochs,
        batches=partial(batches, share, workers=config.training.workers),
        augment=config.augment.build(patch_size=config.training.patch_size, mirror_swaps=swaps),
        validate=_validation(config, folder, validation, structures, device, ranks),
        validate_every=config.training.validate_every,
        scheduler=config.schedule.build(
            optimizer, epochs=config.training.epochs, batches_per_epoch=config.training.batches_per_epoch
        ),
        ema_decay=config.training.ema_decay,
        device=device,
        precision=precision,
        max_skipped_in_a_row=config.training.max_skipped_in_a_row,
        run_dir=run_dir,
        config=stored_config(config, folder, fold=fold, sides=sides),
        complete_config=complete_config,
        ranks=ranks,
        progress=progress,
    )


def build_net(config: RunConfig, *, classes: int) -> nn.Module:
    """The run's network, freshly initialised."""
    return config.net.build(in_channels=1, out_channels=classes, patch_size=config.training.patch_size)


def build_loss(config: RunConfig) -> nn.Module:
    """The run's loss, wrapped for deep supervision (a single output passes through unchanged)."""
    from uumamba.losses import DeepSupervisionLoss

    return DeepSupervisionLoss(config.loss.build())


def split_cases(manifest: Manifest, fold: str) -> tuple[list[str], list[str]]:
    """Case ids to train on and to validate on; test cases are neither."""
    cases = manifest.select(split="training")
    if fold == ALL_CASES:
        return [case.case_id for case in cases], []
    return (
        [case.case_id for case in cases if case.fold != int(fold)],
        [case.case_id for case in cases if case.fold == int(fold)],
    )


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


def _check_cases(manifest: Manifest, fold: str, *, where: str) -> None:
    training, validation = split_cases(manifest, fold)
    if not training or (fold != ALL_CASES and not validation):
        raise UsageError(
            f"Fold {fold} of {where} has {len(training)} cases to train on and {len(validation)} to validate on; "
            "prepare more cases or choose another fold (`--fold all` needs no validation cases)."
        )


def _validation(
    config: RunConfig,
    folder: PreparedFolder,
    case_ids: Sequence[str],
    structures: dict[str, int],
    device: str,
    ranks: Ranks,
) -> Callable[[nn.Module], dict[str, float]] | None:
    if not case_ids:
        return None
    return WholeCaseValidation(
        folder,
        case_ids,
        structures=structures,
        patch_size=config.training.patch_size,
        overlap=config.inference.overlap,
        windows_at_once=config.inference.windows_at_once,
        device=device,
        precision=resolve_precision(config.inference.precision, device),
        ranks=ranks,
    )
