"""The selective scan, one meaning with several backends."""

from uumamba.ops.selective_scan import scan_backends, selective_scan

__all__ = ["scan_backends", "selective_scan"]
