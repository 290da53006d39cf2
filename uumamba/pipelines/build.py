"""From a run's configuration to the objects that train it, each built once and joined."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from uumamba.config import RunConfig
from uumamba.config.training import resolve_channels_last, resolve_precision
from uumamba.data.dataset import PatchDataset, batches
from uumamba.data.loader import BatchShare
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.initial_weights import load_initial_weights
from uumamba.pipelines.models import newest_checkpoint
from uumamba.pipelines.quantized import attach_quantization, calibrate_at_start, start_quantized
from uumamba.pipelines.sides import sided_run
from uumamba.pipelines.split import split_cases
from uumamba.pipelines.stored_config import complete_config, stored_config
from uumamba.pipelines.validation import WholeCaseValidation
from uumamba.runtime.errors import UsageError
from uumamba.runtime.memory_format import lay_channels_last
from uumamba.runtime.seeds import generator_for, seed_everything
from uumamba.training import ALONE, Ranks, Trainer
from uumamba.training.callback_list import Callback
from uumamba.types import Method


def build_trainer(
    config: RunConfig,
    folder: PreparedFolder,
    *,
    fold: str,
    run_dir: Path | None,
    init: str | None = None,
    device: str = "cpu",
    cases: Sequence[str] | None = None,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    followers: Sequence[Callback] = (),
    progress: bool | None = None,
    log: Callable[[str], None] | None = None,
    ranks: Ranks = ALONE,
) -> Trainer:
    """Build every object of a fold's training once, and join them.

    In place of the fold's own, ``cases`` are drawn from, and ``validate`` scores the network after an epoch.
    """
    training, validation = split_cases(folder.manifest, fold, config.dataset.domains)
    structures = dict(folder.manifest.structures)
    sides = sided_run(config, folder, training)
    swaps = None if sides is None else sides.swaps(config.training.patch_size)
    seed_everything(config.seed)
    net = build_net(config, classes=len(structures) + 1)
    quantization = config.quantization
    if quantization is not None:
        start_quantized(net, quantization, init=init)
    elif init is not None:
        load_initial_weights(net, init)
    net.to(device)
    channels_last = resolve_channels_last(config.training.channels_last, device)
    if channels_last:
        lay_channels_last(net)  # before ranks lay out their gradients like it
    net = ranks.wrap(net)
    loss = build_loss(config)
    objective = config.objective.build(loss, net, outputs=config.optim.needs_logits).to(device)
    precision = resolve_precision(config.training.precision, device)
    scaler = torch.amp.GradScaler(device) if precision == "float16" else None
    optimizer = config.optim.build(net, objective, scaler=scaler)
    dataset = PatchDataset(
        folder,
        training if cases is None else cases,
        patch_size=config.training.patch_size,
        batch_size=config.training.batch_size,
        batches_per_epoch=config.training.batches_per_epoch,
        foreground_fraction=config.training.foreground_fraction,
        sampling=config.training.sampling.build(structures=structures),
        seed=config.seed,
        margin=config.training.read_margin,
    )
    augment = config.augment.build(patch_size=config.training.patch_size, mirror_swaps=swaps)
    numbers = None
    if quantization is not None:
        first = batches(dataset, 0)
        calibrate_at_start(net, quantization, first, augment=augment, device=device, run_dir=run_dir, ranks=ranks)
        numbers = attach_quantization(quantization, optimizer, net)
    budget = config.schedule.build_budget()
    share = BatchShare(dataset, rank=ranks.rank, ranks=ranks.count)
    return Trainer(
        net,
        objective,
        optimizer,
        ascent=config.optim.build_ascent(),
        method=build_method(config, net, loss, device=device, rank=ranks.rank, run_dir=run_dir),
        epochs=config.training.epochs,
        batches=partial(batches, share, workers=config.training.workers),
        augment=augment,
        read_ahead=device.startswith("cuda"),  # two cores gain nothing by a thread, which takes one
        validate=validate or _validation(config, folder, validation, structures, device, ranks),
        validate_every=config.training.validate_every,
        scheduler=config.schedule.build(
            optimizer,
            epochs=config.training.epochs,
            batches_per_epoch=config.training.batches_per_epoch,
            budget=budget,
        ),
        budget=budget,
        ema_decay=config.training.ema_decay,
        device=device,
        precision=precision,
        channels_last=channels_last,
        compiles=config.training.compile,
        max_skipped_in_a_row=config.training.max_skipped_in_a_row,
        samples_at_once=config.training.samples_at_once,
        save_every_minutes=config.training.save_every_minutes,
        run_dir=run_dir,
        config=stored_config(config, folder, fold=fold, sides=sides),
        complete_config=partial(complete_config, today=config),
        followers=followers,
        numbers=numbers,
        ranks=ranks,
        progress=progress,
        log=log,
    )


def build_net(config: RunConfig, *, classes: int) -> nn.Module:
    """The run's network, freshly initialised."""
    return config.net.build(in_channels=1, out_channels=classes, patch_size=config.training.patch_size)


def build_loss(config: RunConfig) -> nn.Module:
    """The run's loss, wrapped for deep supervision (a single output passes through unchanged)."""
    from uumamba.losses import DeepSupervisionLoss

    return DeepSupervisionLoss(config.loss.build())


def build_method(
    config: RunConfig,
    net: nn.Module,
    loss: nn.Module,
    *,
    device: str = "cpu",
    rank: int = 0,
    run_dir: Path | None = None,
) -> Method | None:
    """What is added to each step, if anything is, after it was seen to fit the network.

    A run that goes on from a checkpoint is not looked at again: it was at its start, and a network whose activations
    are rounded has no scales before the checkpoint is read.

    Args:
        config: the run.
        net: the network that is trained.
        loss: the very one that the objective holds, whose weights learn.
        device: where both are.
        rank: of this process.
        run_dir: the fold's folder, if any.

    Raises:
        UsageError: it cannot train this network.
    """
    method = config.build_method(net, loss, rank=rank)
    if method is None or (run_dir is not None and newest_checkpoint(run_dir) is not None):
        return method
    noise = torch.randn(1, 1, *config.training.patch_size, generator=generator_for("noise to look for the head with"))
    try:
        method.check(noise.to(device))
    except UsageError as error:
        raise UsageError(
            f"domain_generalization {type(method).__name__} cannot train net.name {config.net.name}: {error}"
        ) from error
    return method


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
