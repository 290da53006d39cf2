"""Torch operator of a pair of scan kernels, for autograd and ``torch.compile``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from uumamba.ops.function_transforms import refuse_second_derivative, require_first_derivative
from uumamba.ops.scan_arguments import ScanArguments

_INPUTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias"
_FORWARD_SCHEMA = f"({_INPUTS}, bool delta_softplus, bool keep) -> (Tensor, Tensor, Tensor)"
_BACKWARD_SCHEMA = (
    f"(Tensor grad_y, Tensor grad_last_state, {_INPUTS}, Tensor carries, bool delta_softplus)"
    f" -> ({', '.join(['Tensor'] * 8)})"
)


def can_skip_dispatcher() -> bool:
    """Return whether kernels may be called directly, without torch's dispatcher.

    This holds in inference mode outside ``torch.compile``. The first call of a custom operator imports torch's
    compiler, which takes a third of the time of a small prediction.
    """
    # In this order: the compiler cannot trace is_inference_mode_enabled.
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()


def scan_operator(
    name: str,
    forward: Callable[..., tuple[Tensor, Tensor, Tensor]],
    backward: Callable[..., tuple[Tensor | None, ...]],
    *,
    saved_every: int,
) -> Callable[[ScanArguments], tuple[Tensor, Tensor]]:
    """Register ``uumamba::<name>_scan`` and its gradient; return a caller.

    Args:
        name: name of the backend.
        forward: ``(scan, keep=)`` to ``(y, last_state, carries)``. y has the type of u and the strides of
            ``empty_like(u)``; the other two are float32, ``carries`` as ``ScanArguments.empty_carries``.
        backward: ``(grad_y, grad_last_state, carries, scan)`` to the gradients of the eight tensors; None for a tensor
            that is not given.
        saved_every: positions between two states of ``carries``.

    Returns:
        A function from arguments to ``(y, last_state)``.
    """

    def run_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        require_first_derivative(*arguments[:8])
        return forward(ScanArguments(*arguments[:9]), keep=arguments[9])

    def run_backward(grad_y: Tensor, grad_last_state: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        scan, carries = ScanArguments(*(*arguments[:8], arguments[9])), arguments[8]
        if not carries.numel():  # a graph that was recorded without gradients and is trained now
            carries = forward(scan, keep=True)[2]
        grads = backward(grad_y, grad_last_state, carries, scan)
        return tuple(grad_y.new_empty(0) if grad is None else grad for grad in grads)  # an operator cannot return None

    operator = torch.library.custom_op(f"uumamba::{name}_scan", run_forward, mutates_args=(), schema=_FORWARD_SCHEMA)
    backward_operator = torch.library.custom_op(
        f"uumamba::{name}_scan_backward", run_backward, mutates_args=(), schema=_BACKWARD_SCHEMA
    )

    @operator.register_fake
    def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        scan, keep = ScanArguments(*arguments[:9]), arguments[9]
        last_state = scan.u.new_empty((scan.u.shape[0], *scan.A.shape), dtype=torch.float32)
        return torch.empty_like(scan.u), last_state, scan.empty_carries(saved_every, keep=keep)

    @backward_operator.register_fake
    def _(grad_y: Tensor, grad_last_state: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        return tuple(grad_y.new_empty(0) if tensor is None else torch.empty_like(tensor) for tensor in arguments[:8])

    def keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:8], output[2])
        ctx.delta_softplus = inputs[8]

    def backpropagate(ctx: Any, grad_y: Tensor, grad_last_state: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        require_first_derivative(grad_y, grad_last_state, *inputs)
        grads = backward_operator(grad_y, grad_last_state, *inputs, ctx.delta_softplus)
        given = (grad if tensor is not None else None for grad, tensor in zip(grads, inputs[:8], strict=True))
        return (*given, None, None)

    operator.register_autograd(backpropagate, setup_context=keep_inputs)
    backward_operator.register_autograd(refuse_second_derivative)

    def compute(scan: ScanArguments) -> tuple[Tensor, Tensor]:
        # Kept states would limit a dynamic length of an exported graph; its backward pass computes them.
        keep = (
            torch.is_grad_enabled()
            and not torch.compiler.is_exporting()
            and any(tensor.requires_grad for tensor in scan.tensors().values())
        )
        if can_skip_dispatcher():
            return forward(scan, keep=keep)[:2]
        y, last_state, _ = operator(*scan.every_tensor(), scan.delta_softplus, keep)
        return y, last_state

    return compute
