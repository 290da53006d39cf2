"""Training and measures of one run on hearts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from statistics import fmean
from time import process_time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.claims.acdc import Feed, make_feed, make_start, select_over_groups
from benchmarks.claims.heart_methods import METHODS, PLAIN, HeartMethod
from benchmarks.claims.low_bits import fit_scales
from benchmarks.claims.measures import largest_eigenvalue_by_differences
from benchmarks.claims.run_log import Measured, Run
from benchmarks.claims.shift_methods import find_slow_cases
from benchmarks.claims.shifted_patients import ORIGINAL
from benchmarks.claims.training import Recipe, train
from uumamba.config import RunConfig, read_config
from uumamba.data.prepared import PreparedFolder
from uumamba.data.vendor_styles import STYLES
from uumamba.domain_generalization import SWAD, upsampled
from uumamba.inference import Predictor
from uumamba.losses import CrossEntropyLoss, SoftDiceLoss, SummedLoss
from uumamba.metrics import dice_coefficient
from uumamba.quantization import calibrate, quantize_
from uumamba.runtime.network import finest_logits
from uumamba.runtime.seeds import generator_for
from uumamba.types import Batch

CONFIG = "benchmarks/claims/hearts.yaml"
TEST_FOLD, INNER_FOLD, TRAINING_FOLDS = 0, 1, (2, 3, 4)
LEARNED, DICE_CE = "learned weights", "Dice + CE"
LOSSES = {LEARNED: "uncertainty_weighted", DICE_CE: "dice_cross_entropy"}
WARMUP, EMA_DECAY, SWAD_VALIDATIONS = 50, 0.99, 40
GAP_PATIENTS = 20
PROBE_SHARE = 0.02
FULL_SHARE = 2 / 3
BINS = 15

Array = NDArray[Any]


@dataclass(frozen=True)
class Cell:
    """Patients, network and loss of a run; as text, its setting."""

    patients: int = 40
    net: str = "UMambaBot"
    loss: str = LEARNED

    def __str__(self) -> str:
        return f"{self.patients} patients, {self.net}, {self.loss}"

    @classmethod
    def parse(cls, setting: str) -> "Cell":
        """Parse the text of a cell."""
        patients, net, loss = setting.split(", ")
        return cls(int(patients.split()[0]), net, loss)

    def read_config(self, settings: Sequence[str] = (), *, lr: float = 1e-3) -> RunConfig:
        """Read the configuration of a cell, with further settings."""
        own = (f"net.name={self.net}", f"loss.name={LOSSES[self.loss]}", f"optim.base.lr={lr}")
        return read_config(CONFIG, [*own, *settings])


def list_cases(prepared: Path, folds: Sequence[int], patients: int | None = None) -> list[str]:
    """List the cases of folds, optionally of a number of patients.

    Patients are taken from each diagnosis in turn.
    """
    cases = [case for fold in folds for case in PreparedFolder(prepared).manifest.select(fold=fold)]
    chosen = set(select_over_groups(cases, patients))
    return [case.case_id for case in cases if case.patient_id in chosen]


def perform(run: Run, *, prepared: Path, styles: Mapping[str, Path]) -> Measured:
    """Train and measure one run.

    Runs that measure ``"validation"`` are scored on the inner fold, all others on the test fold.
    """
    began = process_time()
    method, cell = METHODS[run.method], Cell.parse(run.setting)
    config = cell.read_config(method.settings, lr=run.lr)
    training = list_cases(prepared, TRAINING_FOLDS, cell.patients)
    nets = train_networks(run, method, config, prepared, training)
    found: Measured = {"training_seconds": round(process_time() - began, 1)}
    scored = list_cases(prepared, (INNER_FOLD if run.measures == "validation" else TEST_FOLD,))
    scores = {name: score_cases(net, prepared, scored) for name, net in nets.items()}
    found |= {name: dice for name, (dice, _) in scores.items()} | {"ece": scores["dice"][1]}
    if run.measures == "validation":
        return found
    seen = list_cases(prepared, TRAINING_FOLDS, min(cell.patients, GAP_PATIENTS))
    found["training dice"] = score_cases(nets["dice"], prepared, seen)[0]
    found["eigenvalue"] = compute_eigenvalue(nets["dice"], prepared, training)
    if run.measures == "styles":
        shifted = {name: score_cases(nets["dice"], styles[name], scored)[0] for name in STYLES}
        found["styles"] = {ORIGINAL: found["dice"]} | shifted
    return found


def train_networks(
    run: Run, method: HeartMethod, config: RunConfig, prepared: Path, training: Sequence[str]
) -> dict[str, nn.Module]:
    """Train the network ``dice``, and averages of the plain one.

    The averages of the plain optimizer are ``ema`` and ``swad``.
    """
    start = make_start(config, prepared, run.seed)
    feed = make_feed(config, prepared, run.seed, cases=choose_cases(run, method, config, prepared, training))
    if method.images is not None:
        feed = _change_images(feed, method.images())
    steps = run.steps
    if method.first_half is not None:
        steps -= run.steps // 2
        _train(METHODS[method.first_half].build(start, run.steps // 2, None), feed, run.steps // 2)
    if method.rounds_early:
        steps = round(FULL_SHARE * run.steps)
    recipe = method.build(start, steps, run.value)
    averages = Averages(recipe, partial(compute_inner_loss, prepared), steps) if run.method == PLAIN else None
    _train(recipe, feed, steps)
    if method.bits is not None:
        quantize_network(recipe.net, method.bits, feed)
    if method.rounds_early:
        _train(method.build(start, run.steps - steps, None), feed, run.steps - steps)
    return {"dice": recipe.net} if averages is None else {"dice": recipe.net} | averages.finish()


class Averages:
    """Exponential moving average and SWAD of a run's weights.

    Args:
        recipe: parts of the training.
        loss: function from a network to its validation loss.
        steps: number of steps of the training.
    """

    def __init__(self, recipe: Recipe, loss: Callable[[nn.Module], float], steps: int) -> None:
        self._net, self._loss = recipe.net, loss
        self._ema = AveragedModel(recipe.net, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
        self._swad = SWAD(recipe.net)
        self._every, self._steps = max(1, steps // SWAD_VALIDATIONS), 0
        self._hook = recipe.optimizer.register_step_post_hook(self._follow)

    def finish(self) -> dict[str, nn.Module]:
        """Return both averages and stop following the training."""
        self._hook.remove()
        return {"ema": self._ema.module.eval(), "swad": self._swad.averaged().eval()}

    def _follow(self, *_: object) -> None:
        self._ema.update_parameters(self._net)
        self._swad.after_step(self._net)
        self._steps += 1
        if self._steps % self._every == 0:
            self._swad.validated(self._loss(self._net))


def choose_cases(
    run: Run, method: HeartMethod, config: RunConfig, prepared: Path, training: Sequence[str]
) -> Sequence[str]:
    """List the cases to train on, some of them twice."""
    if method.copies is None:
        return training
    found = find_slow_cases(
        config,
        prepared,
        training,
        seed=run.seed,
        steps_per_epoch=round(PROBE_SHARE * run.steps),
        warmup_steps=WARMUP,
    )
    slow: Sequence[int] = found.slow
    if method.copies == "random":
        order = torch.randperm(len(training), generator=generator_for(run.seed, "random copies")).tolist()
        slow = order[: len(slow)]
    return upsampled(training, slow)


def quantize_network(net: nn.Module, bits: int, feed: Feed) -> None:
    """Quantize weights and activations in place, with least-squares scales from four batches."""
    quantize_(net, weight_bits=bits, act_bits=bits)
    images = [batch["image"] for _, batch in islice(feed, 4)]
    calibrate(net.train(), images)  # only training runs the coarse heads of deep supervision
    fit_scales(net, torch.cat(images))


def score_cases(net: nn.Module, prepared: Path, case_ids: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Compute Dice and calibration error of each patient."""
    folder = PreparedFolder(prepared)
    patch_size = Cell().read_config().training.patch_size
    predictor = Predictor(net, patch_size=patch_size, overlap=0.25, sw_batch_size=8)
    dice: dict[str, list[float]] = {}
    error: dict[str, list[float]] = {}
    for case_id in case_ids:
        case, patient = folder.case(case_id), folder.manifest.by_id(case_id).patient_id
        probabilities = np.asarray(predictor.prepared_probabilities(np.asarray(case.image), case_id=case_id))
        label = np.asarray(case.label)
        dice.setdefault(patient, []).append(compute_mean_dice(probabilities, label))
        error.setdefault(patient, []).append(compute_calibration_error(probabilities, label))
    return _average(dice), _average(error)


