"""Segmentation of hearts and vessels with U-Mamba, sharpness-aware optimizers and related methods."""

__version__ = "0.1.0"
