"""Trainer of one fold, built from a run's configuration."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from uumamba.config import RunConfig
from uumamba.config.augmentation import build_augment
from uumamba.config.bind import Part
from uumamba.config.learning_rate import build_budget, build_schedule
from uumamba.config.net import build_network
from uumamba.config.objectives import build_objective
from uumamba.config.optim import build_ascent, build_optimizer, needs_logits
from uumamba.config.quantization import attach_gaqat
from uumamba.config.training import resolve_channels_last, resolve_precision
from uumamba.data.dataset import PatchDataset, batches
from uumamba.data.loader import BatchShare
from uumamba.data.prepared import PreparedFolder
from uumamba.evaluation import mean_dice
from uumamba.inference import Predictor
from uumamba.metrics import dice_coefficient
from uumamba.optim import SharpnessAware
from uumamba.pipelines.mirrored_sides import check_prepared_sides
from uumamba.pipelines.models import complete_config, load_initial_weights, stored_config
from uumamba.pipelines.run_layout import newest_checkpoint
from uumamba.pipelines.split import split_cases
from uumamba.quantization import ActivationQuantizer, calibrate, quantized_layers
from uumamba.runtime.errors import UsageError
from uumamba.runtime.memory_format import lay_channels_last
from uumamba.runtime.network import bare_network, batch_to_device
from uumamba.runtime.seeds import generator_for, seed_everything
from uumamba.training import ALONE, Ranks, Trainer
from uumamba.training.callback_list import Callback
from uumamba.types import Batch, Method

Validate = Callable[[nn.Module], dict[str, float]]


def build_trainer(
    config: RunConfig,
    folder: PreparedFolder,
    *,
    fold: str,
    run_dir: Path | None,
    init: str | None = None,
    device: str = "cpu",
    cases: Sequence[str] | None = None,
    validate: Validate | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool | None = None,
    log: Callable[[str], None] | None = None,
    ranks: Ranks = ALONE,
) -> Trainer:
    """Build every object of a fold's training once, for a Trainer.

    Args:
        config: the run.
        folder: the prepared cases.
        fold: ``"0"`` to ``"4"`` or ``"all"``.
        run_dir: the fold folder; None stores nothing.
        init: a model whose weights the network starts from.
        device: torch's name of the training device.
        cases: training cases in place of the fold's.
        validate: validation after an epoch in place of the fold's.
        callbacks: callbacks that get each epoch's row.
        progress: a bar; None shows one on a terminal.
        log: called with each line of progress.
        ranks: the processes that train together.
    """
    training, validation = split_cases(folder.manifest, fold, config.dataset.domains)
    structures = dict(folder.manifest.structures)
    sides = check_prepared_sides(config, folder, training)
    swaps = None if sides is None else sides.swaps(config.training.patch_size)
    seed_everything(config.seed)
    net = build_net(config, classes=len(structures) + 1)
    quantization = config.quantization
    if init is not None:
        load_initial_weights(net, init, quantize=None if quantization is None else quantization.bind())
    elif quantization is not None:
        quantization.bind()(net)
    net.to(device)
    channels_last = resolve_channels_last(config.training.channels_last, device)
    if channels_last:
        lay_channels_last(net)  # before the ranks allocate their gradients in the same format
    net = ranks.wrap(net)
    loss = build_loss(config)
    objective = build_objective(config.objective, loss, net, outputs=needs_logits(config.optim)).to(device)
    precision = resolve_precision(config.training.precision, device)
    scaler = torch.amp.GradScaler(device) if precision == "float16" else None
    optimizer = build_optimizer(config.optim, net, objective, scaler=scaler)
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
    augment = build_augment(config.augment, patch_size=config.training.patch_size, mirror_swaps=swaps)
    figures = None
    if quantization is not None:
        first = batches(dataset, 0)
        calibrate_at_start(net, quantization, first, augment=augment, device=device, run_dir=run_dir, ranks=ranks)
        figures = attach_quantization(quantization, optimizer, net)
    if validate is None and validation:
        validate = WholeCaseValidation(config, folder, validation, device=device, ranks=ranks)
    budget = build_budget(config.schedule)
    return Trainer(
        net,
        objective,
        optimizer,
        ascent=build_ascent(config.optim),
        method=build_method(config, net, loss, device=device, rank=ranks.rank, run_dir=run_dir),
        epochs=config.training.epochs,
        batches=partial(
            batches,
            BatchShare(dataset, rank=ranks.rank, ranks=ranks.count),
            workers=config.training.workers,
        ),
        augment=augment,
        read_ahead=device.startswith("cuda"),  # on a CPU the thread would take a core from the training
        validate=validate,
        validate_every=config.training.validate_every,
        scheduler=build_schedule(
            config.schedule,
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
        complete_config=partial(complete_config, current=config),
        callbacks=callbacks,
        numbers=figures,
        ranks=ranks,
        progress=progress,
        log=log,
    )


def build_net(config: RunConfig, *, classes: int) -> nn.Module:
    """Build the run's network with random initial weights."""
    return build_network(config.net, in_channels=1, out_channels=classes, patch_size=config.training.patch_size)


def build_loss(config: RunConfig) -> nn.Module:
    """Build the run's loss for deep supervision or a single output."""
    from uumamba.losses import DeepSupervisionLoss

    return DeepSupervisionLoss(config.loss.bind()())


