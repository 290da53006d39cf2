"""U-Mamba segmentation of hearts and vessels, sharpness-aware training, and the methods beside them."""

__version__ = "0.1.0"
