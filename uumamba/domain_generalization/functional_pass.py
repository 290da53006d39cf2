"""Forward passes of a network that leave its buffers unchanged."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor, nn
from torch.func import functional_call

T = TypeVar("T")


def run_with_copies(net: nn.Module, work: Callable[[], T], weights: Mapping[str, Tensor] | None = None) -> T:
    """Call ``work()`` with copies of the network's buffers and, optionally, other weights.

    Only the copies of running statistics change. Restoring old values afterwards is not possible, because autograd
    raises an error for changed tensors in its graph. Activation checkpointing recomputes layers during the backward
    pass with the network's current tensors, so ``work`` must compute gradients at other weights itself.

    Args:
        net: the bare network; see :func:`uumamba.runtime.network.bare_network`.
        work: function that runs passes of the network.
        weights: tensors that replace the parameters of these names during ``work``.

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
    result: T = functional_call(_Work(net, work), {f"net.{name}": tensor for name, tensor in copies.items()}, ())
    return result


class _Work(nn.Module):
    """Module whose forward pass is a function that uses a network.

    ``functional_call`` then replaces the network's tensors during the complete function.
    """

    def __init__(self, net: nn.Module, work: Callable[[], object]) -> None:
        super().__init__()
        self.net = net
        self.work = work

    def forward(self) -> object:
        return self.work()
