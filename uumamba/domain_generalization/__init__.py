"""Domain generalization: training on some domains so that the result holds on others."""

from uumamba.domain_generalization.algorithm import Algorithm, Method
from uumamba.domain_generalization.batches import domain_batches
from uumamba.domain_generalization.domains import held_out_domains, require_domains, split_domain
from uumamba.domain_generalization.experiment import train_and_record
from uumamba.domain_generalization.mixstyle import MixStyle
from uumamba.domain_generalization.randconv import RandConv
from uumamba.domain_generalization.scoring import domain_scores
from uumamba.domain_generalization.selection import (
    Selection,
    leave_one_domain_out_validation,
    oracle,
    training_domain_validation,
)
from uumamba.domain_generalization.swad import SWAD

__all__ = [
    "SWAD",
    "Algorithm",
    "Method",
    "MixStyle",
    "RandConv",
    "Selection",
    "domain_batches",
    "domain_scores",
    "held_out_domains",
    "leave_one_domain_out_validation",
    "oracle",
    "require_domains",
    "split_domain",
    "train_and_record",
    "training_domain_validation",
]
