"""Phantom of microscope pictures with masks, as PNG."""
