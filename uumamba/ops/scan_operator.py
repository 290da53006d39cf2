"""A pair of scan kernels as a torch operator: with a gradient for autograd, and shapes for ``torch.compile``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from uumamba.ops.scan_arguments import ScanArguments

Forward = Callable[..., tuple[Tensor, Tensor, Tensor]]
Backward = Callable[..., tuple[Tensor | None, ...]]

_INPUTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias"
_FORWARD = f"({_INPUTS}, bool delta_softplus, bool keep) -> (Tensor, Tensor, Tensor)"
_BACKWARD = (
    f"(Tensor grad_y, Tensor grad_last_state, {_INPUTS}, Tensor carries, bool delta_softplus)"
    f" -> ({', '.join(['Tensor'] * 8)})"
)


def skips_dispatcher() -> bool:
    """Whether kernels may be called directly: in inference mode, outside ``torch.compile`` and ``torch.export``.

    The first call of a custom operator imports torch's compiler, a third of the time of a small prediction.
    """
    return torch.is_inference_mode_enabled() and not torch.compiler.is_compiling()


def scan_operator(
    name: str, forward: Forward, backward: Backward, *, saved_every: int
) -> Callable[[ScanArguments], tuple[Tensor, Tensor]]:
    """Register ``uumamba::<name>_scan`` and its gradient, and return what calls it: arguments to ``(y, last_state)``.

    Args:
        name: of the backend.
        forward: ``(u, delta, A, B, C, D, z, delta_bias, delta_softplus, keep)`` to ``(y, last_state, carries)``; y in
            the type of u and the strides of ``empty_like(u)``, the other two in float32, ``carries`` (batch, saved,
            states, channels), or empty unless ``keep``.
        backward: ``(grad_y, grad_last_state, u, delta, A, B, C, D, z, delta_bias, carries, delta_softplus)`` to the
            gradients of the eight tensors, None for those not given.
        saved_every: positions between two states of ``carries``.
    """

    def backward_of_every_input(*arguments: Any) -> tuple[Tensor, ...]:
        absent = arguments[0].new_empty(0)  # an operator cannot return None
        return tuple(absent.clone() if grad is None else grad for grad in backward(*arguments))

    run = torch.library.custom_op(f"uumamba::{name}_scan", forward, mutates_args=(), schema=_FORWARD)
    run_backward = torch.library.custom_op(
        f"uumamba::{name}_scan_backward", backward_of_every_input, mutates_args=(), schema=_BACKWARD
    )

    @run.register_fake
    def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        u, A, keep = arguments[0], arguments[2], arguments[-1]
        batch, _, length = u.shape
        kept = (batch, -(-length // saved_every), *A.shape[::-1]) if keep else (0,)
        last_state, carries = (u.new_empty(shape, dtype=torch.float32) for shape in ((batch, *A.shape), kept))
        return torch.empty_like(u), last_state, carries

    @run_backward.register_fake
    def _(grad_y: Tensor, grad_last_state: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        return tuple(grad_y.new_empty(0) if tensor is None else torch.empty_like(tensor) for tensor in arguments[:8])

    def keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:8], output[2])
        ctx.delta_softplus = inputs[8]

    def gradient(ctx: Any, grad_y: Tensor, grad_last_state: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        grads = run_backward(grad_y, grad_last_state, *inputs, ctx.delta_softplus)
        given = (grad if tensor is not None else None for grad, tensor in zip(grads, inputs[:8], strict=True))
        return (*given, None, None)

    run.register_autograd(gradient, setup_context=keep_inputs)

    def compute(scan: ScanArguments) -> tuple[Tensor, Tensor]:
        inputs = (scan.u, scan.delta, scan.A, scan.B, scan.C, scan.D, scan.z, scan.delta_bias)
        keep = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)
        y, last_state, _ = (forward if skips_dispatcher() else run)(*inputs, scan.delta_softplus, keep)
        return y, last_state

    return compute
