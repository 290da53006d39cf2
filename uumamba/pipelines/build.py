"""Trainer of one fold, built from a run's configuration."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from uumamba.config import RunConfig
from uumamba.config.augmentation import build_augment
from uumamba.config.learning_rate import build_schedule
from uumamba.config.objectives import build_objective
from uumamba.config.optim import build_ascent, build_optimizer, needs_logits
from uumamba.config.quantization import attach_gaqat
from uumamba.config.stored_config import FINGERPRINT, complete_config, stored_config
from uumamba.config.training import resolve_channels_last, resolve_precision
from uumamba.data.dataset import PatchDataset, batches
from uumamba.data.label_scheme import LabelScheme
from uumamba.data.loader import BatchShare
from uumamba.data.prepared import PreparedFolder
from uumamba.evaluation import mean_dice
from uumamba.inference import Predictor
from uumamba.metrics import dice_coefficient
from uumamba.pipelines.jobs import Job
from uumamba.pipelines.models import load_initial_weights, warn_of_slow_scan
from uumamba.quantization import GAQAT, ActivationQuantizer, calibrate, quantized_layers
from uumamba.runtime.memory_format import lay_channels_last
from uumamba.runtime.network import bare_network, batch_to_device
from uumamba.runtime.observer import Observer, Row, RunView
from uumamba.runtime.painting import select_values
from uumamba.runtime.seeds import seed_everything
from uumamba.training import (
    ALONE,
    Execution,
    MovingAverage,
    Prefetcher,
    Ranks,
    RunFolder,
    StepOptions,
    Trainer,
    Validation,
    standard_observers,
)
from uumamba.training.run_folder import list_checkpoints
from uumamba.types import Batch

Validate = Callable[[nn.Module], dict[str, float]]


def build_trainer(
    job: Job,
    folder: PreparedFolder,
    *,
    run_dir: Path | None,
    init: str | None = None,
    device: str = "cpu",
    cases: Sequence[str] | None = None,
    validate: Validate | None = None,
    observers: Sequence[Observer] | None = None,
    ranks: Ranks = ALONE,
) -> Trainer:
    """Build every object of a fold's training once, for a Trainer.

    Before ``fit`` call :func:`calibrate_at_start`.

    Args:
        job: configuration, cases and sides.
        folder: the prepared cases.
        run_dir: the fold folder; None stores nothing.
        init: a model whose weights the network starts from.
        device: torch's name of the training device.
        cases: training cases in place of the job's.
        validate: validation after an epoch in place of the job's.
        observers: display, plot, trackers and others; None for those of the Trainer.
        ranks: the processes that train together.
    """
    config, labels = job.config, folder.manifest.labels
    channels_last = resolve_channels_last(config.training.channels_last, device)
    net = ranks.wrap(build_start(config, folder, init=init, device=device, warns=ranks.is_rank_zero))
    loss = build_loss(config, labels)
    outputs = needs_logits(config.optim)
    objective = build_objective(config.objective, loss, net, outputs=outputs, labels=labels).to(device)
    precision = resolve_precision(config.training.precision, device)
    scaler = torch.amp.GradScaler(device) if precision == "float16" else None
    optimizer = build_optimizer(config.optim, net, objective, labels=labels, scaler=scaler)
    dataset = build_dataset(config, folder, job.training_ids if cases is None else cases)
    observers = standard_observers() if observers is None else observers
    if config.quantization is not None:
        counters = QuantizationCounters(net, attach_gaqat(config.quantization, optimizer, bare_network(net)))
        observers = (counters, *observers)
    if validate is None and job.validation_ids:
        validate = WholeCaseValidation(config, folder, job.validation_ids, device=device, ranks=ranks)
    share, training_options = BatchShare(dataset, rank=ranks.rank, ranks=ranks.count), config.training
    return Trainer(
        net,
        objective,
        optimizer,
        batches=Prefetcher(
            partial(batches, share, workers=training_options.workers),
            augment=build_augmentation(job, folder),
            read_ahead=device.startswith("cuda"),  # on a CPU the thread would take a core from the training
        ),
        epochs=training_options.epochs,
        step=StepOptions(
            ascent=build_ascent(config.optim, labels),
            method=config.build_method(net, loss, rank=ranks.rank, ignore_label=labels.ignore_label),
            samples_at_once=training_options.samples_at_once,
            max_skipped_in_a_row=training_options.max_skipped_in_a_row,
        ),
        execution=Execution(
            device=device,
            precision=precision,
            channels_last=channels_last,
            compiles=training_options.compile,
            ranks=ranks,
        ),
        schedule=build_schedule(
            config.schedule,
            optimizer,
            epochs=training_options.epochs,
            batches_per_epoch=training_options.batches_per_epoch,
        ),
        average=None if training_options.ema_decay is None else MovingAverage(net, training_options.ema_decay),
        validation=None if validate is None else Validation(validate, every=training_options.validate_every),
        folder=None if run_dir is None else build_run_folder(job, folder, run_dir),
        observers=observers,
    )


def build_start(
    config: RunConfig, folder: PreparedFolder, *, init: str | None, device: str, warns: bool = True
) -> nn.Module:
    """Seed the global generators and build a run's network on its device.

    Args:
        config: the run.
        folder: the prepared cases.
        init: a model whose weights the network starts from.
        device: torch's name of the training device.
        warns: warn of a slow selective scan.
    """
    labels, channels, quantization = folder.manifest.labels, folder.manifest.channels, config.quantization
    seed_everything(config.seed)
    net = config.build_net(classes=labels.outputs, channels=len(channels))
    if init is not None:
        quantize = None if quantization is None else quantization.bind()
        load_initial_weights(net, init, quantize=quantize, channels=channels, labels=labels)
    elif quantization is not None:
        quantization.bind()(net)
    net.to(device)
    if warns:
        warn_of_slow_scan(net, device)
    if resolve_channels_last(config.training.channels_last, device):
        lay_channels_last(net)  # before ranks allocate their gradients in the same format
    return net


def build_augmentation(job: Job, folder: PreparedFolder) -> Callable[[Batch], Batch]:
    """Build the random transforms of a fold's batches."""
    patch_size = job.config.training.patch_size
    swaps = None if job.sides is None else job.sides.swaps(patch_size)
    return build_augment(
        job.config.augment, patch_size=patch_size, mirror_swaps=swaps, channels=len(folder.manifest.channels)
    )