def compute_mean_dice(probabilities: Array, label: Array) -> float:
    """Compute the mean Dice of the structures in label or prediction."""
    found = probabilities.argmax(axis=0)
    return float(np.nanmean([dice_coefficient(found == k, label == k) for k in range(1, len(probabilities))]))


def compute_calibration_error(probabilities: Array, label: Array) -> float:
    r"""Compute the expected calibration error in the heart.

    It is :math:`\sum_b \frac{n_b}{n} |\mathrm{accuracy}_b - \mathrm{confidence}_b|` over bins of confidence. Counted
    are voxels of a structure in label or prediction; the easy background would hide their errors.
    """
    found, confidence = probabilities.argmax(axis=0), probabilities.max(axis=0)
    counted = (found > 0) | (label > 0)
    right, confidence = (found == label)[counted].astype(float), confidence[counted].astype(float)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    sums = np.bincount(bins, weights=right - confidence, minlength=BINS)
    return float(np.abs(sums).sum() / max(len(right), 1))


def compute_eigenvalue(net: nn.Module, prepared: Path, training: Sequence[str]) -> float:
    """Estimate the largest Hessian eigenvalue on 32 fixed training patches."""
    batches, loss = read_fixed_batches(prepared, tuple(training)), _make_loss()

    def compute_loss(each: nn.Module) -> torch.Tensor:
        losses = [loss(finest_logits(each(batch["image"])), batch["label"]) for batch in batches]
        return torch.stack(losses).mean()

    return largest_eigenvalue_by_differences(net, compute_loss)


