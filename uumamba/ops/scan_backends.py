"""Backends of the selective scan: functions, availability and accepted arguments."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from uumamba.ops import native_library, scan_mamba_ssm, scan_native, scan_triton
from uumamba.ops.scan_arguments import ScanArguments
from uumamba.ops.scan_operator import scan_operator
from uumamba.ops.scan_reference import reference_scan
from uumamba.ops.scan_torch import torch_scan

ScanFunction = Callable[[ScanArguments], tuple[Tensor, Tensor]]


def _runs_everywhere() -> None:
    return None


@dataclass(frozen=True)
class ScanBackend:
    """One implementation of the selective scan.

    Attributes:
        compute: arguments to ``(y, last_state)``.
        unavailable: returns why it cannot run on this machine, or None.
        device_type: device of its tensors; any when None.
        float64: can compute in float64.
    """

    compute: ScanFunction
    unavailable: Callable[[], str | None] = _runs_everywhere
    device_type: str | None = None
    float64: bool = False

    def find_problem(self, device_type: str, dtype: torch.dtype) -> str | None:
        """Return why it cannot compute in a type on a device, or None."""
        if self.device_type not in (None, device_type):
            return f"tensors on {self.device_type} only"
        if dtype == torch.float64 and not self.float64:
            return 'float32 only; use backend="torch" for float64'
        return None


SCAN_BACKENDS = {
    "reference": ScanBackend(reference_scan, float64=True),
    "torch": ScanBackend(torch_scan, float64=True),
    "native": ScanBackend(
        scan_operator(
            "native", scan_native.native_forward, scan_native.native_backward, saved_every=scan_native.SAVED_EVERY
        ),
        native_library.unavailable,
        device_type="cpu",
    ),
    "triton": ScanBackend(
        scan_operator(
            "triton", scan_triton.triton_forward, scan_triton.triton_backward, saved_every=scan_triton.SAVED_EVERY
        ),
        scan_triton.unavailable,
        device_type="cuda",
    ),
    "mamba_ssm": ScanBackend(scan_mamba_ssm.mamba_ssm_scan, scan_mamba_ssm.unavailable, device_type="cuda"),
}
# In the order of preference; each runs on its own device, and torch everywhere.
_AUTO = ("native", "triton", "mamba_ssm", "torch")


def automatic_backend(device_type: str, dtype: torch.dtype) -> str:
    """Return the backend of ``backend="auto"`` for a type of arithmetic on a device; torch during ONNX export.

    Example:
        >>> automatic_backend("cpu", torch.float64)
        'torch'
    """
    if torch.onnx.is_in_onnx_export():
        return "torch"  # an ONNX runtime has no operator of ours
    return next(
        name
        for name in _AUTO
        if SCAN_BACKENDS[name].find_problem(device_type, dtype) is None and SCAN_BACKENDS[name].unavailable() is None
    )


def scan_backends() -> tuple[str, ...]:
    """Return the names of the backends that can run on this machine.

    Example:
        >>> {"reference", "torch"} <= set(scan_backends())
        True
    """
    return tuple(name for name, backend in SCAN_BACKENDS.items() if backend.unavailable() is None)


def scan_problems() -> dict[str, str]:
    """Return the names of the other backends, with the reason why they cannot run.

    Example:
        >>> set(scan_problems()) | set(scan_backends()) == set(SCAN_BACKENDS)
        True
    """
    return {name: problem for name, backend in SCAN_BACKENDS.items() if (problem := backend.unavailable())}
