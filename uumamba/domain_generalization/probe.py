"""Outputs of a network on every training example, without augmentation."""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.network import evaluating, finest_logits, read_classes
from uumamba.runtime.options import check_options

T = TypeVar("T")
Batches = Iterable[Mapping[str, Any] | Sequence[Any]]
"""``{"image": ..., "label": ...}``, or sequences that begin with image and label, in the order of the data set."""

Network = Callable[[Tensor], Any]
Space = Literal["probabilities", "logits"]


@dataclass(frozen=True)
class ProbeOutputs:
    """Outputs of a network on n examples.

    Attributes:
        vectors: the points to cluster, ``(n, features)``.
        losses: loss of each example, ``(n,)``.
        groups: group of each example, such as the class, ``(n,)`` int64 from 0 on; each group is clustered separately.
            Examples of group -1 are never slow.
        error: training error of all examples, such as 1 - accuracy.
        fingerprint: hash of images and labels; equal for equal data in the same order.
        group_count: number of groups.
        kind: kind of the vectors, such as ``"probabilities"``.
    """

    vectors: Tensor
    losses: Tensor
    groups: Tensor
    error: float
    fingerprint: str
    group_count: int
    kind: str = ""


@check_options
def probe_classification(net: Network, batches: Batches, *, space: Space = "probabilities") -> ProbeOutputs:
    """Collect probabilities or logits, cross entropy and class of every example.

    The error is 1 - accuracy. A module runs in evaluation mode, on the device of its parameters; its modes are restored
    afterwards.

    Args:
        net: maps images to logits ``(batch, classes)`` of at least two classes.
        batches: every example once, in the order of the data set, not augmented; labels ``(batch,)`` int64.
        space: ``"probabilities"`` or ``"logits"``.

    Raises:
        UsageError: there is no example, a shape does not fit, a label is not a class, or ``space`` is unknown.

    Example:
        >>> net = nn.Identity()
        >>> outputs = probe_classification(net, [(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0]))])
        >>> outputs.error, outputs.vectors.shape, outputs.groups.tolist()
        (0.5, torch.Size([2, 2]), [0, 0])
    """
    pairs, fingerprint = _collect(net, batches, _check_classified)
    logits, label = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return ProbeOutputs(
        vectors=logits.softmax(1) if space == "probabilities" else logits,
        losses=F.cross_entropy(logits, label, reduction="none"),
        groups=label,
        error=float((logits.argmax(1) != label).double().mean()),
        fingerprint=fingerprint,
        group_count=logits.shape[1],
        kind=space,
    )


