"""Detection of a network's linear head, and the head's per-sample gradients."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from uumamba.domain_generalization.inconsistency import LinearHeadGradients
from uumamba.domain_generalization.probe import check_labels
from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.functional_pass import copied_buffers
from uumamba.runtime.network import finest_logits, read_classes

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
FORWARDS = (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)
LINEAR = "an unmodified nn.Linear or convolution of kernel 1 as the last layer"


@dataclass
class Head:
    """Linear head of a network.

    The head is detected in every pass, so a network may exchange its head between passes. The network's logits may be
    a view, a cast or a copy of the head's output with the same samples, voxels and classes.

    Args:
        net: the bare network.
        module: the head; None for the linear layer whose output equals the finest logits.
        voxels_a_class: see :func:`draw_voxels`.
        ignore_label: label of samples and voxels to leave out.

    Raises:
        UsageError: ``module`` is not linear; or, from a pass, a part of the network is compiled, or no linear layer
            returns the logits.
    """

    net: nn.Module
    module: nn.Module | None = None
    voxels_a_class: int = 512
    ignore_label: int | None = None

    def __post_init__(self) -> None:
        if self.module is not None:
            require(is_linear(self.module), "head", got=type(self.module).__name__, expected=LINEAR)

    def gradients(
        self, halves: Tensor, label: Tensor, generator: Generator, groups: Sequence[list[int]]
    ) -> list[tuple[LinearHeadGradients, LinearHeadGradients]]:
        """Return gradients of images and perturbed copies, one pair per group.

        Groups with ignored voxels only are left out.

        Args:
            halves: the images, then a perturbed copy of each; both go through one pass, so batch norms see both.
            label: labels of the images: ``(batch,)``, ``(batch, *spatial)`` or ``(batch, 1, *spatial)``.
            generator: draws the voxels.
            groups: image indices of each group.

        Raises:
            UsageError: the label is not on the grid of the logits, or a value is not a class.
        """
        features, logits, bias = self.forward(halves)
        grid = len(logits) // 2, logits.shape[1]  # half of the logits are of perturbed copies
        require(
            (len(label), math.prod(label.shape[1:])) == grid,
            "label",
            got=tuple(label.shape),
            expected=f"the grid of the logits, {grid[0]} samples of {grid[1]} voxels",
            fix="pass class numbers instead of one-hot labels",
        )
        label = label.reshape(grid)
        pairs: list[tuple[LinearHeadGradients, LinearHeadGradients]] = []
        for group in groups:
            within, voxels = draw_voxels(
                label[group], voxels_a_class=self.voxels_a_class, generator=generator, ignore_label=self.ignore_label
            )
            if not len(within):
                continue
            rows = torch.tensor(group, device=label.device)[within]
            classes = label[rows, voxels]
            check_labels(classes, logits.shape[-1], fix="correct the labels, or set ignore_label")
            source, target = (
                LinearHeadGradients.from_logits(logits[at, voxels], features[at, voxels], classes, bias=bias)
                for at in (rows, rows + len(label))
            )
            pairs.append((source, target))
        return pairs

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Run the network and return the head's input, output and bias flag.

        Input and output are ``(batch, voxels, channels)``. The pass changes no buffer.
        """
        require(
            not any(map(_is_compiled, self.net.modules())),
            "net",
            got="a compiled or scripted part",
            expected="modules in eager mode",
            fix="compile the complete network by torch.compile(net)",
        )
        calls: list[tuple[nn.Module, Tensor, Tensor, int]] = []

        def record_call(head: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            calls.append((head, next(iter((*args, *kwargs.values()))), output, output._version))

        heads = filter(is_linear, self.net.modules()) if self.module is None else [self.module]
        handles = [head.register_forward_hook(record_call, with_kwargs=True) for head in heads]
        try:
            with copied_buffers(self.net):
                logits = finest_logits(self.net(image))
        finally:
            for handle in handles:
                handle.remove()
        for head, features, output, version in calls:
            if output._version == version and _is_logits(head, output, logits):
                logits = _flatten_voxels(head, output)
                require(logits.shape[-1] > 1, "net", got="logits of one class", expected="two or more classes")
                return _flatten_voxels(head, features), logits, head.bias is not None
        raise UsageError(
            "head",
            got="none of the network's layers" if self.module is None else type(self.module).__name__,
            expected=LINEAR,
            fix="return the layer's output without changes, or pass the layer as head=",
        )


def is_linear(head: nn.Module) -> bool:
    """Return whether a layer is one affine map per sample or voxel.

    A layer with a forward method of its own is not linear here; a parametrized weight is allowed.

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
    """Draw up to ``voxels_a_class`` voxels of each class from every image.

    The draw is without repetition and balances large and small classes. A smaller class gives all its voxels. Images of
    one voxel are samples of a classifier and are all taken. If all voxels are ignored, the result is empty.

    Args:
        label: classes, ``(batch, voxels)``.
        voxels_a_class: largest number of voxels per class and image.
        generator: generator on the CPU, for the same draw on every device.
        ignore_label: label of voxels to leave out.

    Returns:
        Indices of images and of voxels in them, ``(samples,)`` each.

    Example:
        >>> label = torch.tensor([[0, 0, 0, 0, 1, 2]])
        >>> images, voxels = draw_voxels(label, voxels_a_class=2, generator=Generator().manual_seed(0))
        >>> label[images, voxels]
        tensor([0, 0, 1, 2])
    """
    if label.shape[1] == 1:
        images = read_classes(label[:, 0], ignore_label)[1].nonzero()[:, 0]
        return images, torch.zeros_like(images)
    drawn = [torch.zeros(2, 0, dtype=torch.int64, device=label.device)]
    for image, classes in enumerate(label):
        for value in (each for each in classes.unique().tolist() if each != ignore_label):
            voxels = (classes == value).nonzero()[:, 0]
            if len(voxels) > voxels_a_class:
                voxels = voxels[torch.randperm(len(voxels), generator=generator)[:voxels_a_class].to(voxels.device)]
            drawn.append(torch.stack([torch.full_like(voxels, image), voxels]))
    images, voxels = torch.cat(drawn, dim=1)
    return images, voxels


def _is_logits(head: nn.Module, output: Tensor, logits: Tensor) -> bool:
    """Return whether the head's output equals the network's logits; NaN equals NaN."""
    given = _flatten_voxels(head, output).to(logits.dtype)
    layouts = [logits.movedim(1, -1).reshape(len(logits), -1, logits.shape[1])]
    if isinstance(head, nn.Linear) and logits.ndim > 2:
        layouts.append(logits.flatten(1, -2))
    return any(
        given.shape == layout.shape and torch.allclose(given, layout, rtol=0, atol=0, equal_nan=True)
        for layout in layouts
    )


def _flatten_voxels(head: nn.Module, tensor: Tensor) -> Tensor:
    """Reshape to ``(batch, voxels, channels)``.

    The channel axis of ``tensor`` is the last axis for ``nn.Linear`` and axis 1 for a convolution.
    """
    last = tensor if isinstance(head, nn.Linear) else tensor.movedim(1, -1)
    return last.reshape(last.shape[0], -1, last.shape[-1])


def _is_compiled(module: nn.Module) -> bool:
    return (
        module._compiled_call_impl is not None
        or hasattr(module, "_orig_mod")
        or isinstance(module, torch.jit.ScriptModule)
    )