def build_run_folder(job: Job, folder: PreparedFolder, run_dir: Path) -> RunFolder:
    """Build a fold's run folder, with a configuration that suffices for prediction."""
    config = job.config
    stored = stored_config(
        config,
        folder,
        fold=job.folder.fold,
        sides=None if job.sides is None else job.sides.to_json(),
        training_ids=job.training_ids,
    )
    return RunFolder(
        run_dir,
        config=stored,
        complete_config=partial(
            complete_config, current=config, labels=folder.manifest.labels, fingerprint=stored.get(FINGERPRINT)
        ),
        save_every_minutes=config.training.save_every_minutes,
    )


def build_loss(config: RunConfig, labels: LabelScheme | None = None) -> nn.Module:
    """Build the run's loss for deep supervision or a single output.

    Args:
        config: the run.
        labels: labels of the data set; None for classes without ignored voxels.
    """
    from uumamba.losses import DeepSupervisionLoss

    given = {} if labels is None else {"membership": labels.membership, "ignore_label": labels.ignore_label}
    return DeepSupervisionLoss(config.loss.bind()(**{key: each for key, each in given.items() if each is not None}))


def build_dataset(config: RunConfig, folder: PreparedFolder, cases: Sequence[str]) -> PatchDataset:
    """Build the data set of a training, in batches of full size."""
    training = config.training
    return PatchDataset(
        folder,
        cases,
        patch_size=training.patch_size,
        batch_size=training.batch_size,
        batches_per_epoch=training.batches_per_epoch,
        foreground_fraction=training.foreground_fraction,
        sampling=training.sampling.build(structures=folder.manifest.classes),
        neighbour_slices=training.neighbour_slices,
        seed=config.seed,
        margin=training.read_margin,
    )


def calibrate_at_start(trainer: Trainer, config: RunConfig, folder: PreparedFolder, cases: Sequence[str]) -> None:
    """Calibrate the activations' scales on the first batches of a run.

    A resumed run has the scales of its checkpoint. Scales that were copied with initial weights are kept. Rank 0 uses
    batches of full size and broadcasts its scales. The network runs in training mode, so that heads of deep supervision
    are used, without autocast. The moving average gets the same scales.

    Args:
        trainer: trainer of the run.
        config: the run.
        folder: the prepared cases.
        cases: the training cases.
    """
    inputs = _find_inputs(trainer.net)
    copied = [_scale_of(each) for each in inputs]
    if config.quantization is None or None not in copied:
        return
    count = config.quantization.calibration_batches

    def find_scales() -> list[tuple[float, bool] | None]:
        if _is_resumed(trainer):
            return copied
        first = batches(build_dataset(config, folder, cases), 0)
        augment = trainer.prefetcher.augment or (lambda batch: batch)
        ready = (augment(batch_to_device(batch, trainer.device)) for batch in islice(first, count))
        calibrate(trainer.net.train(), ready, run=lambda network, batch: network(batch["image"]))
        return [_scale_of(each) for each in inputs]

    ranks = trainer.execution.ranks
    found = ranks.broadcast(ranks.on_rank_zero(find_scales))
    for net in (trainer.net, *(() if trainer.average is None else (trainer.average.module,))):
        for each, before, now in zip(_find_inputs(net), copied, found, strict=True):
            if scale := before or now:
                each.set_scale(scale[0], signed=scale[1])


