"""Beating hearts in ACDC's layout."""
