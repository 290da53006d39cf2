"""Domain generalization: train on some domains for good results on others."""

from uumamba.domain_generalization.algorithm import Algorithm
from uumamba.domain_generalization.clustering import find_slow, split_in_two
from uumamba.domain_generalization.domains import domain_batches, held_out_domains, require_domains, split_domain
from uumamba.domain_generalization.experiment import domain_scores, train_and_record
from uumamba.domain_generalization.head import draw_voxels
from uumamba.domain_generalization.inconsistency import LinearHeadGradients, gradient_norm, variance_gap
from uumamba.domain_generalization.mixstyle import MixStyle
from uumamba.domain_generalization.perturb import InputPerturbation, Perturbation, StylePerturbation
from uumamba.domain_generalization.probe import (
    ProbeOutputs,
    fingerprint_batches,
    probe_classification,
    probe_segmentation,
)
from uumamba.domain_generalization.randconv import RandConv
from uumamba.domain_generalization.selection import (
    Selection,
    leave_one_domain_out_validation,
    oracle,
    training_domain_validation,
)
from uumamba.domain_generalization.slow_examples import (
    GroupSplit,
    SlowExamples,
    UpsampledSampler,
    read_slow_examples,
    upsampled,
    write_slow_examples,
)
from uumamba.domain_generalization.swad import SWAD
from uumamba.domain_generalization.udim import UDIM
from uumamba.domain_generalization.useful import USEFUL, Probe, find_elbow
from uumamba.types import Method

__all__ = [
    "SWAD",
    "UDIM",
    "USEFUL",
    "Algorithm",
    "GroupSplit",
    "InputPerturbation",
    "LinearHeadGradients",
    "Method",
    "MixStyle",
    "Perturbation",
    "Probe",
    "ProbeOutputs",
    "RandConv",
    "Selection",
    "SlowExamples",
    "StylePerturbation",
    "UpsampledSampler",
    "domain_batches",
    "domain_scores",
    "draw_voxels",
    "find_elbow",
    "find_slow",
    "fingerprint_batches",
    "gradient_norm",
    "held_out_domains",
    "leave_one_domain_out_validation",
    "oracle",
    "probe_classification",
    "probe_segmentation",
    "read_slow_examples",
    "require_domains",
    "split_domain",
    "split_in_two",
    "train_and_record",
    "training_domain_validation",
    "upsampled",
    "variance_gap",
    "write_slow_examples",
]


def __dir__() -> list[str]:
    return __all__
