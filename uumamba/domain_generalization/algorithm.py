"""DomainBed's ``update`` and ``predict`` for any network, optimizer and method."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.runtime.errors import require
from uumamba.runtime.options import check_options
from uumamba.runtime.whole_step import WholeStepOptimizer
from uumamba.types import Method

Minibatches = Sequence[tuple[Tensor, Tensor]]
"""``[(x, y), ...]``, one pair per training domain."""


class Algorithm(nn.Module):
    r"""Network, optimizer and method behind DomainBed's ``update`` and ``predict``.

    One update concatenates all minibatches and runs one optimizer step, with the gradient of the method's penalty A
    added:

    .. math:: L(w) = \mathrm{loss}\big(\mathrm{net}_w(x), y\big), \qquad
              \text{descend with}\ \ g_{\mathrm{optimizer}}(L) + \nabla A(w)

    Any network, any optimizer of :mod:`uumamba.optim` and any method can be combined. Without a method, ``Plain`` gives
    empirical risk minimisation and ``SAM`` gives SAM. Neither ``update`` nor ``predict`` changes the training mode.

    Args:
        net: called as ``net(x)``. DomainBed's two parts are
            ``nn.Sequential(OrderedDict(featurizer=..., classifier=...))``.
        optimizer: an optimizer of :mod:`uumamba.optim` over the network's parameters.
        method: see :class:`Method <uumamba.types.Method>`; ``domains`` are the numbers of the minibatches. None for no
            penalty.
        loss: called as ``loss(net(x), y)``.

    Raises:
        UsageError: the optimizer's ``step`` has no argument ``at_weights``; or, from ``update``, there is no minibatch,
            a minibatch is empty, its numbers of inputs and labels differ, or unlabelled data were passed.

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
        Differs from the paper: DomainBed's algorithms build network and optimizer from hyper-parameters; here both are
        arguments. DomainBed's scripts call ``algorithm_class(input_shape, num_classes, num_domains, hparams)``: give
        them a function that builds and returns an ``Algorithm``.
    """

    @check_options
    def __init__(
        self,
        net: nn.Module,
        optimizer: WholeStepOptimizer,
        *,
        method: Method | None = None,
        loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
    ) -> None:
        super().__init__()
        require(
            "at_weights" in inspect.signature(optimizer.step).parameters,
            "optimizer",
            got=type(optimizer).__name__,
            expected="an optimizer of uumamba.optim",
            fix="pass Plain(net.parameters(), partial(torch.optim.Adam, lr=5e-5))",
        )
        self.net = net
        self.optimizer = optimizer
        self.method = method
        self.loss = loss

    def update(self, minibatches: Minibatches, unlabeled: None = None) -> dict[str, float]:
        """Run one training step.

        Args:
            minibatches: ``[(x, y), ...]``, one pair per training domain, each with at least one sample.
            unlabeled: DomainBed's argument for unlabelled data of test domains; must be None.

        Returns:
            ``{"loss": ...}`` at the weights before the step, and ``"penalty"`` where the method added a penalty. MSAM
            and StaleSAM give the loss at the perturbed weights, TRAM with ``trust="fisher"`` at a noisy input.
        """
        require(
            unlabeled is None,
            "unlabeled",
            got=type(unlabeled).__name__,
            expected="None, because no method uses unlabelled data",
        )
        x, y, domains = _concatenate(minibatches)
        penalty = None if self.method is None else self.method.at_weights(x, y, domains=domains)
        numbers: dict[str, Tensor] = {}

        def record_penalty() -> Tensor:
            assert penalty is not None  # only passed on if the method returned a penalty
            value = penalty()
            numbers["penalty"] = value.detach()
            return value

        at_weights = None if penalty is None else record_penalty
        numbers["loss"] = self.optimizer.step(lambda: self.loss(self.net(x), y), at_weights=at_weights)
        return {name: float(number) for name, number in numbers.items()}

    def predict(self, x: Tensor) -> Tensor:
        """Return the network's output, logits for a classifier."""
        return self.net(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.predict(x)


def _concatenate(minibatches: Minibatches) -> tuple[Tensor, Tensor, Tensor]:
    """Return all inputs, all labels and each sample's minibatch number."""
    sizes = [(len(x), len(y)) for x, y in minibatches]
    require(
        sizes and all(inputs == labels > 0 for inputs, labels in sizes),
        "minibatches",
        got=sizes,
        expected="at least one pair with equal, positive lengths of x and y",
    )
    inputs, labels = torch.cat([x for x, _ in minibatches]), torch.cat([y for _, y in minibatches])
    lengths = torch.tensor([count for count, _ in sizes], device=inputs.device)
    return inputs, labels, torch.repeat_interleave(lengths)
