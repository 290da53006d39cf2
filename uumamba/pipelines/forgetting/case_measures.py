"""Loss and Dice of whole prepared cases, for membership attacks and quality."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from torch import nn

from uumamba.metrics import dice_coefficient
from uumamba.pipelines.build import WholeCaseValidation
from uumamba.pipelines.forgetting.forget_request import ForgetRequest

LOWEST = 1e-7
"""Lowest probability of a voxel's class, which bounds its loss at 16."""


@dataclass(frozen=True)
class CaseMeasure:
    """Measures of one case.

    Attributes:
        loss: mean over the classes in the label of the mean cross entropy of their voxels, so that a small structure
            counts as much as the background.
        voxel_loss: mean cross entropy of all voxels.
        dice: mean Dice of the structures, without those absent from label and prediction.
    """

    loss: float
    voxel_loss: float
    dice: float


class CaseMeasures:
    """Measurement of networks on whole cases, by the sliding window of validation.

    Args:
        request: cases and configuration.
        device: of the networks.
    """

    def __init__(self, request: ForgetRequest, *, device: str = "cpu") -> None:
        self.request = request
        self._validation = WholeCaseValidation(request.job.config, request.folder, (), device=device)

    def measure(self, net: nn.Module, case_ids: Sequence[str]) -> dict[str, CaseMeasure]:
        """Measure a network on some cases."""
        predictor, manifest = self._validation.build_predictor(net), self.request.folder.manifest
        ignored = manifest.labels.ignore_label
        found = {}
        for case_id in case_ids:
            case = self.request.folder.case(case_id)
            probabilities = predictor.prepared_probabilities(np.asarray(case.image), case_id=case_id)
            label = np.asarray(case.label)
            valid = np.ones(label.shape, bool) if ignored is None else label != ignored
            prediction = np.where(valid, predictor.find_label(probabilities), 0)
            dice = [dice_coefficient(prediction == value, label == value) for value in manifest.classes.values()]
            known = [each for each in dice if each == each]
            loss = balanced_loss(np.asarray(probabilities), label, valid)
            voxel_loss = mean_loss(np.asarray(probabilities), label, valid)
            found[case_id] = CaseMeasure(loss, voxel_loss, fmean(known) if known else math.nan)
        return found


def balanced_loss(probabilities: np.ndarray, label: np.ndarray, valid: np.ndarray) -> float:
    """Return the mean over present classes of their voxels' mean cross entropy.

    Args:
        probabilities: ``(classes, *spatial)``.
        label: classes ``(*spatial)``.
        valid: voxels that count.

    Example:
        >>> balanced_loss(np.array([[0.5, 1.0], [0.5, 0.0]]), np.array([1, 0]), np.array([True, True]))  # ln 2 / 2
        0.34657359027997264
    """
    classes = [int(value) for value in np.unique(label[valid])]
    return fmean(mean_loss(probabilities, label, valid & (label == value)) for value in classes)


def mean_loss(probabilities: np.ndarray, label: np.ndarray, valid: np.ndarray) -> float:
    """Return the mean cross entropy of valid voxels; arguments as for :func:`balanced_loss`.

    Example:
        >>> mean_loss(np.array([[0.5, 1.0], [0.5, 0.0]]), np.array([1, 0]), np.array([True, False]))  # ln 2
        0.6931471805599453
    """
    chosen = np.take_along_axis(probabilities, label[None].astype(np.int64), axis=0)[0][valid].astype(np.float64)
    return float(-np.log(np.clip(chosen, LOWEST, 1.0)).mean())
