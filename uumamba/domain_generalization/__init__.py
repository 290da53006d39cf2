"""Training that holds on data of another origin: which examples to show, and what to ask of the network."""

from uumamba.domain_generalization.answers import (
    Answers,
    classification_answers,
    fingerprint_of,
    segmentation_answers,
)
from uumamba.domain_generalization.k_means import Clusters, k_means
from uumamba.domain_generalization.knee import find_knee
from uumamba.domain_generalization.slow_examples import GroupSplit, SlowExamples, find_slow
from uumamba.domain_generalization.slow_file import read_slow_examples, write_slow_examples
from uumamba.domain_generalization.upsampling import UpsampledSampler, upsampled
from uumamba.domain_generalization.useful import USEFUL, Probe

__all__ = [
    "USEFUL",
    "Answers",
    "Clusters",
    "GroupSplit",
    "Probe",
    "SlowExamples",
    "UpsampledSampler",
    "classification_answers",
    "find_knee",
    "find_slow",
    "fingerprint_of",
    "k_means",
    "read_slow_examples",
    "segmentation_answers",
    "upsampled",
    "write_slow_examples",
]
