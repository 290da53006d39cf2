"""Synthetic scans with exact labels, in the layouts of public data sets."""
