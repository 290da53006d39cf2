"""Outputs of a network on every training example, without augmentation and in the order of the data set."""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.network import evaluating, finest_logits

T = TypeVar("T")
Batches = Iterable[Mapping[str, Any] | Sequence[Any]]
"""``{"image": ..., "label": ...}``, or sequences that begin with image and label, in the order of the data set."""

Net = Callable[[Tensor], Any]
Space = Literal["probabilities", "logits"]


@dataclass(frozen=True)
class ProbeOutputs:
    """Outputs of a network on n examples.

    Attributes:
        vectors: the points to cluster, ``(n, features)``.
        losses: one an example, ``(n,)``.
        groups: clusters are sought within a group, such as the class, ``(n,)`` int64 from 0 on; an example of group -1
            is never slow.
        error: one number for all examples, which falls as the network learns.
        fingerprint: hash of images and labels; the same for the same data in the same order.
        group_count: number of groups.
        kind: of the vectors.
    """

    vectors: Tensor
    losses: Tensor
    groups: Tensor
    error: float
    fingerprint: str
    group_count: int
    kind: str = ""


def probe_classification(net: Net, batches: Batches, *, space: Space = "probabilities") -> ProbeOutputs:
    """Collect class probabilities (or logits), cross entropy and class of every example; the error is 1 - accuracy.

    A module is run in evaluation mode, on the device of its parameters; its modes are restored.

    Args:
        net: images to logits ``(batch, classes)``, two classes at least.
        batches: every example once, in the order of the data set, not augmented; labels ``(batch,)`` int64.
        space: ``"probabilities"``, or ``"logits"``.

    Raises:
        UsageError: there is no example, a shape does not fit, a label is no class, or ``space`` is unknown.

    Example:
        >>> net = nn.Identity()
        >>> outputs = probe_classification(net, [(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0]))])
        >>> outputs.error, outputs.vectors.shape, outputs.groups.tolist()
        (0.5, torch.Size([2, 2]), [0, 0])
    """
    require(space in ("probabilities", "logits"), "space", got=space, expected="probabilities or logits")
    pairs, fingerprint = _run(net, batches, _check_classes)
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


def probe_segmentation(
    net: Net, batches: Batches, *, groups: Sequence[int] | None = None, ignore_label: int | None = None
) -> ProbeOutputs:
    r"""Describe how well each case or slice is segmented by a few numbers; an extension of ours, without a paper.

    The vector of a unit is the mean cross entropy over the voxels of each class, the soft Dice of each foreground
    class and the share of foreground, each standardised over the units (a constant number becomes 0). A class that a
    unit lacks has no cross entropy there: it takes the mean of the units that have it, so that absence alone makes no
    cluster. Its soft Dice is 1 where none of it is predicted and falls with every false voxel. The loss of a unit is
    the mean of its cross entropies plus one minus the mean of its soft Dice; the error is the mean of that second part
    over the units. A unit all of whose voxels are ignored is in no group and in no mean; a warning names it.

    Args:
        net: images ``(batch, channels, *spatial)`` to logits ``(batch, classes, *spatial)``, or to a list of them,
            finest first; a sliding window will do.
        batches: every unit once, in order, not augmented; labels ``(batch, 1, *spatial)``.
        groups: slow units are sought within a group, such as the phase or the centre, from 0 on; None for one group.
        ignore_label: voxels with this label count nowhere.

    Raises:
        UsageError: there is no unit, or none with a voxel that counts; a shape does not fit, a label is no class, or
            ``groups`` has another length.

    Example:
        >>> label = torch.tensor([[0, 1], [1, 1]])[:, None]
        >>> logits = 9 * torch.nn.functional.one_hot(label[:, 0], 2).movedim(-1, 1).float()
        >>> outputs = probe_segmentation(nn.Identity(), [(logits, label)])
        >>> outputs.vectors.shape, round(outputs.error, 3)  # 2 cross entropies, 1 Dice, 1 share
        (torch.Size([2, 4]), 0.0)
    """
    parts, fingerprint = _run(net, batches, lambda logits, label: _describe_units(logits, label, ignore_label))
    cross_entropy, dice, share, counted = (torch.cat(each) for each in zip(*parts, strict=True))
    of_units = torch.zeros(len(share), dtype=torch.long) if groups is None else torch.as_tensor(groups)
    fits = of_units.shape == share.shape and int(of_units.min()) >= 0
    require(fits, "groups", got=groups, expected=f"a number from 0 on for each of {len(share)} units")
    fix = f"correct the labels, or ignore_label {ignore_label}"
    require(counted.any(), "label", got="ignored voxels alone", expected="a voxel that counts", fix=fix)
    if not counted.all():
        places = (~counted).nonzero()[:, 0].tolist()
        warnings.warn(
            f"{len(places)} of {len(counted)} units have only voxels of ignore_label ({ignore_label}) and are left out "
            f"of the search for slow ones: {places}",
            stacklevel=2,
        )
    missed = 1 - dice.mean(1)
    columns = torch.cat([_fill_with_mean(cross_entropy), dice, share[:, None]], dim=1)
    vectors = torch.zeros_like(columns, dtype=torch.double)
    vectors[counted] = _standardise(columns[counted])
    return ProbeOutputs(
        vectors=vectors,
        losses=(cross_entropy.nanmean(1) + missed).where(counted, torch.zeros_like(missed)),
        groups=of_units.long().where(counted, torch.full_like(of_units, -1, dtype=torch.long)),
        error=float(missed[counted].mean()),
        fingerprint=fingerprint,
        group_count=int(of_units.max()) + 1,
        kind="segmentation",
    )


