"""Linear head of a network, found by its output, and the per-sample gradients in it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from uumamba.domain_generalization.inconsistency import LinearHeadGradients
from uumamba.domain_generalization.side_pass import run_with_copies
from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.network import finest_logits

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
FORWARDS = (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)
LINEAR = "a plain nn.Linear or convolution of kernel 1 whose output the network returns as its logits"


@dataclass
class Head:
    """Linear head of a network.

    The head is found again in every pass, so it may be exchanged. A view, a cast or a copy of its output with the same
    samples, voxels and classes is its output too.

    Args:
        net: the bare network.
        module: the head; None takes the linear layer whose output is the finest logits.
        voxels_a_class: see :func:`draw_voxels`.
        ignore_label: samples and voxels with this label are left out.

    Raises:
        UsageError: ``module`` is not linear; or, from a pass, a part of the network is compiled, or no linear layer
            gives its logits.
    """

    net: nn.Module
    module: nn.Module | None = None
    voxels_a_class: int = 512
    ignore_label: int | None = None

    def __post_init__(self) -> None:
        given = self.module
        require(given is None or is_linear(given), "head", got=type(given).__name__, expected=LINEAR)

    def gradients(
        self, halves: Tensor, label: Tensor, generator: Generator, groups: Sequence[list[int]]
    ) -> list[tuple[LinearHeadGradients, LinearHeadGradients]]:
        """Return the gradients of images and of their perturbed copies, for each group with a voxel that counts.

        Args:
            halves: the images, and after them a copy of each; one pass for both, so that batch norms see both.
            label: of the images: ``(batch,)``, ``(batch, *spatial)`` or ``(batch, 1, *spatial)``.
            generator: of the voxels.
            groups: indices of each group's images.

        Raises:
            UsageError: the label is not on the logits' grid or holds no classes.
        """
        features, logits, bias = self.forward(halves)
        label = _flatten_label(label, logits)
        found: list[tuple[LinearHeadGradients, LinearHeadGradients]] = []
        for group in groups:
            within, voxels = draw_voxels(
                label[group], voxels_a_class=self.voxels_a_class, generator=generator, ignore_label=self.ignore_label
            )
            if not len(within):
                continue
            rows = torch.tensor(group, device=label.device)[within]
            classes = label[rows, voxels]
            _check_classes(classes, logits.shape[-1])
            source, target = (
                LinearHeadGradients.of(logits[at, voxels], features[at, voxels], classes, bias=bias)
                for at in (rows, rows + len(label))
            )
            found.append((source, target))
        return found

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Return the head's input and output as ``(batch, voxels, channels)``, and if it has a bias.

        The pass changes no buffer.
        """
        whole = not any(_is_compiled(module) for module in self.net.modules())
        fix = "compile the network as a whole, by torch.compile(net)"
        require(whole, "net", got="a part that is compiled or scripted", expected="modules in eager mode", fix=fix)
        calls: list[tuple[nn.Module, Tensor, Tensor, int]] = []

        def keep(head: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            calls.append((head, next(iter((*args, *kwargs.values()))), output, output._version))

        heads = filter(is_linear, self.net.modules()) if self.module is None else [self.module]
        handles = [head.register_forward_hook(keep, with_kwargs=True) for head in heads]
        try:
            logits = finest_logits(run_with_copies(self.net, partial(self.net, image)))
        finally:
            for handle in handles:
                handle.remove()
        for head, features, output, version in calls:
            if output._version == version and _is_logits(head, output, logits):
                scores = _voxels_last(head, output)
                require(scores.shape[-1] > 1, "net", got="logits of one class", expected="two or more classes")
                return _voxels_last(head, features), scores, head.bias is not None
        got = "none of the network's layers" if self.module is None else type(self.module).__name__
        raise UsageError("head", got=got, expected=LINEAR, fix="return the output of such a layer, or name it as head=")


def is_linear(head: nn.Module) -> bool:
    """Return if one affine map gives each sample or voxel of the output from that of the input.

    A layer whose forward pass is not torch's own does not count. A parametrized weight does.

    Example:
        >>> is_linear(nn.Conv3d(8, 4, 1)), is_linear(nn.Conv3d(8, 4, 3)), is_linear(nn.Sequential(nn.Linear(2, 2)))
        (True, False, False)
    """
    if not isinstance(head, nn.Linear | Convolution) or getattr(head.forward, "__func__", None) not in FORWARDS:
        return False
    if isinstance(head, nn.Linear):
        return True
    is_unpadded = isinstance(head.padding, str) or not any(head.padding)
    return is_unpadded and all(each == 1 for each in (*head.kernel_size, *head.stride, head.groups))


def draw_voxels(
    label: Tensor, *, voxels_a_class: int, generator: Generator, ignore_label: int | None = None
) -> tuple[Tensor, Tensor]:
    """Draw, from every image, at most so many voxels of each of its classes, without repetition.

    Neither the size of a volume nor its background then decides. A class with fewer voxels gives all. Images of one
    voxel are samples of a classifier, and all are taken. Nothing is left where everything is ignored.

    Args:
        label: classes, ``(batch, voxels)``.
        voxels_a_class: the most of one class from one image.
        generator: on the CPU; the draw is the same on every device.
        ignore_label: voxels with this label are never taken.

    Returns:
        Indices of images and of voxels in them, ``(samples,)`` each.

    Example:
        >>> label = torch.tensor([[0, 0, 0, 0, 1, 2]])
        >>> images, voxels = draw_voxels(label, voxels_a_class=2, generator=Generator().manual_seed(0))
        >>> label[images, voxels]
        tensor([0, 0, 1, 2])
    """
    if label.shape[1] == 1:
        keep = torch.ones_like(label[:, 0], dtype=torch.bool) if ignore_label is None else label[:, 0] != ignore_label
        images = keep.nonzero()[:, 0]
        return images, torch.zeros_like(images)
    nothing = label.new_zeros(0, dtype=torch.int64)
    drawn = [(nothing, nothing), *_voxels_of_each_class(label, voxels_a_class, generator, ignore_label)]
    images, voxels = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    return images, voxels


def _voxels_of_each_class(
    label: Tensor, voxels_a_class: int, generator: Generator, ignore_label: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    for row, classes in enumerate(label):
        for value in classes.unique().tolist():
            if value == ignore_label:
                continue
            where = (classes == value).nonzero()[:, 0]
            if len(where) > voxels_a_class:
                where = where[torch.randperm(len(where), generator=generator)[:voxels_a_class].to(where.device)]
            yield torch.full_like(where, row), where


def _is_logits(head: nn.Module, output: Tensor, logits: Tensor) -> bool:
    """Return if the head's output is the network's logits, entry by entry; NaN equals NaN."""
    given = _voxels_last(head, output).to(logits.dtype)
    orders = [logits.movedim(1, -1).reshape(len(logits), -1, logits.shape[1])]
    if isinstance(head, nn.Linear) and logits.ndim > 2:
        orders.append(logits.flatten(1, -2))
    return any(given.shape == order.shape and _is_equal(given, order) for order in orders)


def _is_equal(one: Tensor, other: Tensor) -> bool:
    is_same_memory = (one.data_ptr(), one.stride()) == (other.data_ptr(), other.stride())
    return is_same_memory or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _voxels_last(head: nn.Module, tensor: Tensor) -> Tensor:
    """Reshape to ``(batch, voxels, channels)``; channels are last for ``nn.Linear``, on axis 1 for a convolution."""
    last = tensor if isinstance(head, nn.Linear) else tensor.movedim(1, -1)
    return last.reshape(last.shape[0], -1, last.shape[-1])


def _flatten_label(label: Tensor, logits: Tensor) -> Tensor:
    """Reshape the label to ``(samples, voxels)``, of half the samples that there are logits of."""
    shape, expected = (len(label), math.prod(label.shape[1:])), (len(logits) // 2, logits.shape[1])
    grid = f"{expected[0]} samples of {expected[1]} voxels, as the logits"
    require(shape == expected, "label", got=tuple(label.shape), expected=grid, fix="pass class numbers, not one-hot")
    return label.reshape(shape)


def _check_classes(label: Tensor, classes: int) -> None:
    """Raise a sentence in place of an accelerator's kernel error."""
    least, most = int(label.min()), int(label.max())
    wrong = least if least < 0 else most
    fix = f"correct the label, or set ignore_label={wrong}"
    require(least >= 0 and most < classes, "label", got=wrong, expected=f"classes 0 to {classes - 1}", fix=fix)


def _is_compiled(module: nn.Module) -> bool:
    return (
        module._compiled_call_impl is not None
        or hasattr(module, "_orig_mod")
        or isinstance(module, torch.jit.ScriptModule)
    )
