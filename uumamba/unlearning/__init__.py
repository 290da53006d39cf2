"""Unlearning: remove samples from a trained network so that fine-tuning does not restore them."""

from uumamba.unlearning.forget_losses import NPO, ForgetLoss, GradientDifference
from uumamba.unlearning.per_sample_loss import MeanLoss, collect_losses, per_sample_cross_entropy, predict_batch
from uumamba.unlearning.renewed_statistics import renew_statistics
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
    "RandomizedSmoothing",
    "Smoothing",
    "StepRecord",
    "UnlearningStep",
    "WeightAveraging",
    "collect_losses",
    "per_sample_cross_entropy",
    "predict_batch",
    "renew_statistics",
    "unlearn",
]
