"""Inference from tensors to label maps: sliding window, mirror averaging, ensembles."""

from uumamba.inference.mirror_averaging import mirrored_mean
from uumamba.inference.plane_image import PlaneImage, select_planes
from uumamba.inference.predictor import MemoryWarning, Prediction, Predictor
from uumamba.inference.sliding_window import sliding_window

__all__ = ["MemoryWarning", "PlaneImage", "Prediction", "Predictor", "mirrored_mean", "select_planes", "sliding_window"]


def __dir__() -> list[str]:
    return __all__
