"""The head of a network: which module turns features into logits, and what went in and came out of it."""

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from uumamba.domain_generalization.head_gradients import (
    LinearHeadGradients,
    PerSampleGradients,
    StackedGradients,
    check_logits,
    is_linear,
    voxels_last,
)
from uumamba.domain_generalization.untraced import draws_of_its_own, uncompiled, untraced, version_of, watched
from uumamba.domain_generalization.voxels import stratified_voxels
from uumamba.runtime.errors import UsageError
from uumamba.runtime.network import bare_network, finest_logits

OF_JIT = (
    "a module of torch.jit can be neither watched nor taken apart as the head; let the last layer be as it was before "
    "torch.jit.script or torch.jit.trace, and return what it gives."
)


@dataclass
class Head:
    """A head in its network.

    Args:
        net: the network, without wrappers.
        module: the head; None finds it at the first pass, as the innermost module whose output is the logits.
        voxels_a_class: see :func:`stratified_voxels`.
        ignore_label: samples and voxels with this label are left out.
    """

    net: nn.Module
    module: nn.Module | None = None
    voxels_a_class: int = 512
    ignore_label: int | None = None
    _told: bool = field(default=False, init=False)

    def gradients(
        self, halves: Tensor, label: Tensor, generator: Generator, members: list[list[int]]
    ) -> list[tuple[PerSampleGradients, PerSampleGradients]]:
        """Of images and of their perturbed copies, for each group of samples that has any voxel to look at.

        Args:
            halves: the images, and after them a copy of each; one pass for both, so that batch norms see both.
            label: of the images: ``(batch,)``, ``(batch, *spatial)`` or ``(batch, 1, *spatial)``.
            generator: of the voxels.
            members: indices of each group's images.

        Raises:
            UsageError: there are fewer than two classes, or the label is not on the logits' grid or holds no classes.
        """
        head, features, scores, logits = self._watched(halves)
        by_voxel = voxels_last(head, scores)
        check_logits(by_voxel)
        label = _on_grid(label, by_voxel, logits)
        if is_linear(head):
            features, bias = voxels_last(head, features), getattr(head, "bias", None) is not None
            return self._of_linear(features, by_voxel, label, generator, members, bias=bias)
        found: list[tuple[PerSampleGradients, PerSampleGradients]] = []
        for group in members:
            rows = torch.tensor(group, device=label.device)
            if self.ignore_label is not None:
                rows = rows[(label[rows] != self.ignore_label).any(1)]
            if not len(rows):
                continue
            classes = label[rows].long()
            counted = classes if self.ignore_label is None else classes[classes != self.ignore_label]
            _check_classes(counted, by_voxel.shape[-1])
            source, target = (
                StackedGradients.of(head, features[at], classes, ignore_label=self.ignore_label)
                for at in (rows, rows + len(label))
            )
            found.append((source, target))
        return found

    def check(self, image: Tensor) -> None:
        """What a step would be refused for, by a pass that leaves no trace.

        Raises:
            UsageError: the head is not known, does not give the logits, or gives fewer than two.
        """
        with torch.no_grad(), draws_of_its_own(image, self.net):
            head, _, scores, _ = self._watched(image)
        check_logits(voxels_last(head, scores))

    def _watched(self, image: Tensor) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
        """The head, what went into it and came out, and the logits."""
        head = self._found(image)
        with watched(head) as calls, uncompiled(self.net, around=head):
            logits = finest_logits(untraced(self.net, image))
        if not calls:
            raise UsageError(
                f"The head, a {type(head).__name__}, was not called; name a module of the network, and none within "
                "another that torch.compile made a graph of."
            )
        inputs, scores, version = calls[-1]
        features: Any = next(iter(inputs), None)
        head = bare_network(head)
        for does, what in (("takes", features), ("gives", scores)):
            if not isinstance(what, Tensor):
                raise UsageError(
                    f"The head, a {type(head).__name__}, {does} a {type(what).__name__}, and UDIM needs one that makes "
                    "a tensor of logits from a tensor; name the layer that does."
                )
        _check_scores(head, scores, logits, changed=version_of(scores) != version)
        if not is_linear(head):
            self._check_other(head, inputs)
        return head, features, scores, logits

    def _of_linear(
        self,
        features: Tensor,
        scores: Tensor,
        label: Tensor,
        generator: Generator,
        members: list[list[int]],
        *,
        bias: bool,
    ) -> list[tuple[PerSampleGradients, PerSampleGradients]]:
        found: list[tuple[PerSampleGradients, PerSampleGradients]] = []
        for group in members:
            within, voxels = stratified_voxels(
                label[group], voxels_a_class=self.voxels_a_class, generator=generator, ignore_label=self.ignore_label
            )
            if not len(within):
                continue
            rows = torch.tensor(group, device=label.device)[within]
            _check_classes(label[rows, voxels], scores.shape[-1])
            source, target = (
                LinearHeadGradients.of(scores[at, voxels], features[at, voxels], label[rows, voxels], bias=bias)
                for at in (rows, rows + len(label))
            )
            found.append((source, target))
        return found

    def _found(self, image: Tensor) -> nn.Module:
        if self.module is None:
            self.module = find_head(self.net, image)
        if isinstance(self.module, torch.jit.ScriptModule):
            raise UsageError(f"The head, a {type(self.module).__name__}, cannot be one: {OF_JIT}")
        return self.module

    def _check_other(self, head: nn.Module, inputs: list[Any]) -> None:
        """Refuse what torch.func cannot take apart, and say once what it costs."""
        name = type(head).__name__
        if len(inputs) > 1:
            raise UsageError(
                f"The head, a {name}, is called with {len(inputs)} inputs, and the gradients of one that is not linear "
                "are computed from its features; let it take the features alone, or name its last layer as head=."
            )
        if not any(param.requires_grad for param in head.parameters()):
            raise UsageError(
                f"The logits come out of a {name}, which has no weights that learn, so there are no gradients to "
                "compare; let the network return the logits of its last layer, or name that layer as head= where what "
                "follows passes them on unchanged."
            )
        mixing = next((module for module in head.modules() if _mixes_samples(module)), None)
        if mixing is not None:
            raise UsageError(
                f"The head, a {name}, holds a {type(mixing).__name__} in training mode, whose output for a sample "
                "depends on the others, so a sample has no gradient of its own; put it into evaluation mode, or end "
                "the network with another layer."
            )
        if not self._told:
            warnings.warn(
                f"The head, a {name}, is not a linear layer or a convolution of kernel 1, so there is no closed form; "
                "torch.func computes one gradient an image, in memory for as many copies of the head's weights as "
                "there are images.",
                stacklevel=2,
            )
        self._told = True