@torch.no_grad()
def compute_inner_loss(prepared: Path, net: nn.Module) -> float:
    """Compute Dice + CE on 32 fixed patches of the inner fold."""
    batches, loss = read_fixed_batches(prepared, tuple(list_cases(prepared, (INNER_FOLD,)))), _make_loss()
    was_training = net.training
    net.eval()
    found = fmean(float(loss(finest_logits(net(each["image"])), each["label"])) for each in batches)
    net.train(was_training)
    return found


@cache
def read_fixed_batches(prepared: Path, case_ids: tuple[str, ...]) -> list[Batch]:
    """Read four batches without augmentation, the same in every run."""
    config = Cell().read_config()
    off = [f"augment.{key}=0" for key in config.augment.options if key.endswith("_probability")]
    return [batch for _, batch in islice(make_feed(Cell().read_config(off), prepared, 0, cases=case_ids), 4)]


def _train(recipe: Recipe, feed: Feed, steps: int) -> None:
    train(recipe, feed, steps=steps, warmup_steps=min(WARMUP, steps // 2))


def _change_images(feed: Feed, change: Callable[[torch.Tensor], torch.Tensor]) -> Feed:
    return ((epoch, {**batch, "image": change(batch["image"])}) for epoch, batch in feed)


def _make_loss() -> nn.Module:
    return SummedLoss({"region": SoftDiceLoss(), "distribution": CrossEntropyLoss()})


def _average(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {patient: fmean(values) for patient, values in scores.items()}
