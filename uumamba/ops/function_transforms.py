"""Recognition of derivatives that kernels outside torch's operators do not have."""

from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

from uumamba.runtime.errors import UsageError


class MissingDerivativeError(UsageError, RuntimeError):
    """Error of a derivative that a kernel does not have.

    It is also a RuntimeError, as torch's error of a missing derivative.
    """


def is_transformed(tensors: Iterable[Tensor]) -> bool:
    """Return whether a torch.func transform or forward mode follows any tensor."""
    return any(_is_wrapped(tensor) or _has_tangent(tensor) for tensor in tensors)


def needs_derivative_rules(tensors: Iterable[Tensor]) -> bool:
    """Return whether forward mode or a gradient of torch.func follows any tensor.

    A kernel without rules for them would return tangents of 0 without an error. ``torch.func.vmap`` alone needs no
    rule: torch calls the kernel for each sample.

    Example:
        >>> found = []
        >>> def cube(x):
        ...     found.append(needs_derivative_rules([x]))
        ...     return x**3
        >>> one = torch.tensor(1.0)
        >>> cube(one), torch.func.grad(cube)(one)
        (tensor(1.), tensor(3.))
        >>> found
        [False, True]
    """
    return any(_is_differentiated(tensor) or _has_tangent(tensor) for tensor in tensors)


def refuse_second_derivative(ctx: Any, *gradients: Tensor) -> NoReturn:
    """Raise for a derivative that a kernel does not have."""
    raise MissingDerivativeError(
        "backend",
        got="a second or forward-mode derivative of a kernel",
        expected="a first derivative by backward",
        fix='write selective_scan(..., backend="torch"), or compute in float64, where torch has all derivatives',
    )


def require_first_derivative(*tensors: Tensor | None) -> None:
    """Raise if forward mode or a gradient of torch.func reaches a kernel."""
    if needs_derivative_rules(tensor for tensor in tensors if tensor is not None):
        refuse_second_derivative(None)


def _is_differentiated(tensor: Tensor) -> bool:
    """Return whether any of the nested transforms of torch.func differentiates."""
    while _is_wrapped(tensor):
        if _functorch.is_gradtrackingtensor(tensor):
            return True
        tensor = _functorch.get_unwrapped(tensor)
    return False


def _is_wrapped(tensor: Tensor) -> bool:
    """Return whether a transform of torch.func wraps a tensor.

    The compiler cannot trace the question; it applies the transforms itself.
    """
    return not torch.compiler.is_dynamo_compiling() and _functorch.is_functorch_wrapped_tensor(tensor)


def _has_tangent(tensor: Tensor) -> bool:
    try:
        return forward_ad.unpack_dual(tensor).tangent is not None
    except RuntimeError:  # torch has no answer for a kernel in a compiled graph
        return True
