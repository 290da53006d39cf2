"""DomainBed's interface around any network, any optimizer of the family, and any method that adds to its step."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.runtime.errors import UsageError
from uumamba.types import Method

Minibatches = Sequence[tuple[Tensor, Tensor]]
"""``[(x, y), ...]``, one pair a training domain."""


class Steps(Protocol):
    """An optimizer whose ``step`` is a whole training step, as every one of :mod:`uumamba.optim` is."""

    def step(
        self,
        closure: Callable[[], Tensor],
        ascent: None = None,
        at_weights: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """Run one step and return the loss at the unclimbed weights."""


class Algorithm(nn.Module):
    r"""A network, an optimizer and a method behind DomainBed's ``update`` and ``predict``.

    One update is a step of the optimizer on all minibatches joined, with the gradient of the method's scalar A added:

    .. math:: L(w) = \mathrm{loss}\big(\mathrm{net}_w(x), y\big), \qquad
              \text{descend with}\ \ g_{\mathrm{optimizer}}(L) + \nabla A(w)

    so any network, any member of the family and any method go together; without a method and with ``Plain`` it is
    empirical risk minimisation, with ``SAM`` the SAM row of a table. Nothing is built here and nothing is copied.
    Neither ``update`` nor ``predict`` changes the training mode.

    Args:
        net: called as ``net(x)``. DomainBed's two parts are
            ``nn.Sequential(OrderedDict(featurizer=..., classifier=...))``.
        optimizer: of :mod:`uumamba.optim`, over the network's parameters.
        method: see :class:`Method <uumamba.types.Method>`; its domains are the numbers of the minibatches. None adds
            nothing.
        loss: called as ``loss(net(x), y)``.

    Raises:
        UsageError: the optimizer's ``step`` takes no ``at_weights``; or, from ``update``, there is no minibatch, one
            has as many inputs as no labels, or unlabelled data were passed.

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
        if "at_weights" not in inspect.signature(optimizer.step).parameters:
            raise UsageError(
                f"{type(optimizer).__name__}.step takes no at_weights; wrap it, as in "
                "Plain(net.parameters(), partial(torch.optim.Adam, lr=5e-5)) of uumamba.optim."
            )
        self.net = net
        self.optimizer = optimizer
        self.method = method
        self.loss = loss

    def update(self, minibatches: Minibatches, unlabeled: None = None) -> dict[str, float]:
        """One training step.

        Args:
            minibatches: ``[(x, y), ...]``, one pair a training domain, each at least one sample long.
            unlabeled: DomainBed's place for unlabelled data of test domains; nothing here adapts to them.

        Returns:
            ``{"loss": ...}`` at the weights before the step, and ``"penalty"`` where the method added one.
        """
        if unlabeled is not None:
            raise UsageError("Unlabelled data of the test domains were passed, and no method here adapts to them.")
        x, y, domains = _joined(minibatches)
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
        """The network's answer, logits for a classifier."""
        return self.net(x)

    def forward(self, x: Tensor) -> Tensor:
        """As :meth:`predict`."""
        return self.predict(x)


def _joined(minibatches: Minibatches) -> tuple[Tensor, Tensor, Tensor]:
    """All inputs, all labels, and the number of each sample's minibatch."""
    if not minibatches:
        raise UsageError("An update needs at least one minibatch (x, y), got none.")
    for domain, (x, y) in enumerate(minibatches):
        if len(x) != len(y) or len(x) == 0:
            raise UsageError(f"Minibatch {domain} has {len(x)} inputs and {len(y)} labels; give one label an input.")
    inputs, labels = torch.cat([x for x, _ in minibatches]), torch.cat([y for _, y in minibatches])
    lengths = torch.tensor([len(x) for x, _ in minibatches], device=inputs.device)
    return inputs, labels, torch.repeat_interleave(lengths)
