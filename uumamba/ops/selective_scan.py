"""Selective scan with one meaning and several backends."""

from torch import Tensor

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
    r"""Compute a linear state-space model whose step size and projections change with the input.

    .. math::
        \Delta'_l &= \mathrm{softplus}(\Delta_l + \text{delta\_bias}) \\
        h_l &= \exp(\Delta'_l A)\, h_{l-1} + \Delta'_l B_l u_l, \qquad h_0 = 0 \\
        y_l &= (\langle C_l, h_l\rangle + D u_l)\,\mathrm{silu}(z_l)

    with softplus, bias, ``D`` and ``z`` only where given. Every channel has its own state of ``states`` numbers. With
    G groups, channel d reads group ``d // (channels / G)`` of B and C. Arithmetic is in the widest type given, float32
    at least, whatever autocast says; ``y`` has the type of ``u``. Any strength of decay is safe: it ends in zeros.

    Args:
        u: input, ``(batch, channels, length)``.
        delta: step sizes, as ``u``.
        A: decay rates, ``(channels, states)``; negative in a stable model.
        B: input projection, ``(channels, states)``, ``(batch, states, length)`` or ``(batch, groups, states, length)``.
        C: output projection, in any of the three forms of ``B``.
        D: skip weight, ``(channels,)``.
        z: gate, as ``u``.
        delta_bias: added to ``delta`` before softplus, ``(channels,)``.
        delta_softplus: pass step sizes through softplus.
        return_last_state: also return the state after the last position, ``(batch, channels, states)``, in the type
            of the arithmetic.
        backend: one of

            * ``"native"``: C++ on the CPU, where the extension was built; float32.
            * ``"triton"``: our CUDA kernel, which splits the length; float32.
            * ``"mamba_ssm"``: the upstream CUDA kernel, where it is installed; no gradient of the last state.
            * ``"torch"``: chunked, on any device, in float64 too; the only one that can be differentiated twice.
            * ``"reference"``: a slow loop to test against.
            * ``"auto"``: the first of these that can run here.

    Raises:
        UsageError: a tensor is not real floating point; its shape or device does not fit that of ``u``; or the backend
            is unknown, cannot take these arguments or cannot run on this machine.

    Example:
        >>> import torch
        >>> u, delta = torch.ones(1, 2, 3), torch.ones(1, 2, 3)
        >>> A, B, C = torch.full((2, 1), -0.6931472), torch.ones(2, 1), torch.ones(2, 1)   # halve, then add one
        >>> selective_scan(u, delta, A, B, C)[0, 0]
        tensor([1.0000, 1.5000, 1.7500])

    References:
        Gu & Dao, *Mamba: Linear-Time Sequence Modeling with Selective State Spaces*, 2023, arXiv:2312.00752.
        Differs from the paper: none in meaning; as in mamba_ssm's ``selective_scan_fn``, B is scaled by the step size
        itself (Euler) and not by the exact zero-order hold. Unlike there, the gradient of the last state is not
        dropped, and complex A is not supported.
    """
    scan = ScanArguments(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)
    device_type, dtype = u.device.type, scan.arithmetic_dtype
    if backend == "auto":
        backend = automatic_backend(device_type, dtype)
    else:
        known = ("auto", *SCAN_BACKENDS)
        require(backend in known, "backend", got=backend, expected=f"one of {', '.join(known)}")
        chosen = SCAN_BACKENDS[backend]
        problem = chosen.find_problem(device_type, dtype) or chosen.unavailable()
        require(not problem, "backend", got=backend, expected=f"one that can run here ({problem})", fix='use "auto"')
    y, last_state = SCAN_BACKENDS[backend].compute(scan)
    return (y, last_state) if return_last_state else y
