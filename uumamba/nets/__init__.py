"""Segmentation networks in 2-D and 3-D, with and without Mamba."""

from uumamba.nets.coarse_to_fine import CoarseToFine
from uumamba.nets.legacy import LegacyUMambaBot, LegacyUMambaEnc
from uumamba.nets.mamba import Mamba, MambaLayer
from uumamba.nets.official import load_official
from uumamba.nets.stages import LegacyStages, Stages
from uumamba.nets.umamba import ResEncUNet, UMambaBot, UMambaEnc

__all__ = [
    "CoarseToFine",
    "LegacyStages",
    "LegacyUMambaBot",
    "LegacyUMambaEnc",
    "Mamba",
    "MambaLayer",
    "ResEncUNet",
    "Stages",
    "UMambaBot",
    "UMambaEnc",
    "load_official",
]


def __dir__() -> list[str]:
    return __all__