@check_options
def probe_segmentation(
    net: Network, batches: Batches, *, groups: Sequence[int] | None = None, ignore_label: int | None = None
) -> ProbeOutputs:
    r"""Describe each case or slice by cross entropies, Dice and foreground share.

    An extension of this project, without a paper. A unit is a case or a slice. Its vector has the mean cross entropy
    over the voxels of each class, the soft Dice of each foreground class and the share of foreground, each standardised
    over the units (a constant number becomes 0). A class that is absent from a unit has no cross entropy there: the
    mean of the units with this class replaces it, so that absence alone makes no cluster. The soft Dice of an absent
    class is 1 if none is predicted and falls with every false voxel. The loss of a unit is its mean cross entropy plus
    1 minus its mean soft Dice; the error is the mean of 1 minus soft Dice over the units. A unit with ignored voxels
    only is in no group and in no mean; a warning names it.

    Args:
        net: maps images ``(batch, channels, *spatial)`` to logits ``(batch, classes, *spatial)``, or to a list of
            logits, finest first; a sliding window is possible.
        batches: every unit once, in order, not augmented; labels ``(batch, 1, *spatial)``.
        groups: group of each unit from 0 on, such as the phase or the centre; each group is clustered separately. None
            for one group.
        ignore_label: label of voxels to leave out.

    Raises:
        UsageError: there is no unit, all voxels are ignored, a shape does not fit, a label is not a class, or
            ``groups`` has another length.

    Example:
        >>> label = torch.tensor([[0, 1], [1, 1]])[:, None]
        >>> logits = 9 * torch.nn.functional.one_hot(label[:, 0], 2).movedim(-1, 1).float()
        >>> outputs = probe_segmentation(nn.Identity(), [(logits, label)])
        >>> outputs.vectors.shape, round(outputs.error, 3)  # 2 cross entropies, 1 Dice, 1 share
        (torch.Size([2, 4]), 0.0)
    """
    parts, fingerprint = _collect(net, batches, lambda logits, label: _describe_units(logits, label, ignore_label))
    cross_entropy, dice, share, is_labelled = (torch.cat(each) for each in zip(*parts, strict=True))
    unit_groups = torch.zeros(len(share), dtype=torch.long) if groups is None else torch.as_tensor(groups)
    require(
        unit_groups.shape == share.shape and int(unit_groups.min()) >= 0,
        "groups",
        got=groups,
        expected=f"a number of at least 0 for each of {len(share)} units",
    )
    require(
        is_labelled.any(),
        "label",
        got="ignored voxels only",
        expected="at least one labelled voxel",
        fix=f"correct the labels, or change ignore_label={ignore_label}",
    )
    if not is_labelled.all():
        ignored = (~is_labelled).nonzero()[:, 0].tolist()
        warnings.warn(
            f"{len(ignored)} of {len(is_labelled)} units have only voxels of ignore_label ({ignore_label}) and are "
            f"excluded from the slow examples: {ignored}",
            stacklevel=3,
        )
    missed = 1 - dice.mean(1)
    # The class's mean over all units replaces NaN, or 0 if no unit has the class.
    filled = cross_entropy.where(~cross_entropy.isnan(), cross_entropy.nanmean(0).nan_to_num(0.0))
    columns = torch.cat([filled, dice, share[:, None]], dim=1)
    vectors = torch.zeros_like(columns, dtype=torch.double)
    vectors[is_labelled] = _standardise(columns[is_labelled])
    return ProbeOutputs(
        vectors=vectors,
        losses=(cross_entropy.nanmean(1) + missed).where(is_labelled, torch.zeros_like(missed)),
        groups=unit_groups.long().where(is_labelled, torch.full_like(unit_groups, -1, dtype=torch.long)),
        error=float(missed[is_labelled].mean()),
        fingerprint=fingerprint,
        group_count=int(unit_groups.max()) + 1,
        kind="segmentation",
    )


@check_options
def fingerprint_batches(batches: Batches) -> str:
    """Return the fingerprint of a data set, as in :class:`ProbeOutputs`.

    The fingerprint depends on values, types, shapes and order, not on the batch size.

    Args:
        batches: batches of images and labels, in order.

    Example:
        >>> batches = [(torch.eye(2), torch.tensor([0, 1]))]
        >>> fingerprint_batches(batches) == probe_classification(nn.Identity(), batches).fingerprint
        True
    """
    fingerprint = _Fingerprint()
    for batch in batches:
        fingerprint.add(*_split_batch(batch))
    return fingerprint.text()


def check_outputs(outputs: ProbeOutputs) -> None:
    """Raise unless there are outputs and losses, all finite.

    Raises:
        UsageError: there is no example, or an output or a loss is not finite.
    """
    require(
        len(outputs.losses),
        "outputs",
        got="no example",
        expected="at least one example",
        fix="run the probe on a data set with examples",
    )
    is_finite = outputs.losses.isfinite() & outputs.vectors.isfinite().all(1)
    require(
        is_finite.all(),
        "outputs",
        got=f"NaN or infinite values, first in example {int(is_finite.int().argmin())}",
        expected="finite numbers",
        fix="remove NaN from the images, or lower the learning rate",
    )


class _Fingerprint:
    """Hash of images and labels, updated sample by sample."""

    def __init__(self) -> None:
        self._hashes = (hashlib.sha256(), hashlib.sha256())

    def add(self, image: Tensor, label: Tensor) -> None:
        for digest, samples in zip(self._hashes, (image, label), strict=True):
            head = f"{samples.dtype} {tuple(samples.shape[1:])};".encode()
            for sample in samples.detach().cpu():
                digest.update(head + tensor_bytes(sample))

    def text(self) -> str:
        return hashlib.sha256(" ".join(each.hexdigest() for each in self._hashes).encode()).hexdigest()


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor's values."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _collect(net: Network, batches: Batches, take: Callable[[Tensor, Tensor], T]) -> tuple[list[T], str]:
    """Return ``take(logits, label)`` per batch, and the fingerprint.

    ``take`` gets logits in float32 on the CPU.
    """
    results, fingerprint = [], _Fingerprint()
    device = next((param.device for param in net.parameters()), None) if isinstance(net, nn.Module) else None
    with evaluating(net) if isinstance(net, nn.Module) else torch.no_grad():
        for image, label in map(_split_batch, batches):
            fingerprint.add(image, label)
            logits = finest_logits(net(image if device is None else image.to(device)))
            results.append(take(logits.detach().float().cpu(), label.cpu()))
    require(
        results,
        "batches",
        got="no batch",
        expected="at least one batch",
        fix="pass a list or a DataLoader instead of an exhausted iterator",
    )
    return results, fingerprint.text()


