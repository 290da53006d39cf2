"""CUDA kernel of mamba_ssm, where its compiled extension is installed."""

from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from uumamba.ops.scan_arguments import ScanArguments
from uumamba.runtime.errors import require


def unavailable() -> str | None:
    """Return why this backend cannot run here, or None; the compiled extension must import, not just mamba_ssm."""
    if not torch.cuda.is_available():
        return "no CUDA device was found"
    if find_spec("mamba_ssm") is None:
        return "mamba_ssm is not installed; pip install uumamba[cuda] (it compiles with nvcc)"
    try:
        import_module("selective_scan_cuda")
    except ImportError as error:
        return f"mamba_ssm is installed without its compiled selective_scan_cuda ({error})"
    return None


def mamba_ssm_scan(scan: ScanArguments) -> tuple[Tensor, Tensor]:
    """Return ``(y, last_state)``; upstream drops the gradient of the last state, so it comes detached.

    Raises:
        UsageError: the gradient of the last state would be needed.
    """
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in scan.tensors().values())
    require(
        not (scan.return_last_state and needs_gradient),
        "return_last_state",
        got=True,
        expected="False, as mamba_ssm drops the gradient of the last state",
        fix="use another backend, or torch.no_grad()",
    )
    function = import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    A, D, delta_bias = (None if tensor is None else tensor.float() for tensor in (scan.A, scan.D, scan.delta_bias))
    delta, B, C, z = (
        None if tensor is None else tensor.to(scan.u.dtype) for tensor in (scan.delta, scan.B, scan.C, scan.z)
    )
    y, last_state = function(
        scan.u, delta, A, B, C, D, z, delta_bias, delta_softplus=scan.delta_softplus, return_last_state=True
    )
    return y, last_state.detach()