def _check_scores(head: nn.Module, scores: Tensor, logits: Tensor, *, changed: bool) -> None:
    """Refuse logits that are not what the head gives, at every pass: a network may come to change it later."""
    orders = [logits.movedim(1, -1).reshape(len(logits), -1, logits.shape[1])]
    if isinstance(head, nn.Linear) and logits.ndim > 2:
        orders.append(logits.flatten(1, -2))
    given = None if changed or scores.ndim < 2 else voxels_last(head, scores).to(logits.dtype)
    if given is not None and any(given.shape == order.shape and _equal(given, order) for order in orders):
        return
    name, shapes = type(head).__name__, f"(shapes {tuple(scores.shape)} and {tuple(logits.shape)})"
    if not changed and scores.data_ptr() == logits.data_ptr() and scores.numel() == logits.numel():
        raise UsageError(
            f"The output of the head, a {name}, has the network's logits {shapes} in another order, so some would be "
            "taken for those of other samples, voxels or classes; let the head have samples and voxels in the order of "
            "the network's output, with the samples first and the classes next, or last for a linear layer."
        )
    raise UsageError(
        f"The output of the head, a {name}, is not the network's logits {shapes}: something follows it. Name the "
        "module that gives the logits, or let the network return what the head gives."
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether each entry is, where two that are not a number are; the same memory is not looked at."""
    if (one.data_ptr(), one.stride()) == (other.data_ptr(), other.stride()):
        return True
    return bool(torch.where(one.isnan(), other.isnan(), one == other).all())


def _mixes_samples(module: nn.Module) -> bool:
    """A norm with statistics of the batch, or running ones that a pass would move."""
    if isinstance(module, _BatchNorm):
        return module.training or module.running_mean is None
    return isinstance(module, _NormBase) and module.training and module.running_mean is not None


def _on_grid(label: Tensor, scores: Tensor, logits: Tensor) -> Tensor:
    """The label as ``(samples, voxels)``, of half the samples that there are scores of."""
    shape = (len(label), math.prod(label.shape[1:]))
    cure = "UDIM compares gradients of the cross entropy over classes; pass numbers of classes, such as label.argmax(1)"
    if label.shape[1:] == logits.shape[1:]:
        raise UsageError(
            f"The label has one number a class, {tuple(label.shape)}, as soft or one-hot labels do. {cure}."
        )
    if shape != (len(scores) // 2, scores.shape[1]):
        raise UsageError(
            f"The head gives logits for {scores.shape[1]} voxels of {len(scores) // 2} samples and the label, as "
            f"(samples, voxels), has shape {shape}; give a label of every voxel on the logits' grid."
        )
    if label.is_floating_point() and not torch.equal(label, label.round()):
        raise UsageError(f"The label holds fractions or NaN, which are no classes. {cure} of soft ones.")
    return label.reshape(shape)


def _check_classes(label: Tensor, classes: int) -> None:
    """Refuse in words what is an error of a kernel on an accelerator."""
    if not label.numel():
        return
    least, most = int(label.min()), int(label.max())
    if least < 0 or most >= classes:
        wrong = least if least < 0 else most
        raise UsageError(
            f"The label holds {wrong} and the logits are of the classes 0 to {classes - 1}; correct the label, or pass "
            f"ignore_label={wrong} to leave out what has it."
        )


@torch.no_grad()
def find_head(net: nn.Module, image: Tensor) -> nn.Module:
    """The innermost module whose output is the network's logits, by one pass.

    Raises:
        UsageError: no module's output is, or that of one of ``torch.jit``.

    Example:
        >>> find_head(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.zeros(2, 2, 2))
        Linear(in_features=4, out_features=3, bias=True)
    """
    seen: list[tuple[nn.Module, int, int]] = []

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            seen.append((module, output.data_ptr(), output.numel()))

    # Hooks on what a compiled module was made of are not always called, and scripted ones take none.
    scripted = {module for module in net.modules() if isinstance(module, torch.jit.ScriptModule)}
    hidden = {
        part
        for module in net.modules()
        if bare_network(module) is not module
        for part in bare_network(module).modules()
    }
    hidden |= scripted
    parts = [module for module in net.modules() if module is not net and module not in hidden]
    handles = [module.register_forward_hook(keep) for module in parts or {net} - scripted]
    try:
        # A resumed run looks again, and must not drop out other units for it.
        with draws_of_its_own(image, net), uncompiled(net):
            logits = finest_logits(untraced(net, image))
    finally:
        for handle in handles:
            handle.remove()
    # Memory may hold the logits in the place of something before them, so the last call counts, and of modules that
    # pass on what a part of them gave, that part.
    head: nn.Module | None = None
    for module, where, size in reversed(seen):
        is_logits = (where, size) == (logits.data_ptr(), logits.numel())
        if is_logits and (head is None or module in head.modules()):
            head = module
        elif head is not None:
            break
    if head is not None:
        return head
    if scripted:
        raise UsageError(f"The network's logits are the output of no layer outside torch.jit, and {OF_JIT}")
    raise UsageError(
        "The network's logits are not the output of one of its layers, so the head is not known; something follows "
        "its last layer, or it is no module. Pass head=, the module whose output the network returns."
    )
