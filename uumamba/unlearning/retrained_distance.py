"""Distance of an unlearned network to one retrained without the forget set."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from uumamba.runtime.errors import require
from uumamba.runtime.network import bare_network, evaluating, finest_logits
from uumamba.runtime.options import Batches, check_options
from uumamba.runtime.second_derivative import joint_norm
from uumamba.unlearning.per_sample_loss import Predict, predict_batch, read_valid_classes
from uumamba.unlearning.sample_accuracy import mean_over_positions


@dataclass(frozen=True)
class PredictionDistance:
    """Distance of two networks' predictions, as means over samples.

    Attributes:
        disagreement: share of positions with another predicted class, from 0 to 1.
        divergence: Jensen-Shannon divergence of the probabilities in bits, from 0 to 1.
        samples: number of samples.
    """

    disagreement: float
    divergence: float
    samples: int


@check_options
def prediction_distance(
    net: nn.Module,
    retrained: nn.Module,
    batches: Batches,
    *,
    predict: Predict = predict_batch,
    ignore_label: int | None = -100,
) -> PredictionDistance:
    r"""Compare the predictions of two networks with softmax outputs.

    .. math:: \mathrm{JS}(p, q) = \tfrac12 \mathrm{KL}(p \Vert m) + \tfrac12 \mathrm{KL}(q \Vert m), \qquad
        m = \tfrac12 (p + q)

    In evaluation mode; the modes are restored. Samples count equally, whatever their number of positions. Two networks
    trained with different seeds also differ: compare with the distance of two retrained networks.

    Args:
        net: the network after unlearning.
        retrained: a network trained without the forget set.
        batches: batches for ``predict``, of the forget set, the retain set or new samples.
        predict: ``predict(net, batch)`` returns logits and label.
        ignore_label: label of positions that do not count.

    Raises:
        UsageError: there is no batch, the logits' shapes differ, or a label is no class.

    Example:
        >>> batches = [(torch.tensor([[100.0, -100.0]]), torch.tensor([0]))]
        >>> negative = nn.Linear(2, 2, bias=False)
        >>> _ = negative.weight.data.copy_(-torch.eye(2))
        >>> prediction_distance(nn.Identity(), negative, batches)
        PredictionDistance(disagreement=1.0, divergence=1.0, samples=1)
    """
    disagreements: list[Tensor] = []
    divergences: list[Tensor] = []
    with evaluating(net), evaluating(retrained):
        for batch in batches:
            outputs, label = predict(net, batch)
            first, second = finest_logits(outputs), finest_logits(predict(retrained, batch)[0])
            _require_same_shape(first, second)
            _, valid = read_valid_classes(first, label, ignore_label)
            second = second.to(first.device)
            other = first.argmax(1) != second.argmax(1)
            disagreements.append(mean_over_positions(other.double(), valid).cpu())
            divergences.append(mean_over_positions(_divergence(first, second), valid).cpu())
    require(disagreements, "batches", got="no batch", expected="at least one batch")
    disagreement, divergence = (torch.cat(each) for each in (disagreements, divergences))
    return PredictionDistance(float(disagreement.mean()), float(divergence.mean()), len(disagreement))


@check_options
def weight_distance(net: nn.Module, retrained: nn.Module) -> float:
    r"""Relative distance of the weights of two networks of one architecture.

    .. math:: \frac{\lVert w - w' \rVert_2}{\lVert w' \rVert_2}

    over all parameters, also frozen ones. Networks of different initial weights are far apart although they may predict
    the same.

    Args:
        net: the network after unlearning, w.
        retrained: a network trained without the forget set, w'.

    Raises:
        UsageError: names or shapes of parameters differ, or all of w' are 0.

    Example:
        >>> net, other = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(net.weight, 3.0), nn.init.constant_(other.weight, 2.0)
        >>> weight_distance(net, other)
        0.5
    """
    first, second = (
        {name: param.detach().double() for name, param in bare_network(each).named_parameters()}
        for each in (net, retrained)
    )
    differing = [name for name in first | second if _shape(first, name) != _shape(second, name)]
    require(
        not differing,
        "retrained",
        got=f"another {differing[0] if differing else ''}",
        expected="parameters of the same names and shapes",
    )
    length = float(joint_norm([*second.values()]))
    require(length > 0, "retrained", got="weights of 0", expected="at least one weight other than 0")
    return float(joint_norm([first[name] - second[name].to(first[name].device) for name in first])) / length


@dataclass(frozen=True)
class QualityGap:
    """Quality of two networks on one set.

    Attributes:
        unlearned: quality after unlearning.
        retrained: quality of the retrained network.
    """

    unlearned: float
    retrained: float

    @property
    def gap(self) -> float:
        """Quality after unlearning minus that of the retrained network."""
        return self.unlearned - self.retrained


@check_options
def quality_gaps(
    net: nn.Module,
    retrained: nn.Module,
    sets: Mapping[str, Iterable[Any]],
    quality: Callable[[nn.Module, Iterable[Any]], float],
) -> dict[str, QualityGap]:
    """Measure the quality of two networks on named sets.

    Args:
        net: the network after unlearning.
        retrained: a network trained without the forget set.
        sets: batches by name, such as ``{"forget": ..., "retain": ...}``, iterated twice.
        quality: ``quality(net, batches)``, such as :func:`mean_accuracy`.

    Example:
        >>> from uumamba.unlearning import mean_accuracy
        >>> sets = {"forget": [(torch.eye(2), torch.tensor([0, 1]))]}
        >>> quality_gaps(nn.Identity(), nn.Identity(), sets, mean_accuracy)["forget"].gap
        0.0
    """
    return {
        name: QualityGap(float(quality(net, batches)), float(quality(retrained, batches)))
        for name, batches in sets.items()
    }


def _divergence(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence of ``(batch, classes, *positions)`` in bits."""
    p, q = (each.to(torch.promote_types(each.dtype, torch.float32)).log_softmax(1) for each in (first, second))
    middle = torch.logaddexp(p, q) - math.log(2)
    nats = (p.exp() * (p - middle) + q.exp() * (q - middle)).sum(1) / 2
    return nats.clamp(0, math.log(2)) / math.log(2)


def _require_same_shape(first: Tensor, second: Tensor) -> None:
    require(
        first.shape == second.shape,
        "retrained",
        got=f"logits of shape {tuple(second.shape)}",
        expected=f"logits of shape {tuple(first.shape)}",
    )


def _shape(params: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return params[name].shape if name in params else None
