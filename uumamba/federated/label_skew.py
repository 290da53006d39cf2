"""Split of labelled samples over clients whose class shares differ."""

from typing import Any

import numpy as np

from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.options import NonNegativeInt, Positive, PositiveInt, check_options
from uumamba.runtime.seeds import key_to_seed

ATTEMPTS = 1000
"""Splits that are drawn until every client has enough samples."""


@check_options
def dirichlet_split(
    labels: Any, clients: PositiveInt, alpha: Positive, seed: int = 0, *, at_least: NonNegativeInt = 1
) -> list[np.ndarray]:
    r"""Split samples over clients, each class by shares from a Dirichlet distribution.

    .. math:: (p_{c1}, \dots, p_{cn}) \sim \mathrm{Dirichlet}(\alpha, \dots, \alpha)

    Client i gets the share :math:`p_{ci}` of class c, rounded to whole samples. A small alpha gives each client few
    classes and clients of very different size; a large one gives all clients the same mixture. The split is drawn again
    as a whole until the smallest client has ``at_least`` samples.

    Args:
        labels: class of each sample, of shape ``(samples,)``: an array, a tensor or a list.
        clients: number of clients.
        alpha: concentration; 0.3 and 0.6 are usual.
        seed: equal seeds give equal splits.
        at_least: smallest number of samples of a client.

    Returns:
        The indices of each client's samples, in ascending order. Each sample has exactly one client.

    Raises:
        UsageError: labels are not one-dimensional, there are too few samples, or 1000 draws leave a client with fewer
            than ``at_least``.

    Example:
        >>> parts = dirichlet_split([0, 1, 2] * 100, clients=4, alpha=0.3, seed=1)
        >>> sum(map(len, parts)), min(map(len, parts)) > 0
        (300, True)

    References:
        Hsu et al., *Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification*,
        2019, arXiv:1909.06335.
        Yurochkin et al., *Bayesian Nonparametric Federated Learning of Neural Networks*, ICML 2019, arXiv:1905.12022.
        Differs from the papers: shares are drawn by class over clients, as by Yurochkin et al.; Hsu et al. draw them by
        client over classes, and all clients have one size.
    """
    found = np.asarray(labels)
    require(found.ndim == 1, "labels", got=f"shape {found.shape}", expected="one class per sample, shape (samples,)")
    require(
        len(found) >= clients * at_least,
        "labels",
        got=f"{len(found)} samples",
        expected=f"at least {clients * at_least}: {at_least} for each of {clients} clients",
    )
    classes = np.unique(found, return_inverse=True)[1]
    for attempt in range(ATTEMPTS):
        generator = np.random.default_rng(key_to_seed(seed, "Dirichlet split", attempt))
        owners = _draw_owners(classes, clients, alpha, generator)
        if np.bincount(owners, minlength=clients).min() >= at_least:
            return [np.flatnonzero(owners == client) for client in range(clients)]
    raise UsageError(
        "at_least",
        got=f"{at_least} samples of {len(found)}, for {clients} clients and alpha {alpha}",
        expected=f"a number that one of {ATTEMPTS} draws gives every client",
        fix="lower at_least or the number of clients, or raise alpha",
    )


def _draw_owners(classes: np.ndarray, clients: int, alpha: float, generator: "np.random.Generator") -> np.ndarray:
    """Draw the client of each sample."""
    owners = np.empty(len(classes), dtype=np.int64)
    for each in range(classes.max(initial=-1) + 1):
        members = generator.permutation(np.flatnonzero(classes == each))
        shares = generator.dirichlet(np.full(clients, alpha))
        ends = np.floor(np.cumsum(shares) * len(members) + 0.5)
        owners[members] = np.searchsorted(ends[:-1], np.arange(len(members)), side="right")
    return owners
