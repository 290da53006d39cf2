"""DomainBed's interface to any network, any optimizer of the family, and any method that adds to its step."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.runtime.errors import require
from uumamba.types import Method

Minibatches = Sequence[tuple[Tensor, Tensor]]
"""``[(x, y), ...]``, one pair a training domain."""


class Steps(Protocol):
    """Optimizer whose ``step`` is a whole training step, such as any of :mod:`uumamba.optim`."""

    def step(
        self,
        closure: Callable[[], Tensor],
        ascent: None = None,
        at_weights: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """Run one step and return the loss at the weights before it."""


class Algorithm(nn.Module):
    r"""Network, optimizer and method behind DomainBed's ``update`` and ``predict``.

    One update is a step of the optimizer on all minibatches joined, with the gradient of the method's scalar A added:

    .. math:: L(w) = \mathrm{loss}\big(\mathrm{net}_w(x), y\big), \qquad
              \text{descend with}\ \ g_{\mathrm{optimizer}}(L) + \nabla A(w)

    so any network, any member of the family and any method can be combined; without a method and with ``Plain`` it is
    empirical risk minimisation, with ``SAM`` the SAM row of a table. Nothing is built or copied here. Neither
    ``update`` nor ``predict`` changes the training mode.

    Args:
        net: called as ``net(x)``. DomainBed's two parts are
            ``nn.Sequential(OrderedDict(featurizer=..., classifier=...))``.
        optimizer: of :mod:`uumamba.optim`, over the network's parameters.
        method: see :class:`Method <uumamba.types.Method>`; its domains are the numbers of the minibatches. None adds
            nothing.
        loss: called as ``loss(net(x), y)``.

    Raises:
        UsageError: the optimizer's ``step`` takes no ``at_weights``; or, from ``update``, there is no minibatch, one is
            empty or has another number of labels, or unlabelled data were passed.

    Example:
        >>> from functools import partial
        >>> from uumamba.optim import SAM
        >>> net = nn.Linear(2, 3)
        >>> class SmallLogits:
        ...     def at_weights(self, image, label, *, domains):
        ...         return lambda: net(image).pow(2).mean()
        >>> optimizer = SAM(net.parameters(), partial(torch.optim.SGD, lr=0.1))
        >>> algorithm = Algorithm(net, optimizer, method=SmallLogits())
        >>> minibatches = [(torch.eye(2), torch.tensor([0, 1])), (torch.ones(1, 2), torch.tensor([2]))]
        >>> sorted(algorithm.update(minibatches))
        ['loss', 'penalty']
        >>> algorithm.predict(torch.eye(2)).shape
        torch.Size([2, 3])

    References:
        Gulrajani & Lopez-Paz, *In Search of Lost Domain Generalization*, ICLR 2021, arXiv:2007.01434.
        Differs from the paper: its algorithms build network and optimizer from hyper-parameters, these are passed; its
        own scripts call ``algorithm_class(input_shape, num_classes, num_domains, hparams)``, which a function that
        builds and returns one of these can be.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Steps,
        *,
        method: Method | None = None,
        loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
    ) -> None:
        super().__init__()
        fits = "at_weights" in inspect.signature(optimizer.step).parameters
        fix = "wrap it: Plain(net.parameters(), partial(torch.optim.Adam, lr=5e-5)) of uumamba.optim"
        require(fits, "optimizer", got=type(optimizer).__name__, expected="a step that takes at_weights", fix=fix)
        self.net = net
        self.optimizer = optimizer
        self.method = method
        self.loss = loss

    def update(self, minibatches: Minibatches, unlabeled: None = None) -> dict[str, float]:
        """Run one training step.

        Args:
            minibatches: ``[(x, y), ...]``, one pair a training domain, each at least one sample long.
            unlabeled: DomainBed's argument for unlabelled data of test domains; must be None.

        Returns:
            ``{"loss": ...}`` at the weights before the step, and ``"penalty"`` where the method added one.
        """
        require(unlabeled is None, "unlabeled", got=type(unlabeled).__name__, expected="None, as no method uses it")
        x, y, domains = _join(minibatches)
        scalar = None if self.method is None else self.method.at_weights(x, y, domains=domains)
        numbers: dict[str, Tensor] = {}

        def penalty() -> Tensor:
            assert scalar is not None  # passed on only when there is one
            value = scalar()
            numbers["penalty"] = value.detach()
            return value

        at_weights = None if scalar is None else penalty
        numbers["loss"] = self.optimizer.step(lambda: self.loss(self.net(x), y), at_weights=at_weights)
        return {name: float(number) for name, number in numbers.items()}

    def predict(self, x: Tensor) -> Tensor:
        """Return the network's output, logits for a classifier."""
        return self.net(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return :meth:`predict`'s output."""
        return self.predict(x)


def _join(minibatches: Minibatches) -> tuple[Tensor, Tensor, Tensor]:
    """Return all inputs, all labels, and the number of each sample's minibatch."""
    sizes = [(len(x), len(y)) for x, y in minibatches]
    fits = sizes and all(inputs == labels > 0 for inputs, labels in sizes)
    require(fits, "minibatches", got=sizes, expected="pairs of as many inputs as labels, at least one")
    inputs, labels = torch.cat([x for x, _ in minibatches]), torch.cat([y for _, y in minibatches])
    lengths = torch.tensor([count for count, _ in sizes], device=inputs.device)
    return inputs, labels, torch.repeat_interleave(lengths)
