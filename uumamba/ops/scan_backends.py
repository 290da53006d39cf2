"""Backends of the selective scan, their requirements and the automatic choice."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from uumamba.ops import native_library, scan_mamba_ssm, scan_native, scan_triton
from uumamba.ops.scan_arguments import ScanArguments
from uumamba.ops.scan_operator import scan_operator
from uumamba.ops.scan_reference import reference_scan
from uumamba.ops.scan_torch import torch_scan


@dataclass(frozen=True)
class ScanBackend:
    """One implementation of the selective scan.

    Attributes:
        compute: arguments to ``(y, last_state)``.
        find_missing: returns the missing requirement on this machine, or None.
        device_type: type of device of the tensors; None for any.
        supports_float64: whether arithmetic in float64 is possible.
        has_derivative_rules: whether forward mode and the gradients of ``torch.func`` are possible.
    """

    compute: Callable[[ScanArguments], tuple[Tensor, Tensor]]
    find_missing: Callable[[], str | None] = lambda: None
    device_type: str | None = None
    supports_float64: bool = False
    has_derivative_rules: bool = False

    def find_problem(self, device_type: str, dtype: torch.dtype, *, needs_rules: bool = False) -> str | None:
        """Return why the backend cannot compute; None if it can."""
        if self.device_type not in (None, device_type):
            return f"tensors on {self.device_type} only"
        if dtype == torch.float64 and not self.supports_float64:
            return 'float32 only; use backend="torch" for float64'
        if needs_rules and not self.has_derivative_rules:
            return 'no forward mode and no gradients of torch.func; use backend="torch" for them'
        return self.find_missing()


SCAN_BACKENDS = {
    "reference": ScanBackend(reference_scan, supports_float64=True, has_derivative_rules=True),
    "torch": ScanBackend(torch_scan, supports_float64=True, has_derivative_rules=True),
    "native": ScanBackend(
        scan_operator(
            "native", scan_native.native_forward, scan_native.native_backward, saved_every=scan_native.STEPS_PER_CARRY
        ),
        native_library.find_missing_library,
        device_type="cpu",
    ),
    "triton": ScanBackend(
        scan_operator(
            "triton", scan_triton.triton_forward, scan_triton.triton_backward, saved_every=scan_triton.STEPS_PER_CARRY
        ),
        scan_triton.find_missing_triton,
        device_type="cuda",
    ),
    "mamba_ssm": ScanBackend(scan_mamba_ssm.mamba_ssm_scan, scan_mamba_ssm.find_missing_mamba_ssm, device_type="cuda"),
}
# Order of preference. The first three each need one type of device; torch runs on any.
_AUTO = ("native", "triton", "mamba_ssm", "torch")


def automatic_backend(device_type: str, dtype: torch.dtype, *, needs_rules: bool = False) -> str:
    """Return the backend that ``backend="auto"`` selects.

    During an ONNX export the backend is ``torch``.

    Args:
        device_type: type of device of the tensors, such as ``cpu``.
        dtype: type of the arithmetic.
        needs_rules: forward mode or a gradient of ``torch.func`` follows the tensors.

    Example:
        >>> automatic_backend("cpu", torch.float64)
        'torch'
    """
    if torch.onnx.is_in_onnx_export():
        return "torch"  # ONNX runtimes do not have the custom operators
    return next(
        name for name in _AUTO if SCAN_BACKENDS[name].find_problem(device_type, dtype, needs_rules=needs_rules) is None
    )


def scan_backends() -> tuple[str, ...]:
    """Return the names of the backends that can run on this machine.

    Example:
        >>> {"reference", "torch"} <= set(scan_backends())
        True
    """
    return tuple(name for name, backend in SCAN_BACKENDS.items() if backend.find_missing() is None)


def scan_problems() -> dict[str, str]:
    """Return the reason for each backend that cannot run on this machine.

    Example:
        >>> set(scan_problems()) | set(scan_backends()) == set(SCAN_BACKENDS)
        True
    """
    return {name: problem for name, backend in SCAN_BACKENDS.items() if (problem := backend.find_missing())}


def describe_fallback(device_type: str) -> str | None:
    """Describe why networks use the slower torch operators on a device.

    None if a backend for this type of device can run, or none exists.

    Example:
        >>> describe_fallback("meta") is None
        True
    """
    problems = {
        name: backend.find_missing() for name, backend in SCAN_BACKENDS.items() if backend.device_type == device_type
    }
    if not problems or None in problems.values():
        return None
    reasons = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
    return f"The Mamba layers run in torch operators, slower with the same result ({reasons})."
