"""Selective scan of Mamba, with one interface to all backends."""

from torch import Tensor

from uumamba.ops.function_transforms import needs_derivative_rules
from uumamba.ops.scan_arguments import ScanArguments
from uumamba.ops.scan_backends import SCAN_BACKENDS, automatic_backend
from uumamba.runtime.errors import require


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Compute a state-space model with input-dependent step sizes and projections.

    .. math::
        \Delta'_l &= \mathrm{softplus}(\Delta_l + \text{delta\_bias}) \\
        h_l &= \exp(\Delta'_l A)\, h_{l-1} + \Delta'_l B_l u_l, \qquad h_0 = 0 \\
        y_l &= (\langle C_l, h_l\rangle + D u_l)\,\mathrm{silu}(z_l)

    Softplus, bias, ``D`` and ``z`` are optional. Every channel has its own state of ``states`` numbers. With G groups,
    channel d reads group ``d // (channels / G)`` of B and C. The arithmetic has the widest type of the tensors, at
    least float32, also under autocast; ``y`` has the type of ``u``. Strong decay gives zeros, never NaN.

    Forward mode (``torch.func.jvp``, ``torch.autograd.forward_ad``) and the gradients of ``torch.func`` run in
    ``"torch"``, which ``"auto"`` then selects; their memory grows with ``channels x states x length``. Second
    derivatives of ``loss.backward()`` need ``"torch"`` by name. ``torch.export`` with a dynamic length needs
    ``"native"`` or ``"triton"``.

    Args:
        u: input, ``(batch, channels, length)``.
        delta: step sizes, as ``u``.
        A: decay rates, ``(channels, states)``; negative in a stable model.
        B: input projection, ``(channels, states)``, ``(batch, states, length)`` or ``(batch, groups, states, length)``.
        C: output projection, in any of the three forms of ``B``.
        D: skip weight, ``(channels,)``.
        z: gate, as ``u``.
        delta_bias: added to ``delta`` before softplus, ``(channels,)``.
        delta_softplus: apply softplus to the step sizes.
        return_last_state: also return the state after the last position, ``(batch, channels, states)``, in the type
            of the arithmetic.
        backend: one of

            * ``"native"``: C++ on the CPU, if the extension is built; float32.
            * ``"triton"``: Triton kernels on CUDA, parallel along the length; float32.
            * ``"mamba_ssm"``: the CUDA kernel of mamba_ssm, if installed; no gradient of the last state.
            * ``"torch"``: torch operators on any device, also in float64; the fastest with second derivatives.
            * ``"reference"``: a slow loop, for tests.
            * ``"auto"``: the first of these that can run on this machine.

    Raises:
        UsageError: a tensor is not real floating point, or its shape or device does not fit that of ``u``; the backend
            is unknown, does not accept these arguments, has no such derivative or cannot run on this machine.

    Example:
        >>> import torch
        >>> u, delta = torch.ones(1, 2, 3), torch.ones(1, 2, 3)
        >>> A, B, C = torch.full((2, 1), -0.6931472), torch.ones(2, 1), torch.ones(2, 1)   # halve, then add one
        >>> selective_scan(u, delta, A, B, C)[0, 0]
        tensor([1.0000, 1.5000, 1.7500])

    References:
        Gu & Dao, *Mamba: Linear-Time Sequence Modeling with Selective State Spaces*, 2023, arXiv:2312.00752.
        Differs from the paper: as in mamba_ssm's ``selective_scan_fn``, B is multiplied by the step size (Euler) and
        not by the exact zero-order hold. Unlike in mamba_ssm, the last state has a gradient, and A is real.
    """
    scan = ScanArguments(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)
    device_type, dtype = u.device.type, scan.arithmetic_dtype
    known = ("auto", *SCAN_BACKENDS)
    require(backend in known, "backend", got=backend, expected=f"one of {', '.join(known)}")
    rules = needs_derivative_rules(scan.tensors().values())
    name = automatic_backend(device_type, dtype, needs_rules=rules) if backend == "auto" else backend
    chosen = SCAN_BACKENDS[name]
    problem = chosen.find_problem(device_type, dtype, needs_rules=rules)
    require(
        problem is None,
        "backend",
        got=backend,
        expected=f"a usable backend ({backend}: {problem})",
        fix='use "auto"',
    )
    y, last_state = chosen.compute(scan)
    return (y, last_state) if return_last_state else y
