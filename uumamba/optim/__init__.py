"""Sharpness-aware optimizers around any base optimizer."""

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
from uumamba.optim.output_divergence import divergence
from uumamba.optim.plain import Plain
from uumamba.optim.restore import frozen_running_statistics
from uumamba.optim.rules import BeforeMix, Direction, EarlyDirection, Factor, FirstPass, Mix, Rule
from uumamba.optim.saf import SAF
from uumamba.optim.sagm import SAGM
from uumamba.optim.sam import SAM
from uumamba.optim.stale import StaleSAM
from uumamba.optim.tram import TRAM

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
    "Direction",
    "EarlyDirection",
    "EngineOptions",
    "Factor",
    "FirstPass",
    "FriendlySAM",
    "LookSAM",
    "Mix",
    "OutputBiasForgetting",
    "Plain",
    "Rule",
    "SharpnessAware",
    "StaleSAM",
    "divergence",
    "frozen_running_statistics",
    "norm_layers_only",
]


def __dir__() -> list[str]:
    return __all__