def _split_batch(batch: Mapping[str, Any] | Sequence[Any]) -> tuple[Tensor, Tensor]:
    names = ("image", "label") if isinstance(batch, Mapping) else (0, 1)
    try:
        image, label = (batch[name] for name in names)  # type: ignore[index]
    except LookupError:
        raise UsageError(
            "batches",
            got=[*batch] if isinstance(batch, Mapping) else f"{len(batch)} tensors",
            expected="image and label, by name or in this order",
        ) from None
    require(
        len(image) == len(label), "label", got=f"{len(label)} labels", expected=f"one label per image, {len(image)}"
    )
    return image, label


def _check_classified(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    require(
        logits.ndim == 2 and logits.shape[1] > 1 and label.shape == logits.shape[:1],
        "net",
        got=(tuple(logits.shape), tuple(label.shape)),
        expected="logits (batch, classes of at least 2), labels (batch,)",
        fix="use probe_segmentation for labels per voxel",
    )
    check_labels(label, logits.shape[1])
    return logits, label.long()


def _describe_units(logits: Tensor, label: Tensor, ignore_label: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return cross entropies, soft Dice, foreground share and a mask of units.

    Cross entropies are ``(batch, classes)``, NaN for absent classes. The mask is False for units with ignored voxels
    only.
    """
    require(
        logits.ndim > 2 and label.shape == (len(logits), 1, *logits.shape[2:]),
        "net",
        got=(tuple(logits.shape), tuple(label.shape)),
        expected="logits (batch, classes, *spatial), labels with 1 channel",
    )
    classes = logits.shape[1]
    reference, valid = read_classes(label.flatten(1), ignore_label)
    check_labels(label.flatten(1)[valid], classes, fix="correct the labels, or set ignore_label")
    # What stands under an ignored voxel may be NaN, which a product with the mask would keep.
    logs = logits.flatten(2).masked_fill(~valid[:, None], 0).log_softmax(1)
    one_hot = F.one_hot(reference, classes).movedim(-1, 1) * valid[:, None]
    probabilities = logs.exp() * valid[:, None]
    voxels, overlap = one_hot.sum(2), (probabilities * one_hot).sum(2)
    cross_entropy = -(logs.gather(1, reference[:, None]) * one_hot).sum(2) / voxels
    dice = (2 * overlap + 1e-5) / (probabilities.sum(2) + voxels + 1e-5)
    return cross_entropy, dice[:, 1:], voxels[:, 1:].sum(1) / valid.sum(1).clamp(min=1), valid.any(1)


def check_labels(label: Tensor, classes: int, *, fix: str = "correct the labels") -> None:
    """Raise if a label is not a class number.

    On an accelerator a wrong label would otherwise fail inside a kernel.

    Args:
        label: labels of any shape.
        classes: number of classes; valid labels are 0 to ``classes - 1``.
        fix: the error's fix.

    Raises:
        UsageError: a label is out of range or not an integer.
    """
    require(not label.is_floating_point(), "label", got=label.dtype, expected="an integer type")
    numbers = label.long()  # a comparison in uint8 would take 300 classes for 44
    wrong = numbers[(numbers < 0) | (numbers >= classes)]
    if len(wrong):
        raise UsageError("label", got=int(wrong[0]), expected=f"classes 0 to {classes - 1}", fix=fix)


def _standardise(columns: Tensor) -> Tensor:
    """Standardise every column to mean 0 and deviation 1.

    A column that is constant up to rounding becomes 0.
    """
    columns = columns.double()
    centred = columns - columns.mean(0)
    deviation = centred.square().mean(0).sqrt()
    constant = deviation <= 1e-6 * columns.abs().amax(0)
    return torch.where(constant, torch.zeros_like(centred), centred / deviation)
