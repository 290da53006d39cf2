"""What a network says of every training example, without augmentation and in the order of the data set."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.domain_generalization.fingerprint import Fingerprint, fingerprint_of_pairs, joined
from uumamba.runtime.network import evaluating, finest_logits

Batches = Iterable[Mapping[str, Any] | Sequence[Any]]
"""``{"image": ..., "label": ...}``, or sequences that begin with image and label, in the order of the data set."""

Answer = Callable[[Tensor], Any]
Space = Literal["probabilities", "logits"]


@dataclass(frozen=True)
class Answers:
    """A network's answers on n examples.

    Attributes:
        vectors: what is clustered, ``(n, features)``.
        losses: of each example, ``(n,)``.
        groups: within which clusters are sought, such as the class, ``(n,)`` int64 from 0 on; -1 is in none and so
            never slow.
        error: one number for all, which falls as the network learns.
        fingerprint: of images and labels; the same again for the same data in the same order.
        group_count: how many groups there should be.
        kind: what the vectors are.
    """

    vectors: Tensor
    losses: Tensor
    groups: Tensor
    error: float
    fingerprint: str
    group_count: int
    kind: str = ""


@torch.no_grad()
def classification_answers(net: Answer, batches: Batches, *, space: Space = "probabilities") -> Answers:
    """The class probabilities (or logits) of every example, its cross entropy and its class; the error is 1 - accuracy.

    A module answers in evaluation mode, on the device of its parameters, and is left as it was.

    Args:
        net: images to logits ``(batch, classes)``, two classes at least.
        batches: every example once, in the order of the data set, not augmented; labels ``(batch,)`` int64.
        space: ``"probabilities"``, or ``"logits"``.

    Raises:
        ValueError: there is no example, a shape does not fit, a label is no class, or ``space`` is unknown.

    Example:
        >>> net = nn.Identity()
        >>> answers = classification_answers(net, [(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0]))])
        >>> answers.error, answers.vectors.shape, answers.groups.tolist()
        (0.5, torch.Size([2, 2]), [0, 0])
    """
    if space not in ("probabilities", "logits"):
        raise ValueError(f"space must be 'probabilities' or 'logits', got {space!r}")
    seen = _Seen()
    logits = torch.cat([_class_logits(logits, label) for logits, label in seen.answered(net, batches)])
    label = torch.cat(seen.labels)
    _check_labels(label, classes=logits.shape[1])
    label = label.long()
    return Answers(
        vectors=logits.softmax(1) if space == "probabilities" else logits,
        losses=F.cross_entropy(logits, label, reduction="none"),
        groups=label,
        error=float((logits.argmax(1) != label).double().mean()),
        fingerprint=seen.fingerprint(),
        group_count=logits.shape[1],
        kind=space,
    )


@torch.no_grad()
def segmentation_answers(
    net: Answer, batches: Batches, *, groups: Sequence[int] | None = None, ignore_label: int | None = None
) -> Answers:
    r"""How well each case or slice is segmented, in a few numbers a unit; an extension of ours, without a paper.

    The vector of a unit is the mean cross entropy over the voxels of each class, the soft Dice of each foreground
    class and the share of foreground, each standardised over the units (a number that is the same for all becomes 0).
    A class that a unit lacks has no cross entropy there: it takes the mean of the units that have it, so that absence
    alone makes no cluster. Its soft Dice is 1 where none of it is predicted and falls with every false voxel. The loss
    of a unit is the mean of its cross entropies plus one minus the mean of its soft Dice, the error of all the mean of
    that second part. A unit all of whose voxels are ignored says nothing: it is in no group, so it is never slow, and
    no mean counts it; a warning names it.

    Args:
        net: images ``(batch, channels, *spatial)`` to logits ``(batch, classes, *spatial)``, or to a list of them,
            finest first; a sliding window will do.
        batches: every unit once, in order, not augmented; labels ``(batch, 1, *spatial)``.
        groups: within which slow units are sought, such as the phase or the centre of each, from 0 on; None for one.
        ignore_label: voxels with this label count nowhere.

    Raises:
        ValueError: there is no unit, or none with a voxel that counts; a shape does not fit, a label is no class, or
            ``groups`` has another length.

    Example:
        >>> label = torch.tensor([[0, 1], [1, 1]])[:, None]
        >>> logits = 9 * torch.nn.functional.one_hot(label[:, 0], 2).movedim(-1, 1).float()
        >>> answers = segmentation_answers(nn.Identity(), [(logits, label)])
        >>> answers.vectors.shape, round(answers.error, 3)  # 2 cross entropies, 1 Dice, 1 share
        (torch.Size([2, 4]), 0.0)
    """
    seen = _Seen()
    parts = [_unit_numbers(logits, label, ignore_label) for logits, label in seen.answered(net, batches)]
    cross_entropy, dice, share, counted = (torch.cat(each) for each in zip(*parts, strict=True))
    of_units = torch.zeros(len(share), dtype=torch.long) if groups is None else torch.as_tensor(groups)
    if of_units.shape != share.shape:
        raise ValueError(f"groups must have a number for each of the {len(share)} units, got {tuple(of_units.shape)}")
    _check_labels(of_units, name="groups")
    _tell_of_uncounted(counted, ignore_label)
    missed = 1 - dice.mean(1)
    columns = torch.cat([_filled(cross_entropy), dice, share[:, None]], dim=1)
    vectors = torch.zeros_like(columns, dtype=torch.double)
    vectors[counted] = _standardised(columns[counted])
    return Answers(
        vectors=vectors,
        losses=(cross_entropy.nanmean(1) + missed).where(counted, torch.zeros_like(missed)),
        groups=of_units.long().where(counted, torch.full_like(of_units, -1, dtype=torch.long)),
        error=float(missed[counted].mean()),
        fingerprint=seen.fingerprint(),
        group_count=int(of_units.max()) + 1,
        kind="segmentation",
    )


def fingerprint_of(batches: Batches) -> str:
    """The fingerprint that answers on these batches carry, without a network.

    Example:
        >>> batches = [(torch.eye(2), torch.tensor([0, 1]))]
        >>> fingerprint_of(batches) == classification_answers(nn.Identity(), batches).fingerprint
        True
    """
    return fingerprint_of_pairs(map(_pair, batches))


class _Seen:
    """A pass over the data that keeps labels and fingerprints what came."""

    def __init__(self) -> None:
        self.labels: list[Tensor] = []
        self._images, self._labels = Fingerprint(), Fingerprint()

    def answered(self, net: Answer, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits in float32 and labels, batch by batch, both on the CPU."""
        first = next(net.parameters(), None) if isinstance(net, nn.Module) else None
        with evaluating(net) if isinstance(net, nn.Module) else torch.no_grad():
            for image, label in map(_pair, batches):
                self._images.add(image)
                self._labels.add(label)
                self.labels.append(label.cpu())
                logits = net(image if first is None else image.to(first.device))
                yield finest_logits(logits).detach().float().cpu(), self.labels[-1]
        if not self.labels:
            raise ValueError("there is no example to answer: batches is empty, or was used up by an earlier pass")

    def fingerprint(self) -> str:
        return joined(self._images, self._labels)


