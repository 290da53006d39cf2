"""Sharpness-aware optimizers around any base, whose ``step(closure)`` is a whole training step."""

from uumamba.optim.adaptive_trigger import AdaptiveTrigger
from uumamba.optim.asam import ASAM
from uumamba.optim.engine import SharpnessAware
from uumamba.optim.friendly import FriendlySAM
from uumamba.optim.groups import EngineOptions, norm_layers_only
from uumamba.optim.gsam import GSAM
from uumamba.optim.looksam import LookSAM
from uumamba.optim.mesa import MESA
from uumamba.optim.msam import MSAM
from uumamba.optim.output_bias import OutputBiasForgetting
from uumamba.optim.plain import Plain
from uumamba.optim.restore import frozen_running_statistics
from uumamba.optim.rules import BeforeMix, Climb, Lead, Mix, Reach, Rule, Slope
from uumamba.optim.saf import SAF
from uumamba.optim.sagm import SAGM
from uumamba.optim.sam import SAM
from uumamba.optim.stale import StaleSAM
from uumamba.optim.tram import TRAM
from uumamba.optim.trust_region import divergence

__all__ = [
    "ASAM",
    "GSAM",
    "MESA",
    "MSAM",
    "SAF",
    "SAGM",
    "SAM",
    "TRAM",
    "AdaptiveTrigger",
    "BeforeMix",
    "Climb",
    "EngineOptions",
    "FriendlySAM",
    "Lead",
    "LookSAM",
    "Mix",
    "OutputBiasForgetting",
    "Plain",
    "Reach",
    "Rule",
    "SharpnessAware",
    "Slope",
    "StaleSAM",
    "divergence",
    "frozen_running_statistics",
    "norm_layers_only",
]
