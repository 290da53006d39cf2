"""Aortic CT angiography in the layout of AortaSeg24."""
