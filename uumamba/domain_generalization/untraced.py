"""Passes of a network beside the training step's own, which must leave no trace in it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

T = TypeVar("T")


def untraced(net: nn.Module, image: Tensor) -> Any:
    """``net(image)`` in the network's own mode, with copies of its buffers.

    Args:
        net: the network, without wrappers; see :func:`bare`.
        image: its input.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> _ = untraced(norm, torch.tensor([[1.0], [3.0]]))
        >>> norm.running_mean, norm.num_batches_tracked
        (tensor([0.]), tensor(0))
    """
    return with_stand_ins(net, partial(net, image))


def with_stand_ins(net: nn.Module, work: Callable[[], T], weights: Mapping[str, Tensor] | None = None) -> T:
    """``work()``, with copies of the network's buffers in their place, and with other weights where given.

    Running statistics move in the copies alone, so a graph that is kept never finds its saved tensors changed, as it
    would if the old values were put back. The stand-ins leave when ``work`` returns or raises. Layers under activation
    checkpointing are computed again for a gradient, with what the network holds then, so ``work`` takes its gradients
    itself.

    Args:
        net: the network, without wrappers; see :func:`bare`.
        work: runs passes of the network.
        weights: stand in for parameters of these names.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> others = {"weight": torch.ones(1, 1), "bias": torch.ones(1)}
        >>> with_stand_ins(layer, lambda: layer(torch.ones(1, 1)), others)
        tensor([[2.]])
    """
    copies = {name: buffer.clone() for name, buffer in net.named_buffers()}
    standing_in = {f"net.{name}": tensor for name, tensor in (copies | dict(weights or {})).items()}
    found: T = functional_call(_AtWork(net, work), standing_in, ())
    return found


class _AtWork(nn.Module):
    """A network with something to do besides its own forward pass."""

    def __init__(self, net: nn.Module, work: Callable[[], Any]) -> None:
        super().__init__()
        self.net = net
        self.work = work

    def forward(self) -> Any:
        return self.work()


@contextmanager
def draws_of_its_own(image: Tensor, net: nn.Module) -> Iterator[None]:
    """Puts random generators back, so that two passes one after the other have the same dropout.

    These are torch's global ones of the CPU and of the image's device, and every one that is an attribute of a module
    of the network.

    Example:
        >>> with draws_of_its_own(torch.zeros(1), nn.Identity()):
        ...     first = torch.rand(1)
        >>> torch.equal(torch.rand(1), first)
        True
    """
    held = [each for module in net.modules() for each in vars(module).values() if isinstance(each, torch.Generator)]
    states = [generator.get_state() for generator in held]
    with torch.random.fork_rng([image.device] if image.is_cuda else []):
        try:
            yield
        finally:
            for generator, state in zip(held, states, strict=True):
                generator.set_state(state)


@contextmanager
def uncompiled(net: nn.Module, *, around: nn.Module | None = None) -> Iterator[None]:
    """Runs modules of the network that were compiled in place, by ``module.compile()``, as they were written.

    A graph that was compiled without a part's hook does not call it, and has no second derivative.

    Args:
        net: the network.
        around: a module; only those that hold it, or are it. What layers under activation checkpointing save must be
            the same when they are computed again, so a pass whose backward pass comes later changes no more than it
            needs.

    Example:
        >>> net = nn.Sequential(nn.ReLU())
        >>> net.compile(backend="eager")
        >>> with uncompiled(net):
        ...     found = net(torch.tensor([-1.0, 1.0]))
        >>> found
        tensor([0., 1.])
    """
    parts = [each for each in net.modules() if each._compiled_call_impl is not None]
    held = [(each, each._compiled_call_impl) for each in parts if around is None or around in each.modules()]
    for module, _ in held:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, compiled in held:
            module._compiled_call_impl = compiled


def version_of(output: Any) -> int:
    """How often a tensor was changed in place; 0 where nothing counts that."""
    return output._version if isinstance(output, Tensor) and not output.is_inference() else 0


@contextmanager
def watched(module: nn.Module) -> Iterator[list[tuple[list[Any], Any, int]]]:
    """A list that gets the inputs, the output and its version of every call of the module.

    A version that the output no longer has tells that something changed it in place afterwards.

    Example:
        >>> double = nn.Upsample(scale_factor=2)
        >>> with watched(double) as calls:
        ...     _ = nn.Sequential(double, nn.ReLU())(torch.tensor([[[-1.0, 1.0]]]))
        >>> calls[0][1]
        tensor([[[-1., -1.,  1.,  1.]]])
    """
    calls: list[tuple[list[Any], Any, int]] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append(([*args, *kwargs.values()], output, version_of(output)))

    handle = module.register_forward_hook(keep, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()