def _pair(batch: Mapping[str, Any] | Sequence[Any]) -> tuple[Tensor, Tensor]:
    if isinstance(batch, Mapping) and not {"image", "label"} <= batch.keys():
        raise ValueError(
            f"a batch must name 'image' and 'label', got {[*batch]}; rename them, or give pairs of image and label"
        )
    image, label = (batch["image"], batch["label"]) if isinstance(batch, Mapping) else (batch[0], batch[1])
    if len(image) != len(label):
        raise ValueError(f"a batch has {len(image)} images and {len(label)} labels")
    return image, label


def _class_logits(logits: Tensor, label: Tensor) -> Tensor:
    if logits.ndim != 2 or logits.shape[1] < 2 or label.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be (batch, classes) with two classes or more and labels (batch,), got {tuple(logits.shape)} "
            f"and {tuple(label.shape)}; for a label of every voxel take segmentation_answers"
        )
    return logits


def _unit_numbers(logits: Tensor, label: Tensor, ignore_label: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cross entropies ``(batch, classes)``, NaN for absent ones; soft Dice and share of foreground; which count."""
    if logits.ndim < 3 or label.shape != (len(logits), 1, *logits.shape[2:]):
        raise ValueError(
            f"logits must be (batch, classes, *spatial) and labels (batch, 1, *spatial), got {tuple(logits.shape)} and "
            f"{tuple(label.shape)}"
        )
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


def _tell_of_uncounted(counted: Tensor, ignore_label: int | None) -> None:
    if not counted.any():
        raise ValueError(
            f"no unit has a voxel that counts: all labels are ignore_label ({ignore_label}); correct it or the labels"
        )
    if not counted.all():
        places = (~counted).nonzero()[:, 0].tolist()
        warnings.warn(
            f"{len(places)} of {len(counted)} units have no voxel but those of ignore_label ({ignore_label}) and are "
            f"left out of the search for slow ones: {places}",
            stacklevel=4,  # this, the function that was called, torch's no_grad around it, and its caller
        )


def _filled(columns: Tensor) -> Tensor:
    """NaN replaced by the mean of its column, or by 0 where a column has no number."""
    return columns.where(~columns.isnan(), columns.nanmean(0).nan_to_num(0.0))


def _standardised(columns: Tensor) -> Tensor:
    """Every column with mean 0 and deviation 1; a constant one becomes 0, rounding included."""
    columns = columns.double()
    centred = columns - columns.mean(0)
    deviation = centred.square().mean(0).sqrt()
    constant = deviation <= 1e-6 * columns.abs().amax(0)
    return torch.where(constant, torch.zeros_like(centred), centred / deviation)


def _check_labels(label: Tensor, *, classes: int | None = None, name: str = "labels") -> None:
    if label.is_floating_point():
        raise ValueError(f"{name} must be integers, got {label.dtype}")
    low, high = (int(label.min()), int(label.max())) if label.numel() else (0, 0)
    if low < 0 or (classes is not None and high >= classes):
        end = "on" if classes is None else f"to {classes - 1}"
        raise ValueError(f"{name} must be numbers from 0 {end}, got {low} to {high}")
