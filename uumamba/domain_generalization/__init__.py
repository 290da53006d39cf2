"""Domain generalization: methods that a training step or a data set takes on, whatever the network and the task."""

from uumamba.domain_generalization.head_gradients import LinearHeadGradients, StackedGradients
from uumamba.domain_generalization.inconsistency import gradient_norm, variance_gap
from uumamba.domain_generalization.perturb import InputPerturbation, Perturbation, StylePerturbation
from uumamba.domain_generalization.udim import UDIM
from uumamba.domain_generalization.voxels import stratified_voxels

__all__ = [
    "UDIM",
    "InputPerturbation",
    "LinearHeadGradients",
    "Perturbation",
    "StackedGradients",
    "StylePerturbation",
    "gradient_norm",
    "stratified_voxels",
    "variance_gap",
]
