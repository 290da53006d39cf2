"""Inference from tensors to label maps: sliding window, mirror averaging, ensembles."""

from uumamba.inference.mirror_averaging import mirrored_mean
from uumamba.inference.postprocess import LargestComponents, PostprocessChoice, choose_postprocess, keep_largest
from uumamba.inference.predictor import MemoryWarning, Prediction, Predictor
from uumamba.inference.sliding_window import sliding_window

__all__ = [
    "LargestComponents",
    "MemoryWarning",
    "PostprocessChoice",
    "Prediction",
    "Predictor",
    "choose_postprocess",
    "keep_largest",
    "mirrored_mean",
    "sliding_window",
]