def build_method(
    config: RunConfig,
    net: nn.Module,
    loss: nn.Module,
    *,
    device: str = "cpu",
    rank: int = 0,
    run_dir: Path | None = None,
) -> Method | None:
    """Build the run's domain-generalization method; None without one.

    The method is checked against the network only at the start of a run. A resumed run was checked then, and its
    quantized activations have no scales before the checkpoint is read.

    Args:
        config: the run.
        net: the trained network.
        loss: the same object as in the objective, since its weights learn.
        device: of the network and the loss.
        rank: of this process.
        run_dir: the fold folder, if any.

    Raises:
        UsageError: the method cannot train this network.
    """
    method = config.build_method(net, loss, rank=rank)
    if method is None or (run_dir is not None and newest_checkpoint(run_dir) is not None):
        return method
    noise = torch.randn(1, 1, *config.training.patch_size, generator=generator_for("noise to look for the head with"))
    try:
        method.check(noise.to(device))
    except UsageError as error:
        expected = f"a network for {type(method).__name__} ({str(error).removesuffix('.')})"
        raise UsageError("net.name", got=config.net.name, expected=expected) from error
    return method


def calibrate_at_start(
    net: nn.Module,
    quantization: Part,
    batches: Iterable[Batch],
    *,
    augment: Callable[[Batch], Batch],
    device: str,
    run_dir: Path | None,
    ranks: Ranks = ALONE,
) -> None:
    """Calibrate the activations' scales on the first batches of a run.

    A resumed run has the scales of its checkpoint. Scales that were copied with initial weights are kept. Rank 0 uses
    batches of full size and broadcasts its scales. The network runs in training mode, so that heads of deep supervision
    are used, without autocast.
    """
    inputs = [layer.input for layer in quantized_layers(net) if layer.input is not None]
    copied = [_scale_of(each) for each in inputs]
    if None not in copied:
        return

    def find_scales() -> list[tuple[float, bool] | None]:
        if run_dir is not None and newest_checkpoint(run_dir) is not None:
            return copied
        ready = (augment(batch_to_device(batch, device)) for batch in islice(batches, quantization.calibration_batches))
        calibrate(bare_network(net).train(), ready, run=lambda network, batch: network(batch["image"]))
        return [_scale_of(each) for each in inputs]

    found = ranks.broadcast(ranks.on_rank_zero(find_scales))
    for each, before, now in zip(inputs, copied, found, strict=True):
        if scale := before or now:
            each.set_scale(scale[0], signed=scale[1])


def attach_quantization(quantization: Part, optimizer: SharpnessAware, net: nn.Module) -> Callable[[], dict[str, Any]]:
    """Attach GAQAT to the optimizer; return a function for an epoch's figures."""
    gaqat = attach_gaqat(quantization, optimizer, bare_network(net))

    def figures() -> dict[str, Any]:
        found: dict[str, Any] = {}
        weights = [layer.weight for layer in quantized_layers(bare_network(net))]
        left = [int(each.steps_left) for each in weights if each is not None and each.steps_left is not None]
        if any(left):
            found["quantization"] = {"steps_left": max(left)}
        if gaqat is not None:
            found["gaqat"] = {"frozen_fraction": gaqat.frozen_fraction}
            if gaqat.disorder:
                every = torch.cat([each.flatten() for each in gaqat.disorder.values()])
                found["gaqat"]["disorder"] = float(every.nanmean())
        return found

    return figures


def _scale_of(quantizer: ActivationQuantizer) -> tuple[float, bool] | None:
    """Return scale and sign; None before calibration."""
    return None if quantizer.levels is None else (float(quantizer.scale.detach()), bool(quantizer.signed))


class WholeCaseValidation:
    """Validation by the Dice of complete prepared cases.

    ``validate(net)`` returns ``{"dice": mean, "dice_RV": ..., ...}``. Each case is segmented by the sliding window
    without mirroring, and its Dice per structure is computed on the prepared grid. A structure that is absent from
    label and prediction does not count. ``uumamba evaluate`` computes the final scores on the native grid.

    Args:
        config: the run.
        folder: prepared cases.
        case_ids: the validation cases.
        device: of the network.
        ranks: the processes that train together; each segments a share of the cases, and all return the same scores.
    """

    def __init__(
        self, config: RunConfig, folder: PreparedFolder, case_ids: Sequence[str], *, device: str, ranks: Ranks = ALONE
    ) -> None:
        self.folder, self.case_ids = folder, tuple(case_ids)
        self.structures: Mapping[str, int] = folder.manifest.structures
        self.ranks = ranks
        self._build_predictor = partial(
            Predictor,
            patch_size=config.training.patch_size,
            overlap=config.inference.overlap,
            sw_batch_size=config.inference.windows_at_once,
            device=device,
            precision=resolve_precision(config.inference.precision, device),
        )

    def __call__(self, net: nn.Module) -> dict[str, float]:
        """Compute the mean Dice of each structure and of all."""
        predictor, ranks = self._build_predictor(net), self.ranks
        shares = ranks.gather(
            [self._compute_dice(name, predictor) for name in self.case_ids[ranks.rank :: ranks.count]]
        )
        # In the order of the cases, so that sums round as in one process.
        rows = [shares[index % ranks.count][index // ranks.count] for index in range(len(self.case_ids))]
        mean = mean_dice({name: [row[name] for row in rows] for name in self.structures})
        each = {f"dice_{name}": dice for name, dice in mean.structures.items() if dice is not None}
        return {"dice": mean.as_dict()["dice"]} | each

    def _compute_dice(self, case_id: str, predictor: Predictor) -> dict[str, float]:
        case = self.folder.case(case_id)
        prediction = predictor.prepared_probabilities(np.asarray(case.image), case_id=case_id).argmax(axis=0)
        label = np.asarray(case.label)
        return {name: dice_coefficient(prediction == value, label == value) for name, value in self.structures.items()}
