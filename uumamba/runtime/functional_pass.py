"""Forward passes of a network that leave its buffers unchanged."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def copied_buffers(net: nn.Module, weights: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """Replace the network's buffers by copies and, optionally, its weights.

    Only the copies of running statistics change. Restoring old values afterwards is not possible, because autograd
    raises an error for changed tensors in its graph. Activation checkpointing recomputes layers during the backward
    pass with the network's current tensors, so a block must compute gradients at other weights itself. Tensors that
    modules share are replaced in each of them.

    Args:
        net: the bare network; see :func:`uumamba.runtime.network.bare_network`.
        weights: tensors that replace the parameters of these names in the block.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> with copied_buffers(norm):
        ...     _ = norm(Tensor([[1.0], [3.0]]))
        >>> norm.running_mean, norm.num_batches_tracked
        (tensor([0.]), tensor(0))
        >>> layer = nn.Linear(1, 1)
        >>> with copied_buffers(layer, {"weight": Tensor([[3.0]]), "bias": Tensor([1.0])}):
        ...     layer(Tensor([[2.0]]))
        tensor([[7.]])
    """
    params = dict(net.named_parameters())
    others = {id(buffer): buffer.clone() for buffer in net.buffers()}
    others |= {id(params[name]): tensor for name, tensor in (weights or {}).items()}
    replaced = [
        (tensors, name, tensor)
        for module in net.modules()
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
        if id(tensor) in others
    ]
    try:
        for tensors, name, tensor in replaced:
            tensors[name] = others[id(tensor)]  # type: ignore[assignment]  # as torch.func.functional_call does
        yield
    finally:
        for tensors, name, tensor in replaced:
            tensors[name] = tensor  # type: ignore[assignment]