def _find_inputs(net: nn.Module) -> list[ActivationQuantizer]:
    return [layer.input for layer in quantized_layers(net) if layer.input is not None]


def _is_resumed(trainer: Trainer) -> bool:
    """Return whether the run continues from a checkpoint, on rank 0."""
    return trainer.folder is not None and bool(list_checkpoints(trainer.folder.path))


class QuantizationCounters(Observer):
    """Counters of quantization in each epoch's row: steps left, frozen scales, disorder.

    Args:
        net: the quantized network.
        gaqat: the freezing of scales, if any.
    """

    def __init__(self, net: nn.Module, gaqat: GAQAT | None) -> None:
        self.net, self.gaqat = bare_network(net), gaqat

    def on_epoch_end(self, run: RunView, row: Row) -> None:
        """Add the counters that have begun to move."""
        weights = [layer.weight for layer in quantized_layers(self.net)]
        left = [int(each.steps_left) for each in weights if each is not None and each.steps_left is not None]
        if any(left):
            row["quantization"] = {"steps_left": max(left)}
        if self.gaqat is not None:
            row["gaqat"] = {"frozen_fraction": self.gaqat.frozen_fraction}
            if self.gaqat.disorder:
                every = torch.cat([each.flatten() for each in self.gaqat.disorder.values()])
                row["gaqat"]["disorder"] = float(every.nanmean())


def _scale_of(quantizer: ActivationQuantizer) -> tuple[float, bool] | None:
    """Return scale and sign; None before calibration."""
    return None if quantizer.levels is None else (float(quantizer.scale.detach()), bool(quantizer.signed))


class WholeCaseValidation:
    """Validation by the Dice of complete prepared cases.

    ``validate(net)`` returns ``{"dice": mean, "dice_RV": ..., ...}``. Each case is segmented by the sliding window
    without mirroring, and its Dice per structure or region is computed on the prepared grid, without ignored voxels. A
    structure that is absent from label and prediction does not count. ``uumamba evaluate`` computes the final scores on
    the native grid.

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
        labels = folder.manifest.labels
        self.targets, self.ignore_label = labels.target_classes, labels.ignore_label
        self.ranks = ranks
        self._build_predictor = partial(
            Predictor,
            patch_size=config.training.patch_size,
            neighbour_slices=config.training.neighbour_slices,
            overlap=config.inference.overlap,
            sw_batch_size=config.inference.windows_at_once,
            device=device,
            precision=resolve_precision(config.inference.precision, device),
            painted=labels.painted,
        )

    def __call__(self, net: nn.Module) -> dict[str, float]:
        """Compute the mean Dice of each structure and of all."""
        return self.average([*self.score_cases(net).values()])

    def score_cases(self, net: nn.Module) -> dict[str, dict[str, float]]:
        """Compute the Dice of each structure in each case."""
        predictor, ranks = self._build_predictor(net), self.ranks
        shares = ranks.gather(
            [self._compute_dice(name, predictor) for name in self.case_ids[ranks.rank :: ranks.count]]
        )
        # In the order of the cases, so that sums round as in one process.
        return {name: shares[index % ranks.count][index // ranks.count] for index, name in enumerate(self.case_ids)}

    def average(self, rows: Sequence[dict[str, float]]) -> dict[str, float]:
        """Average the Dice of some cases, for each structure and over all."""
        mean = mean_dice({name: [row[name] for row in rows] for name in self.targets})
        each = {f"dice_{name}": dice for name, dice in mean.structures.items() if dice is not None}
        return {"dice": mean.as_dict()["dice"]} | each

    def _compute_dice(self, case_id: str, predictor: Predictor) -> dict[str, float]:
        case = self.folder.case(case_id)
        prediction = predictor.find_label(predictor.prepared_probabilities(np.asarray(case.image), case_id=case_id))
        label = np.asarray(case.label)
        if self.ignore_label is not None:
            prediction[label == self.ignore_label] = 0
        return {
            name: dice_coefficient(select_values(prediction, values), select_values(label, values))
            for name, values in self.targets.items()
        }
