"""Constructors of other packages, with the options of this one."""

from typing import Any

from torch.optim import SGD, AdamW

from uumamba.runtime.options import BelowOne, NonNegative, Positive, check_options


@check_options
def sgd(
    params: Any,
    *,
    lr: Positive = 1e-3,
    momentum: NonNegative = 0.0,
    nesterov: bool = False,
    weight_decay: NonNegative = 0.0,
    fused: bool | None = None,
) -> SGD:
    """Make torch's stochastic gradient descent.

    Args:
        params: parameters or groups.
        lr: learning rate; nnU-Net has 0.01.
        momentum: factor of the running sum of gradients; nnU-Net has 0.99.
        nesterov: look ahead by one step of the momentum, as nnU-Net does.
        weight_decay: factor of the weights in the gradient; nnU-Net has 3e-5.
        fused: update all parameters in one kernel.
    """
    return SGD(params, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=fused)


@check_options
def adamw(
    params: Any,
    *,
    lr: Positive = 1e-3,
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999),
    weight_decay: NonNegative = 1e-2,
    fused: bool | None = None,
) -> AdamW:
    """Make torch's Adam with decoupled weight decay.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: decay of the running means of the gradient and of its square.
        weight_decay: share of the weights, times the learning rate, that a step subtracts.
        fused: update all parameters in one kernel.
    """
    return AdamW(params, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)
