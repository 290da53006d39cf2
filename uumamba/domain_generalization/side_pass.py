"""Passes of a network beside the training step's own, which change none of its buffers."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor, nn
from torch.func import functional_call

T = TypeVar("T")


def run_with_copies(net: nn.Module, work: Callable[[], T], weights: Mapping[str, Tensor] | None = None) -> T:
    """Call ``work()`` while copies take the place of the network's buffers and, where given, of its weights.

    Running statistics move in the copies alone. To put old values back afterwards would not do: autograd refuses a
    graph whose saved tensors have changed. Layers under activation checkpointing are computed again for a gradient,
    with the tensors that the network then holds, so gradients at other weights are taken inside ``work``.

    Args:
        net: the bare network; see :func:`uumamba.runtime.network.bare_network`.
        work: runs passes of the network.
        weights: take the place of the parameters of these names.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> _ = run_with_copies(norm, lambda: norm(Tensor([[1.0], [3.0]])))
        >>> norm.running_mean, norm.num_batches_tracked
        (tensor([0.]), tensor(0))
        >>> layer = nn.Linear(1, 1)
        >>> run_with_copies(layer, lambda: layer(Tensor([[2.0]])), {"weight": Tensor([[3.0]]), "bias": Tensor([1.0])})
        tensor([[7.]])
    """
    copies = {name: buffer.clone() for name, buffer in net.named_buffers()} | dict(weights or {})
    found: T = functional_call(_Work(net, work), {f"net.{name}": tensor for name, tensor in copies.items()}, ())
    return found


class _Work(nn.Module):
    """Makes ``functional_call`` replace the tensors of a network during any work, not only its own forward pass."""

    def __init__(self, net: nn.Module, work: Callable[[], object]) -> None:
        super().__init__()
        self.net = net
        self.work = work

    def forward(self) -> object:
        return self.work()
