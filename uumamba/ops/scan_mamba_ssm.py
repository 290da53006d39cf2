"""Selective scan by the CUDA kernel of mamba_ssm, an optional package."""

from importlib import import_module

import torch
from torch import Tensor

from uumamba.ops.scan_arguments import ScanArguments
from uumamba.runtime.errors import require


def find_missing_mamba_ssm() -> str | None:
    """Return the missing requirement of this backend; None if it can run.

    The package can be installed without its compiled extension, so the function imports the extension.
    """
    if not torch.cuda.is_available():
        return "no CUDA device was found"
    try:
        import_module("selective_scan_cuda")
    except ImportError as error:
        return f"mamba_ssm's extension is missing ({error}); pip install uumamba[cuda] (it compiles with nvcc)"
    return None


def mamba_ssm_scan(scan: ScanArguments) -> tuple[Tensor, Tensor]:
    """Return ``(y, last_state)``, the last state without gradient.

    mamba_ssm drops the gradient of the last state, so the state is detached.

    Raises:
        UsageError: the last state is requested and needs a gradient.
    """
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in scan.tensors().values())
    require(
        not (scan.return_last_state and needs_gradient),
        "return_last_state",
        got=True,
        expected="False for tensors with a gradient",
        fix="choose another backend or call the scan in torch.no_grad()",
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
