"""Output-bias forgetting: an ascent loss in place of the task's loss."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from uumamba.optim.passes import read_logits, read_output_label
from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.network import read_classes
from uumamba.runtime.options import BetweenZeroAndOne, NonNegativeInt, Probability, check_options


class OutputBiasForgetting:
    r"""Ascent loss that makes a network forget its outputs' bias.

    For each sample, or each voxel, with K classes, probabilities p and the uniform distribution :math:`u = 1/K`

    .. math::
        \mathrm{OBF} = (1 - a)\, \mathrm{CE}(p, y) - \mathrm{CE}(p, u), \qquad
        a = \gamma \max\Big(0, \frac{1 - \lambda / p_y}{1 - \lambda}\Big), \qquad
        \frac{\partial\, \mathrm{OBF}}{\partial z} = u - a\, p - (1 - a)\, y

    where a is a constant without gradient. Certain outputs are forgotten most. If the true class has at most the
    probability :math:`\lambda`, a is 0 and the ascent step raises the loss; if the true class is certain, a is
    :math:`\gamma` and the ascent step leads to uniform outputs. The mean is over samples or voxels. Only the ascent
    step changes: the step still descends with the task's loss.

    Edge cases. All voxels ignored: 0, so no perturbation. Softmax needs one class per voxel; sigmoid also takes a label
    of 0 and 1 in the logits' shape, with :math:`p_y` the mean over the true outputs, and 0 without a true output.
    Deep supervision: the finest logits. Half precision: computed in float32.

    Args:
        gamma: strength, from 0 to 1.
        uniform_probability: :math:`\lambda`, between 0 and 1; None is 1/K.
        always: full strength :math:`\gamma` for every sample, certain or not.
        form: map of logits to probabilities, ``"softmax"`` with cross entropy or ``"sigmoid"`` with the binary one,
            summed over outputs.
        class_mean: mean over the voxels of each class of the label, then over the present classes, so that background
            does not dominate.
        ignore_label: label of samples or voxels to leave out.

    Raises:
        UsageError: an option is out of range, or the closure returned no logits and label that fit each other.

    Example:
        >>> from functools import partial
        >>> from uumamba.optim import SAM
        >>> net, x, y = torch.nn.Linear(2, 3), torch.eye(2), torch.tensor([0, 2])
        >>> def closure():
        ...     logits = net(x)
        ...     return F.cross_entropy(logits, y), (logits, y)
        >>> optimizer = SAM(net.parameters(), partial(torch.optim.SGD, lr=0.1), rho=0.05)
        >>> optimizer.step(closure, ascent=OutputBiasForgetting()).shape
        torch.Size([])

    References:
        Vani et al., *Forget Sharpness: Perturbed Forgetting of Model Biases Within SAM Dynamics*, ICML 2024,
        arXiv:2406.06700.
        Differs from the paper: voxels, labels to ignore and the mean over classes; the published code takes the sigmoid
        form also for networks trained with softmax; here softmax is the default.
    """

    @check_options
    def __init__(
        self,
        *,
        gamma: Probability = 1.0,
        uniform_probability: BetweenZeroAndOne | None = None,
        always: bool = False,
        form: Literal["softmax", "sigmoid"] = "softmax",
        class_mean: bool = False,
        ignore_label: NonNegativeInt | None = None,
    ) -> None:
        require(
            uniform_probability is None or not always,
            "uniform_probability",
            got=uniform_probability,
            expected="None with always=True",
        )
        self.gamma = gamma
        self.uniform_probability = uniform_probability
        self.always = always
        self.form = form
        self.class_mean = class_mean
        self.ignore_label = ignore_label

    def __call__(self, outputs: Any) -> Tensor:
        """Compute the ascent loss.

        Args:
            outputs: ``(logits, label)``: logits ``(batch, classes, *spatial)`` or a list of them, finest first; label
                integers ``(batch, *spatial)`` or ``(batch, 1, *spatial)``, for sigmoid also 0 and 1 in the logits'
                shape.
        """
        label, logits = read_output_label(outputs), read_logits(outputs)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.form == "sigmoid" and label.shape == logits.shape and logits.shape[1] > 1:
            require(
                not self.class_mean and self.ignore_label is None,
                "label",
                got="a label of 0 and 1 in the logits' shape",
                expected="integer labels with class_mean or ignore_label",
            )
            return self._forget_sigmoid(logits, label.to(logits.dtype)).mean()
        own, valid = self._read_classes(logits, label)
        logits = logits.masked_fill(~valid, 0)  # NaN under an ignored voxel would pass the weight 0
        if self.form == "softmax":
            forgetting = self._forget_softmax(logits, own)
        else:
            one_hot = torch.zeros_like(logits, requires_grad=False).scatter_(1, own, 1.0)
            forgetting = self._forget_sigmoid(logits, one_hot)
        share = self._weigh(own[:, 0], valid[:, 0].to(logits.dtype), classes=logits.shape[1])
        return (forgetting * share).sum()

    def _forget_softmax(self, logits: Tensor, own: Tensor) -> Tensor:
        """Compute OBF of each sample or voxel, ``(batch, *spatial)``."""
        log_probabilities = logits.log_softmax(1)
        log_own = log_probabilities.gather(1, own)[:, 0]
        a = self._find_strength(log_own.detach().exp(), classes=logits.shape[1])
        return log_probabilities.mean(1) - (1 - a) * log_own

    def _forget_sigmoid(self, logits: Tensor, label: Tensor) -> Tensor:
        """Compute OBF of independent outputs, for labels of 0 and 1."""
        own = (logits.detach().sigmoid() * label).sum(1) / label.sum(1).clamp_min(1)
        a = self._find_strength(own, classes=logits.shape[1])
        towards_label = F.binary_cross_entropy_with_logits(logits, label, reduction="none").sum(1)
        uniform = torch.full_like(logits, 1 / logits.shape[1])
        towards_uniform = F.binary_cross_entropy_with_logits(logits, uniform, reduction="none").sum(1)
        return (1 - a) * towards_label - towards_uniform

    def _find_strength(self, own_probability: Tensor, *, classes: int) -> Tensor:
        """Compute the factor a; a probability of 0 gives 0."""
        if self.always:
            return torch.full_like(own_probability, self.gamma)
        lowest = 1 / classes if self.uniform_probability is None else self.uniform_probability
        return self.gamma * ((1 - lowest / own_probability) / (1 - lowest)).clamp_min(0)

    def _read_classes(self, logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return classes (0 if ignored) and a validity mask, ``(batch, 1, *spatial)``."""
        expected = (logits.shape[0], 1, *logits.shape[2:])
        if label.ndim == logits.ndim - 1:
            label = label.unsqueeze(1)
        if label.is_floating_point() or label.dtype == torch.bool or label.shape != expected or logits.shape[1] < 2:
            raise UsageError(
                "label",
                got=f"{label.dtype} of shape {tuple(label.shape)} for logits of shape {tuple(logits.shape)}",
                expected=f"integers of shape {expected}, with or without the 1, and at least 2 classes",
            )
        return read_classes(label, self.ignore_label)

    def _weigh(self, own: Tensor, valid: Tensor, *, classes: int) -> Tensor:
        """Return each voxel's weight in the mean; 0 for an ignored voxel."""
        if not self.class_mean:
            return valid / valid.sum().clamp_min(1)
        counts = torch.bincount(own[valid > 0], minlength=classes)
        return valid / (counts[own].clamp_min(1) * (counts > 0).sum().clamp_min(1))
