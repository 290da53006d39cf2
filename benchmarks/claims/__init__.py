"""Experiments that test the claims of papers, one script per family.

Every verdict is computed from an interval.
"""
