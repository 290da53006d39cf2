"""Coronary CT angiography in the layout of ImageCAS."""
