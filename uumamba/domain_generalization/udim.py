"""Unknown domain inconsistency minimisation."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from uumamba.domain_generalization.head import Head
from uumamba.domain_generalization.inconsistency import gradient_norm, variance_gap
from uumamba.domain_generalization.input_ascent import InputAscent, SecondOrder
from uumamba.domain_generalization.perturb import Perturbation, scale_to_length
from uumamba.runtime.errors import require
from uumamba.runtime.network import bare_network
from uumamba.runtime.seeds import generator_for

Direction = Literal["ascent", "random"]
Domains = Sequence[Any] | Tensor


class UDIM:
    r"""Penalty on how differently a crafted unknown domain pulls at the network's head.

    .. math::
        \tilde x = x + \rho_x \frac{\nabla_x J}{\lVert \nabla_x J \rVert_2}, \qquad
        J = L(\theta; x, y) + \rho\, \lVert \nabla_\theta L(\theta; x, y) \rVert_2, \qquad
        A = \lambda_1\, \mathrm{gap}(x, \tilde x) + \lambda_2\, \mathrm{norm}(\tilde x)

    The unknown domain is created in every step: each sample, with its label, after one ascent step of exactly the
    perturbation's length. ``gap`` is :func:`variance_gap` and ``norm`` :func:`gradient_norm` of the per-sample
    gradients of the cross entropy in the head's weights, in closed form. Their gradient flows through the whole
    network, and any optimizer of the family adds it at the weights before its ascent:

    ``loss = optimizer.step(closure, at_weights=udim.at_weights(image, label))``

    During the warm-up, and where both weights are 0, ``at_weights`` is None, nothing is drawn or computed, and the step
    is the optimizer's own bit for bit. Otherwise a step adds one pass for J, a second backward pass, and a pass of
    images and perturbed images together.

    **Head.** An ``nn.Linear`` (or a subclass with its forward pass) or a convolution of kernel 1, whose output is the
    network's finest logits. A linear layer on sequences has its classes last, and the network may return them on axis
    1. Any other head is refused.

    **Segmentation.** A sample is a voxel, and each image gives at most ``voxels_a_class`` of every class in it, so that
    neither memory nor background decide; labels are ``(batch, 1, *spatial)``, or without the 1. Radii are best given
    by ``InputPerturbation(rms=...)``, or as a style, which leaves anatomy in place. This is our extension.

    **Domains.** Given the samples' domains, both terms are computed for each domain and averaged over the domains in
    the batch; so lambda means the same for any number of them.

    **Edge cases.** A sample without an input gradient does not move. A gradient that is not finite makes the penalty
    not finite, and the optimizer skips the step. No pass changes running statistics or other buffers. Batch norms in
    training mode see images and perturbed images as one batch, and so does a layer that mixes samples, such as
    :class:`MixStyle`. The ascent restores torch's global generators; a layer with a generator of its own draws again in
    each pass. Under autocast, open it inside the closure and around the call of ``at_weights``'s result; moments are
    computed in float32. With several ranks each takes its own samples.

    **Compilation and checkpointing.** The network may be compiled as a whole, by ``torch.compile(net)``: UDIM uses the
    network inside. One with compiled or scripted parts is refused. Activation checkpointing must be
    ``use_reentrant=False``; the optimizer then needs ``net=``, by which it restores the running statistics that the
    recomputed layers change during its backward pass.

    Args:
        net: the network that the optimizer trains, also inside ``DistributedDataParallel`` or ``torch.compile``. It
            returns logits, or a list of them, finest first.
        loss: called as ``loss(logits, label)``, with the list where the network returns one; the task's own.
        perturbation: :class:`InputPerturbation` or :class:`StylePerturbation`, with its length.
        lambda1: weight of the variance gap.
        lambda2: weight of the gradient norm.
        rho: weight of the gradient norm in J; as a rule the optimizer's own rho.
        warmup_steps: steps of the optimizer alone at the start.
        direction: ``"random"`` is the control: the same length along a random direction.
        second_order: way to the gradient of the gradient norm; see :class:`InputAscent`. A kernel without a second
            derivative turns True to ``"finite_difference"``, with a warning.
        head: the head; by default it is found in each pass.
        voxels_a_class: the most voxels of a class from an image.
        ignore_label: samples or voxels with this label are left out.
        seed: of the voxels and of the random direction, with the step's number.

    Raises:
        UsageError: an option is out of range or the head is not linear; or, from the step, the input is empty or not
            floating point, no linear head gives the logits, or label and logits do not fit.

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
        for key, weight in (("lambda1", lambda1), ("lambda2", lambda2)):
            require(0 <= weight < math.inf, key, got=weight, expected="a finite number of at least 0")
        require(warmup_steps >= 0, "warmup_steps", got=warmup_steps, expected="at least 0")
        require(voxels_a_class >= 1, "voxels_a_class", got=voxels_a_class, expected="at least 1")
        require(direction in ("ascent", "random"), "direction", got=direction, expected="ascent or random")
        self.net, self.loss, self.perturbation = net, loss, perturbation
        self.lambda1, self.lambda2 = lambda1, lambda2
        self.warmup_steps = warmup_steps
        self.direction = direction
        self.seed = seed
        self.steps = 0
        self._sums = torch.zeros(3)
        self._ascent = InputAscent(rho=rho, second_order=second_order)
        self._head = Head(bare_network(net), head, voxels_a_class=voxels_a_class, ignore_label=ignore_label)

    def at_weights(
        self, image: Tensor, label: Tensor, *, domains: Domains | None = None
    ) -> Callable[[], Tensor] | None:
        """Return the penalty to add in a step on this batch; None in the warm-up. Call it once a step.

        Args:
            image: ``(batch, ...)``, floating point.
            label: class numbers, ``(batch,)``, ``(batch, *spatial)`` or ``(batch, 1, *spatial)``.
            domains: one a sample, names or numbers; None is one domain.
        """
        step, self.steps = self.steps, self.steps + 1
        if step < self.warmup_steps or self.lambda1 == self.lambda2 == 0:
            return None
        return partial(self._penalty, image, label, domains, step)

    def perturbed(self, image: Tensor, label: Tensor, *, step: int | None = None) -> Tensor:
        """Return the images of the unknown domain, without a gradient.

        Args:
            image: as for :meth:`at_weights`.
            label: as for :meth:`at_weights`.
            step: keys the random direction; the next step by default.
        """
        require(len(image), "image", got="no sample", expected="at least one")
        fix = "pass embeddings in place of tokens"
        require(image.is_floating_point(), "image", got=image.dtype, expected="a floating-point type", fix=fix)
        values = self.perturbation.start(image)
        if self.direction == "random":
            generator = generator_for(self.seed, "udim, direction", self.steps if step is None else step)
            along = torch.randn(values.shape, generator=generator).to(values)
        else:
            along = self._ascent.gradient(bare_network(self.net), partial(self._loss_at, image, label), values)
        with torch.no_grad():
            return self.perturbation.apply(image, scale_to_length(along, self.perturbation.length(image)))

    def terms(
        self, image: Tensor, label: Tensor, *, domains: Domains | None = None, step: int | None = None
    ) -> dict[str, Tensor]:
        """Return ``variance_gap`` and ``gradient_norm`` of a batch, without lambda1 and lambda2.

        Args:
            image: as for :meth:`at_weights`.
            label: as for :meth:`at_weights`.
            domains: as for :meth:`at_weights`.
            step: keys the random draws; the next step by default.
        """
        step = self.steps if step is None else step
        halves = torch.cat([image, self.perturbed(image, label, step=step)])
        generator = generator_for(self.seed, "udim, voxels", step)
        found = self._head.gradients(halves, label, generator, _group_by_domain(domains, len(image)))
        if not found:  # everything is ignored
            zero = sum(
                (param.sum() * 0 for param in bare_network(self.net).parameters()), torch.zeros((), device=image.device)
            )
            return {"variance_gap": zero, "gradient_norm": zero}
        gaps = [variance_gap(source, target) for source, target in found]
        norms = [gradient_norm(target) for _, target in found]
        return {"variance_gap": torch.stack(gaps).mean(), "gradient_norm": torch.stack(norms).mean()}

    def check(self, image: Tensor) -> None:
        """Find the head now, by one pass that changes nothing.

        Args:
            image: ``(batch, ...)``, such as noise; one sample will do.

        Raises:
            UsageError: no linear head gives the logits.
        """
        with torch.no_grad(), torch.random.fork_rng([image.device] if image.is_cuda else []):
            self._head.forward(image)

    def numbers(self) -> dict[str, dict[str, float]]:
        """Return the means since the last call, ``{"udim": {...}}``, or nothing before the first penalty.

        ``variance_gap`` and ``gradient_norm``, and the ``penalty`` weighted by lambda1 and lambda2, of this process.
        Steps where one is not finite are left out. Only here are the values copied from the device.
        """
        gap, norm, count = self._sums.tolist()
        self._sums = torch.zeros(3)
        if not count:
            return {}
        penalty = self.lambda1 * gap + self.lambda2 * norm
        sums = {"variance_gap": gap, "gradient_norm": norm, "penalty": penalty}
        return {"udim": {name: each / count for name, each in sums.items()}}

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps and the sums of :meth:`numbers`."""
        return {"steps": self.steps, "told": self._sums.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another run stopped, bit for bit."""
        self.steps, self._sums = state["steps"], state["told"].clone()

    def _penalty(self, image: Tensor, label: Tensor, domains: Domains | None, step: int) -> Tensor:
        terms = self.terms(image, label, domains=domains, step=step)
        gap, norm = terms["variance_gap"], terms["gradient_norm"]
        values = torch.stack([gap.detach().float(), norm.detach().float(), torch.ones((), device=gap.device)])
        self._sums = self._sums.to(gap.device) + torch.where(values.isfinite().all(), values, 0.0)
        return self.lambda1 * gap + self.lambda2 * norm

    def _loss_at(self, image: Tensor, label: Tensor, values: Tensor) -> Tensor:
        return self.loss(bare_network(self.net)(self.perturbation.apply(image, values)), label)


def _group_by_domain(domains: Domains | None, samples: int) -> list[list[int]]:
    """Return the indices of each domain's samples, in the order of the domains' first samples."""
    if domains is None:
        return [list(range(samples))]
    given = domains.flatten().tolist() if isinstance(domains, Tensor) else domains
    names = [each.item() if isinstance(each, Tensor) else each for each in given]
    require(
        len(names) == samples, "domains", got=f"{len(names)} domains", expected=f"one for each of {samples} samples"
    )
    groups: dict[Any, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(name, []).append(index)
    return list(groups.values())
