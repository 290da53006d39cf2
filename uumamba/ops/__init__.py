"""Selective scan with several backends, and the short convolution before it."""

from uumamba.ops.convolution import causal_convolution
from uumamba.ops.scan_backends import automatic_backend, scan_backends, scan_problems
from uumamba.ops.selective_scan import selective_scan

__all__ = ["automatic_backend", "causal_convolution", "scan_backends", "scan_problems", "selective_scan"]


def __dir__() -> list[str]:
    return __all__
