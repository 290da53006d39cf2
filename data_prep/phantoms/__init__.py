"""Synthetic scans with exact labels, in the layouts of the public data sets."""
