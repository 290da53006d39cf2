"""The gradient of each sample's cross entropy in the weights of a network's head."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from uumamba.domain_generalization.untraced import uncompiled
from uumamba.runtime.errors import UsageError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class PerSampleGradients(Protocol):
    """Gradients ``G_i`` of samples, flattened over all tensors of the head, which need not stand in memory as such."""

    def mean(self) -> Tensor:
        """Over samples, ``(entries,)``."""
        ...

    def second_moment(self) -> Tensor:
        """The mean over samples of each entry's square, ``(entries,)``."""
        ...

    def mean_squared_norm(self) -> Tensor:
        """Over samples, of the squared norm of each tensor's gradient divided by its entries, summed over tensors."""
        ...


@dataclass(frozen=True)
class LinearHeadGradients:
    r"""The gradients of a linear head in closed form, kept as their two factors.

    .. math:: G^W_i = e_i \otimes h_i, \qquad G^b_i = e_i, \qquad e_i = \mathrm{softmax}(z_i) - \mathrm{onehot}(y_i)

    for the cross entropy of each sample i, not divided by their number. Moments are products of
    ``(classes, samples)`` with ``(samples, width)`` matrices, so memory grows with samples and with weights and not
    with their product. Everything can be differentiated once in the features and logits.

    Attributes:
        errors: e, ``(samples, classes)``.
        features: h, the head's input, ``(samples, width)``.
        bias: whether the head has one.

    Example:
        >>> found = LinearHeadGradients.of(torch.zeros(1, 2), torch.tensor([[3.0]]), torch.tensor([0]))
        >>> found.per_sample()["weight"]  # (1/2 - 1) * 3 and (1/2) * 3
        tensor([[[-1.5000],
                 [ 1.5000]]])
    """

    errors: Tensor
    features: Tensor
    bias: bool = True

    @classmethod
    def of(cls, logits: Tensor, features: Tensor, label: Tensor, *, bias: bool = True) -> "LinearHeadGradients":
        """From logits ``(samples, classes)``, features ``(samples, width)`` and classes ``(samples,)``."""
        logits, features = full_precision(logits), full_precision(features)
        return cls(logits.softmax(1) - F.one_hot(label.long(), logits.shape[1]), features, bias)

    def per_sample(self) -> dict[str, Tensor]:
        """The gradients themselves: ``weight (samples, classes, width)``, and ``bias (samples, classes)``."""
        weight = self.errors[:, :, None] * self.features[:, None]
        return {"weight": weight, "bias": self.errors} if self.bias else {"weight": weight}

    def mean(self) -> Tensor:
        """Over samples, ``(entries,)``, row by row with the bias at the row's end."""
        return (self.errors.T @ self._with_ones(self.features)).flatten() / len(self.errors)

    def second_moment(self) -> Tensor:
        """The mean over samples of each entry's square, in the order of :meth:`mean`."""
        return (self.errors.square().T @ self._with_ones(self.features.square())).flatten() / len(self.errors)

    def mean_squared_norm(self) -> Tensor:
        r""":math:`\mathrm{mean}_i\, \lVert e_i \rVert^2 (\lVert h_i \rVert^2 / (K D) + 1 / K)`."""
        width = self.features.shape[1]
        of_weight = self.features.square().sum(1) / width
        total = of_weight + 1 if self.bias else of_weight
        return (self.errors.square().mean(1) * total).mean()

    def _with_ones(self, features: Tensor) -> Tensor:
        return F.pad(features, (0, 1), value=1.0) if self.bias else features


@dataclass(frozen=True)
class StackedGradients:
    """The gradients of a head of any kind, one tensor a parameter, ``(samples, *shape)``."""

    tensors: Mapping[str, Tensor]

    @classmethod
    def of(
        cls, head: nn.Module, features: Tensor, label: Tensor, *, ignore_label: int | None = None
    ) -> "StackedGradients":
        """By ``torch.func``, from the head's inputs ``(samples, ...)`` and labels ``(samples,)`` or of voxels.

        A sample with several voxels has the mean of their gradients. Memory grows with samples times weights.

        Args:
            head: any module without batch statistics, whose output is in the order of :func:`voxels_last`.
            features: its input.
            label: classes, ``(samples, *spatial)``.
            ignore_label: voxels with this label have no gradient and are not counted.
        """
        ignored = -100 if ignore_label is None else ignore_label
        params: dict[str, Tensor] = {name: each for name, each in head.named_parameters() if each.requires_grad}

        def loss(weights: dict[str, Tensor], each: Tensor, classes: Tensor) -> Tensor:
            logits = full_precision(voxels_last(head, functional_call(head, weights, (each[None],))))[0]
            total = F.cross_entropy(logits, classes.flatten(), ignore_index=ignored, reduction="sum")
            return total / (classes != ignored).sum().clamp(min=1)

        with uncompiled(head):
            return cls(vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(params, features, label))

    def per_sample(self) -> dict[str, Tensor]:
        """The gradients themselves."""
        return dict(self.tensors)

    def mean(self) -> Tensor:
        """Over samples, ``(entries,)``."""
        return self._rows().mean(0)

    def second_moment(self) -> Tensor:
        """The mean over samples of each entry's square, ``(entries,)``."""
        return self._rows().square().mean(0)

    def mean_squared_norm(self) -> Tensor:
        """Over samples, of the squared norm of each tensor's gradient divided by its entries, summed over tensors."""
        return torch.stack([tensor.square().mean() for tensor in self.tensors.values()]).sum()

    def _rows(self) -> Tensor:
        return torch.cat([tensor.flatten(1) for tensor in self.tensors.values()], 1)


def is_linear(head: nn.Module) -> bool:
    """Whether each sample or voxel of the output is one and the same affine map of that of the input.

    A layer whose forward pass is not torch's own is not taken for one, whatever it descends from.

    Example:
        >>> is_linear(nn.Conv3d(8, 4, 1)), is_linear(nn.Conv3d(8, 4, 3)), is_linear(nn.Sequential(nn.Linear(2, 2)))
        (True, False, False)
    """
    if isinstance(head, CONVOLUTIONS):
        (kind,) = (each for each in CONVOLUTIONS if isinstance(head, each))
        plain = all(each == 1 for each in (*head.kernel_size, *head.stride, head.groups))
        unpadded = isinstance(head.padding, str) or not any(head.padding)
        return plain and unpadded and _keeps(head, kind, "forward") and _keeps(head, kind, "_conv_forward")
    return isinstance(head, nn.Linear) and _keeps(head, nn.Linear, "forward")


def _keeps(module: nn.Module, kind: type[nn.Module], method: str) -> bool:
    return getattr(getattr(module, method), "__func__", None) is getattr(kind, method)


def voxels_last(head: nn.Module, tensor: Tensor) -> Tensor:
    """A head's output, or a linear one's input, as ``(batch, voxels, channels)``; one voxel without spatial axes.

    Channels are on axis 1, or last for a linear layer, also one with a forward pass of its own.
    """
    last = tensor if isinstance(head, nn.Linear) else tensor.movedim(1, -1)
    return last.reshape(last.shape[0], -1, last.shape[-1])


def check_logits(logits: Tensor) -> None:
    """Refuse logits of fewer than two classes, which are last."""
    if logits.shape[-1] < 2:
        raise UsageError(
            f"The head gives {logits.shape[-1]} logit a sample, and the closed form is that of the cross entropy over "
            "classes; give a network of two outputs where there are two classes."
        )


def full_precision(tensor: Tensor) -> Tensor:
    """Half and bfloat16 to float32, others unchanged: squares of squares underflow in half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
