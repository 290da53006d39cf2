"""Trainable weights of a network as one vector."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.options import check_options


class FlatWeights:
    """View of a network's trainable weights as one vector, which clients exchange.

    Frozen parameters and buffers are left out: the first are equal at all clients, and averages of running statistics
    are no statistics of the averaged weights. Parameters that modules share are counted once. Types may be mixed; the
    vector has the widest of them, and at least float32.

    Args:
        net: a network or any module that holds everything that clients train.

    Raises:
        UsageError: the module has no trainable parameter.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> flat = FlatWeights(net)
        >>> flat.write(torch.tensor([1.0, 2.0, 3.0]))
        >>> net.weight.data, net.bias.data
        (tensor([[1., 2.]]), tensor([3.]))
    """

    @check_options
    def __init__(self, net: nn.Module) -> None:
        named = [(name, param) for name, param in net.named_parameters() if param.requires_grad]
        require(named, "net", got="no trainable parameter", expected="a network with weights to train")
        self.names = [name for name, _ in named]
        self._params: Sequence[Tensor] = [param for _, param in named]
        self.shapes = [tuple(param.shape) for param in self._params]
        self.dtype = torch.float32
        for param in self._params:
            self.dtype = torch.promote_types(self.dtype, param.dtype)
        self.size = sum(param.numel() for param in self._params)

    @torch.no_grad()
    def read(self) -> Tensor:
        """Return a copy of the weights, of shape ``(size,)``, on the CPU."""
        return torch.cat([param.detach().to("cpu", self.dtype).reshape(-1) for param in self._params])

    @torch.no_grad()
    def write(self, vector: Tensor, *, source: str = "weights") -> None:
        """Copy a vector into the network's weights.

        Raises:
            UsageError: the vector has another shape; the key is ``source``, such as the client that sent it.
        """
        self.check(vector, source=source)
        parts = vector.split([param.numel() for param in self._params])
        for param, part in zip(self._params, parts, strict=True):
            param.copy_(part.reshape(param.shape))

    def check(self, vector: Tensor, *, source: str) -> None:
        """Raise if a client's vector does not fit this network."""
        if tuple(vector.shape) != (self.size,):
            raise UsageError(
                source,
                got=f"weights of shape {tuple(vector.shape)}",
                expected=f"shape ({self.size},), the trainable weights of the same network at every client",
                fix="build the same network at every client",
            )
