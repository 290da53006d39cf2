"""Lowest package: errors, files, seeds, stop requests, locks, ranks and devices.

Every other package may import from it; it imports none of them.
"""
