"""Unknown domain inconsistency minimisation."""

import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from uumamba.domain_generalization.ascent import Ascent, SecondOrder
from uumamba.domain_generalization.head import Head
from uumamba.domain_generalization.inconsistency import gradient_norm, variance_gap
from uumamba.domain_generalization.perturb import Perturbation, to_length
from uumamba.runtime.errors import UsageError
from uumamba.runtime.network import bare_network
from uumamba.runtime.seeds import generator_for

Direction = Literal["ascent", "random"]
Domains = Sequence[Any] | Tensor


class UDIM:
    r"""What a step of any optimizer of the family adds, so that the head is pulled alike on domains not seen yet.

    .. math::
        \tilde x = x + \rho_x \frac{\nabla_x J}{\lVert \nabla_x J \rVert_2}, \qquad
        J = L(\theta; x, y) + \rho\, \lVert \nabla_\theta L(\theta; x, y) \rVert_2, \qquad
        A = \lambda_1\, \mathrm{gap}(x, \tilde x) + \lambda_2\, \mathrm{norm}(\tilde x)

    The unknown domain is made anew at every step: each sample after one step of ascent, of exactly the perturbation's
    length, with its label. ``gap`` is :func:`variance_gap` and ``norm`` :func:`gradient_norm` of the cross entropy's
    gradients in the head's weights, sample by sample, in closed form where the head is linear or a convolution of
    kernel 1. Their gradient flows through the whole network, and the optimizer adds it, at the weights that it has not
    climbed from, to its own descent: with SAM, ASAM, SAGM or any other member,

    ``loss = optimizer.step(closure, at_weights=udim.at_weights(image, label))``

    During the warm-up, and where both weights are 0, ``at_weights`` is None, nothing is drawn or computed, and the step
    is the optimizer's own bit for bit. Otherwise a step takes one pass for J, a second backward pass, and a pass of
    both halves together.

    Segmentation. A sample is a voxel, and each image gives at most ``voxels_a_class`` of every class in it, so that
    neither memory nor background decide; labels are ``(batch, 1, *spatial)``, or without the 1. Radii are best given
    by ``InputPerturbation(rms=...)``, or as a style, which leaves anatomy where it is. This is our extension.

    Domains. Given the samples' domains, both terms are computed for each on its own, and averaged over those in the
    batch; so lambda means the same for any number of them.

    Edge cases. A sample without a slope stays as it is. A gradient that is not finite makes the penalty so, and the
    optimizer skips the step. Running statistics and other buffers see none of these passes. Batch norms in training
    mode see both halves as one batch, and so does a layer that mixes samples: :class:`MixStyle` gives some images the
    style of perturbed ones, and the other way round. The ascent puts random generators back, torch's own and those that
    are attributes of modules; the pass of both halves draws as a step's own does. A head that is not linear: see
    ``head``. Under autocast, open it inside the closure and around the call of ``at_weights``'s result alike; moments
    are computed in float32. With several ranks each takes its own samples.

    Compilation. A network that is compiled as a whole, and modules that are compiled in place, are run as they were
    written where a pass needs a second derivative or looks at the head. Modules that ``torch.compile`` returned, within
    a network, have no second derivative; see ``second_order``.

    Activation checkpointing. It must be ``use_reentrant=False``. The backward pass of the penalty is the optimizer's,
    and computes such layers again with the buffers themselves; the optimizer puts running statistics back afterwards if
    it was given ``net=``, so give it that.

    Args:
        net: the network that the optimizer trains; wrappers for data-parallel training and compilation are seen
            through. It returns logits, or a list, finest first.
        loss: called as ``loss(logits, label)``, with the list where the network returns one; the task's own.
        perturbation: :class:`InputPerturbation` or :class:`StylePerturbation`, with its length.
        lambda1: weight of the variance gap.
        lambda2: weight of the gradient norm.
        rho: weight of the slope's length in J; the climber's own rho as a rule.
        warmup_steps: steps of the optimizer alone at the start.
        direction: ``"random"`` is the control: the same length, along a direction that is drawn.
        second_order: how the gradient of the slope's length is had; see :class:`Ascent`. A kernel or a compiled module
            without a second derivative turns True to ``"finite_difference"``, with a warning.
        head: the module that gives the logits, from one tensor; found at the first pass unless given. Classes are on
            axis 1 of its output, or last for an ``nn.Linear`` and what descends from it. One that is not linear, or has
            a forward pass of its own, has its gradients by torch.func, one an image, with a warning.
        voxels_a_class: at most so many voxels of a class from an image.
        ignore_label: samples or voxels with this label are left out.
        seed: of the voxels and of the random direction, with the step's number.

    Raises:
        ValueError: an option is out of range.
        UsageError: from the step: the input is not floating point or empty, the logits are not the head's output, or
            label and logits do not fit.

    Example:
        >>> from torch.nn.functional import cross_entropy
        >>> from uumamba.domain_generalization import InputPerturbation
        >>> from uumamba.optim import SAM
        >>> net, image, label = nn.Linear(2, 3), torch.eye(2), torch.tensor([0, 2])
        >>> udim = UDIM(net, cross_entropy, InputPerturbation(radius=0.3), lambda1=30.0, lambda2=30.0)
        >>> optimizer = SAM(net.parameters(), partial(torch.optim.SGD, lr=0.1), net=net)
        >>> optimizer.step(lambda: cross_entropy(net(image), label), at_weights=udim.at_weights(image, label)).shape
        torch.Size([])

    References:
        Shin et al., *Unknown Domain Inconsistency Minimization for Domain Generalization*, ICLR 2024, arXiv:2403.07329.
        Differs from the paper: both terms of the inconsistency have their own weight, and are squares averaged over
        entries, as in its code. Differs from its code: each sample is perturbed by its own length, where the code
        normalises each pixel across the batch; style perturbations do change the images; domains are averaged and not
        summed; after the warm-up training goes on, where the code returns to the best checkpoint; second derivatives
        are not needed, and voxels and gamma and fields are ours.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Any, Tensor], Tensor],
        perturbation: Perturbation,
        *,
        lambda1: float = 1.0,
        lambda2: float = 1.0,
        rho: float = 0.05,
        warmup_steps: int = 0,
        direction: Direction = "ascent",
        second_order: SecondOrder = True,
        head: nn.Module | None = None,
        voxels_a_class: int = 512,
        ignore_label: int | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (("lambda1", lambda1), ("lambda2", lambda2)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and not negative, got {value}")
        for name, count, least in (("warmup_steps", warmup_steps, 0), ("voxels_a_class", voxels_a_class, 1)):
            if count < least:
                raise ValueError(f"{name} must be at least {least}, got {count}")
        if direction not in ("ascent", "random"):
            raise ValueError(f'direction must be "ascent" or "random", got {direction!r}')
        self.net, self.loss, self.perturbation = net, loss, perturbation
        self.lambda1, self.lambda2 = lambda1, lambda2
        self.warmup_steps = warmup_steps
        self.direction = direction
        self.seed = seed
        self.steps = 0
        self._told = torch.zeros(3)
        self._ascent = Ascent(rho=rho, second_order=second_order)
        self._head = Head(bare_network(net), head, voxels_a_class=voxels_a_class, ignore_label=ignore_label)

    def at_weights(
        self, image: Tensor, label: Tensor, *, domains: Domains | None = None
    ) -> Callable[[], Tensor] | None:
        """The scalar to add at a step's weights, for this batch; None in the warm-up. Once a step, which it counts.

        Args:
            image: ``(batch, ...)``, floating point.
            label: numbers of classes, ``(batch,)``, ``(batch, *spatial)`` or ``(batch, 1, *spatial)``.
            domains: one a sample, anything that compares equal within a domain; None is one domain.
        """
        step, self.steps = self.steps, self.steps + 1
        if step < self.warmup_steps or self.lambda1 == self.lambda2 == 0:
            return None
        return partial(self._penalty, image, label, domains, step)

    def perturbed(self, image: Tensor, label: Tensor, *, step: int | None = None) -> Tensor:
        """The images of the unknown domain at the network's weights, without a gradient.

        Args:
            image: as for :meth:`at_weights`.
            label: as for :meth:`at_weights`.
            step: keys the random direction; the coming one unless given.
        """
        if not len(image):
            raise UsageError("UDIM was given a batch without samples; leave out empty batches.")
        if not image.is_floating_point():
            raise UsageError(
                f"UDIM moves its input along a gradient and cannot move {image.dtype}; give floating-point images, or "
                "embeddings in place of tokens."
            )
        values = self.perturbation.start(image)
        if self.direction == "random":
            generator = generator_for(self.seed, "udim, direction", self.steps if step is None else step)
            along = torch.randn(values.shape, generator=generator).to(values)
        else:
            along = self._ascent.gradient(bare_network(self.net), partial(self._loss_at, image, label), values)
        with torch.no_grad():
            return self.perturbation.apply(image, to_length(along, self.perturbation.length(image)))

    def terms(
        self, image: Tensor, label: Tensor, *, domains: Domains | None = None, step: int | None = None
    ) -> dict[str, Tensor]:
        """``variance_gap`` and ``gradient_norm`` of a batch at the network's weights, without their own.

        Args:
            image: as for :meth:`at_weights`.
            label: as for :meth:`at_weights`.
            domains: as for :meth:`at_weights`.
            step: keys what is drawn; the coming one unless given.
        """
        step = self.steps if step is None else step
        halves = torch.cat([image, self.perturbed(image, label, step=step)])
        generator = generator_for(self.seed, "udim, voxels", step)
        found = self._head.gradients(halves, label, generator, members_of(domains, len(image)))
        if not found:  # everything is ignored
            zero = sum(
                (param.sum() * 0 for param in bare_network(self.net).parameters()), torch.zeros((), device=image.device)
            )
            return {"variance_gap": zero, "gradient_norm": zero}
        gaps = [variance_gap(source, target) for source, target in found]
        norms = [gradient_norm(target) for _, target in found]
        return {"variance_gap": torch.stack(gaps).mean(), "gradient_norm": torch.stack(norms).mean()}

    def check(self, image: Tensor) -> None:
        """Say at once what a step would be refused for, by one pass without a gradient that leaves no trace.

        Args:
            image: ``(batch, ...)``, such as noise; one sample will do.

        Raises:
            UsageError: the network's head is not known, does not give its logits, or gives fewer than two.
        """
        self._head.check(image)

    def numbers(self) -> dict[str, dict[str, float]]:
        """Means since the last call, of this process, so that lambdas can be judged: ``{"udim": {...}}`` or nothing.

        ``variance_gap`` and ``gradient_norm``, without their weights, and the ``penalty`` with them. Steps where one is
        not finite are left out. Read off the device here and nowhere else.
        """
        gap, norm, count = self._told.tolist()
        self._told = torch.zeros(3)
        if not count:
            return {}
        penalty = self.lambda1 * gap + self.lambda2 * norm
        sums = {"variance_gap": gap, "gradient_norm": norm, "penalty": penalty}
        return {"udim": {name: each / count for name, each in sums.items()}}

    def state_dict(self) -> dict[str, Any]:
        """How many steps were made, and what :meth:`numbers` would tell of."""
        return {"steps": self.steps, "told": self._told.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where another run stopped, bit for bit."""
        self.steps = state["steps"]
        self._told = state["told"].clone() if "told" in state else torch.zeros(3)

    def _penalty(self, image: Tensor, label: Tensor, domains: Domains | None, step: int) -> Tensor:
        terms = self.terms(image, label, domains=domains, step=step)
        self._tell(terms)
        return self.lambda1 * terms["variance_gap"] + self.lambda2 * terms["gradient_norm"]

    def _tell(self, terms: dict[str, Tensor]) -> None:
        gap, norm = (terms[name].detach().float() for name in ("variance_gap", "gradient_norm"))
        told = torch.stack([gap, norm, torch.ones_like(gap)])
        self._told = self._told.to(gap.device) + torch.where(told.isfinite().all(), told, 0.0)

    def _loss_at(self, image: Tensor, label: Tensor, values: Tensor) -> Tensor:
        return self.loss(bare_network(self.net)(self.perturbation.apply(image, values)), label)


def members_of(domains: Domains | None, samples: int) -> list[list[int]]:
    """The samples of each domain, in the order of their first.

    Raises:
        ValueError: there is not one domain a sample, or one cannot be told from others.

    Example:
        >>> members_of(["B", "A", "B"], 3), members_of(None, 2)
        ([[0, 2], [1]], [[0, 1]])
    """
    if domains is None:
        return [list(range(samples))]
    given = domains.flatten().tolist() if isinstance(domains, Tensor) else domains
    names = [each.item() if isinstance(each, Tensor) else each for each in given]
    if len(names) != samples:
        raise ValueError(f"domains must name one domain a sample, got {len(names)} for {samples} samples")
    if not all(isinstance(name, Hashable) for name in names):
        raise ValueError(f"domains must be names or numbers, got {names[0]!r}")
    groups: dict[Any, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(name, []).append(index)
    return list(groups.values())
