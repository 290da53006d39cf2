"""Domain generalization: train on some domains for good results on others."""

from uumamba.domain_generalization.algorithm import Algorithm
from uumamba.domain_generalization.answers import Answers, classification_answers, fingerprint_of, segmentation_answers
from uumamba.domain_generalization.batches import domain_batches
from uumamba.domain_generalization.domains import held_out_domains, require_domains, split_domain
from uumamba.domain_generalization.experiment import train_and_record
from uumamba.domain_generalization.head import draw_voxels
from uumamba.domain_generalization.inconsistency import LinearHeadGradients, gradient_norm, variance_gap
from uumamba.domain_generalization.k_means import Clusters, k_means
from uumamba.domain_generalization.knee import find_knee
from uumamba.domain_generalization.mixstyle import MixStyle
from uumamba.domain_generalization.perturb import InputPerturbation, Perturbation, StylePerturbation
from uumamba.domain_generalization.randconv import RandConv
from uumamba.domain_generalization.scoring import domain_scores
from uumamba.domain_generalization.selection import (
    Selection,
    leave_one_domain_out_validation,
    oracle,
    training_domain_validation,
)
from uumamba.domain_generalization.slow_examples import GroupSplit, SlowExamples, find_slow
from uumamba.domain_generalization.slow_file import read_slow_examples, write_slow_examples
from uumamba.domain_generalization.swad import SWAD
from uumamba.domain_generalization.udim import UDIM
from uumamba.domain_generalization.upsampling import UpsampledSampler, upsampled
from uumamba.domain_generalization.useful import USEFUL, Probe
from uumamba.types import Method

__all__ = [
    "SWAD",
    "UDIM",
    "USEFUL",
    "Algorithm",
    "Answers",
    "Clusters",
    "GroupSplit",
    "InputPerturbation",
    "LinearHeadGradients",
    "Method",
    "MixStyle",
    "Perturbation",
    "Probe",
    "RandConv",
    "Selection",
    "SlowExamples",
    "StylePerturbation",
    "UpsampledSampler",
    "classification_answers",
    "domain_batches",
    "domain_scores",
    "draw_voxels",
    "find_knee",
    "find_slow",
    "fingerprint_of",
    "gradient_norm",
    "held_out_domains",
    "k_means",
    "leave_one_domain_out_validation",
    "oracle",
    "read_slow_examples",
    "require_domains",
    "segmentation_answers",
    "split_domain",
    "train_and_record",
    "training_domain_validation",
    "upsampled",
    "variance_gap",
    "write_slow_examples",
]