def fingerprint_batches(batches: Batches) -> str:
    """Return the fingerprint that outputs on these batches have, without a network.

    Values, types, shapes and order count; the cut into batches does not.

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
    require(len(outputs.losses), "outputs", got="no example", expected="at least one")
    finite = outputs.losses.isfinite() & outputs.vectors.isfinite().all(1)
    fix = "remove NaN from the images, or lower the learning rate"
    got = f"values that are not finite, of example {int(finite.int().argmin())} first"
    require(finite.all(), "outputs", got=got, expected="finite numbers", fix=fix)


class _Fingerprint:
    """Hash of images and labels, one sample at a time."""

    def __init__(self) -> None:
        self._hashes = (hashlib.sha256(), hashlib.sha256())

    def add(self, image: Tensor, label: Tensor) -> None:
        for found, samples in zip(self._hashes, (image, label), strict=True):
            head = f"{samples.dtype} {tuple(samples.shape[1:])};".encode()
            for sample in samples.detach().cpu():
                found.update(head + tensor_bytes(sample))

    def text(self) -> str:
        return hashlib.sha256(" ".join(each.hexdigest() for each in self._hashes).encode()).hexdigest()


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor's values, of any type."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _run(net: Net, batches: Batches, take: Callable[[Tensor, Tensor], T]) -> tuple[list[T], str]:
    """Return ``take(logits, label)`` of every batch, in float32 on the CPU, and the fingerprint."""
    found, fingerprint = [], _Fingerprint()
    device = next((param.device for param in net.parameters()), None) if isinstance(net, nn.Module) else None
    with evaluating(net) if isinstance(net, nn.Module) else torch.no_grad():
        for image, label in map(_split_batch, batches):
            fingerprint.add(image, label)
            logits = finest_logits(net(image if device is None else image.to(device)))
            found.append(take(logits.detach().float().cpu(), label.cpu()))
    fix = "pass a list or a DataLoader, not an iterator that was used before"
    require(found, "batches", got="no batch", expected="at least one", fix=fix)
    return found, fingerprint.text()


def _split_batch(batch: Mapping[str, Any] | Sequence[Any]) -> tuple[Tensor, Tensor]:
    names = ("image", "label") if isinstance(batch, Mapping) else (0, 1)
    try:
        image, label = (batch[name] for name in names)  # type: ignore[index]
    except LookupError:
        got = [*batch] if isinstance(batch, Mapping) else f"{len(batch)} tensors"
        raise UsageError("batches", got=got, expected="image and label, by name or in this order") from None
    require(
        len(image) == len(label), "label", got=f"{len(label)} labels", expected=f"one for each of {len(image)} images"
    )
    return image, label


def _check_classes(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    got, expected = (tuple(logits.shape), tuple(label.shape)), "logits (batch, classes of at least 2), labels (batch,)"
    fits = logits.ndim == 2 and logits.shape[1] > 1 and label.shape == logits.shape[:1]
    require(fits, "net", got=got, expected=expected, fix="use probe_segmentation for a label of every voxel")
    _check_labels(label, classes=logits.shape[1])
    return logits, label.long()


def _describe_units(logits: Tensor, label: Tensor, ignore_label: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return cross entropies ``(batch, classes)``, NaN for absent ones; soft Dice; foreground share; which count."""
    got, expected = (
        (tuple(logits.shape), tuple(label.shape)),
        "logits (batch, classes, *spatial), labels with 1 channel",
    )
    require(logits.ndim > 2 and label.shape == (len(logits), 1, *logits.shape[2:]), "net", got=got, expected=expected)
    classes = logits.shape[1]
    flat, own = logits.flatten(2), label.flatten(1)
    valid = torch.ones_like(own, dtype=torch.bool) if ignore_label is None else own != ignore_label
    _check_labels(own[valid], classes=classes)
    own = own.where(valid, torch.zeros_like(own)).long()
    logs = flat.log_softmax(1)
    truth = F.one_hot(own, classes).movedim(-1, 1) * valid[:, None]
    probabilities = logs.exp() * valid[:, None]
    voxels, overlap = truth.sum(2), (probabilities * truth).sum(2)
    cross_entropy = -(logs.gather(1, own[:, None]) * truth).sum(2) / voxels
    dice = (2 * overlap + 1e-5) / (probabilities.sum(2) + voxels + 1e-5)
    return cross_entropy, dice[:, 1:], voxels[:, 1:].sum(1) / valid.sum(1).clamp(min=1), valid.any(1)


def _check_labels(label: Tensor, *, classes: int) -> None:
    require(not label.is_floating_point(), "label", got=label.dtype, expected="integers")
    outside = label[(label < 0) | (label >= classes)]
    require(not len(outside), "label", got=outside[:1].tolist(), expected=f"classes 0 to {classes - 1}")


def _fill_with_mean(columns: Tensor) -> Tensor:
    """Replace NaN by the mean of its column, or by 0 in a column without numbers."""
    return columns.where(~columns.isnan(), columns.nanmean(0).nan_to_num(0.0))


def _standardise(columns: Tensor) -> Tensor:
    """Give every column mean 0 and deviation 1; a constant column, but for rounding, becomes 0."""
    columns = columns.double()
    centred = columns - columns.mean(0)
    deviation = centred.square().mean(0).sqrt()
    constant = deviation <= 1e-6 * columns.abs().amax(0)
    return torch.where(constant, torch.zeros_like(centred), centred / deviation)
