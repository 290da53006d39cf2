"""Unlearning: make a trained network forget samples, and attack the result."""

from uumamba.unlearning.balanced_loss import per_sample_balanced_cross_entropy
from uumamba.unlearning.forget_losses import NPO, ForgetLoss, GradientDifference
from uumamba.unlearning.likelihood_ratio import likelihood_ratio_scores, logit_confidence
from uumamba.unlearning.membership import MembershipResult, attack_by_loss, attack_by_score
from uumamba.unlearning.per_sample_loss import MeanLoss, collect_losses, per_sample_cross_entropy, predict_batch
from uumamba.unlearning.relearning import RelearningResult, RelearningRow, relearning_attack
from uumamba.unlearning.renewed_statistics import renew_statistics
from uumamba.unlearning.retrained_distance import (
    PredictionDistance,
    QualityGap,
    prediction_distance,
    quality_gaps,
    weight_distance,
)
from uumamba.unlearning.sample_accuracy import mean_accuracy
from uumamba.unlearning.smoothing import CurvatureRegularization, GradientPenalty, RandomizedSmoothing, Smoothing
from uumamba.unlearning.unlearning_loop import unlearn
from uumamba.unlearning.unlearning_step import StepRecord, UnlearningStep
from uumamba.unlearning.weight_averaging import WeightAveraging

__all__ = [
    "NPO",
    "CurvatureRegularization",
    "ForgetLoss",
    "GradientDifference",
    "GradientPenalty",
    "MeanLoss",
    "MembershipResult",
    "PredictionDistance",
    "QualityGap",
    "RandomizedSmoothing",
    "RelearningResult",
    "RelearningRow",
    "Smoothing",
    "StepRecord",
    "UnlearningStep",
    "WeightAveraging",
    "attack_by_loss",
    "attack_by_score",
    "collect_losses",
    "likelihood_ratio_scores",
    "logit_confidence",
    "mean_accuracy",
    "per_sample_balanced_cross_entropy",
    "per_sample_cross_entropy",
    "predict_batch",
    "prediction_distance",
    "quality_gaps",
    "relearning_attack",
    "renew_statistics",
    "unlearn",
    "weight_distance",
]


def __dir__() -> list[str]:
    return __all__
