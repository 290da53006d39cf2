"""Bases, layers and names of members for the tests of this folder."""

from functools import partial

from torch import nn
from torch.optim import SGD, AdamW

MOMENTUM = partial(SGD, lr=0.05, momentum=0.9)
ADAMW = partial(AdamW, lr=0.01)
LAYER_NORM = partial(nn.LayerNorm, 8)
OBJECTIVES = ("MESA", "SAF")
ONE_PASS = ("MSAM", "StaleSAM")
MEASURING = ("TRAM previous", "TRAM initial", "TRAM noise")
