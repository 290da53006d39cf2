"""Unknown domain inconsistency minimization (UDIM)."""

from collections.abc import Callable, Mapping, Sequence
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
from uumamba.runtime.observer import Observer, Row, RunView
from uumamba.runtime.options import NonNegative, NonNegativeInt, PositiveInt, check_options
from uumamba.runtime.seeds import generator_for

Direction = Literal["ascent", "random"]
Domains = Sequence[Any] | Tensor


class UDIM(Observer):
    r"""Penalty on head gradients that differ between images and perturbed images.

    .. math::
        \tilde x = x + \rho_x \frac{\nabla_x J}{\lVert \nabla_x J \rVert_2}, \qquad
        J = L(\theta; x, y) + \rho\, \lVert \nabla_\theta L(\theta; x, y) \rVert_2, \qquad
        A = \lambda_1\, \mathrm{gap}(x, \tilde x) + \lambda_2\, \mathrm{norm}(\tilde x)

    Every step perturbs each sample by one ascent step of exactly the perturbation's length; the perturbed samples with
    their labels are the unknown domain. ``gap`` is :func:`variance_gap` and ``norm`` is :func:`gradient_norm` of the
    per-sample gradients of the cross entropy in the head's weights, in closed form. The gradient of A flows through the
    complete network. Any optimizer of :mod:`uumamba.optim` adds this gradient at its original weights:

    ``loss = optimizer.step(closure, at_weights=udim.at_weights(image, label))``

    During the warm-up, and if both lambdas are 0, ``at_weights`` returns None: nothing is drawn or computed, and the
    step equals the optimizer's own step bit for bit. Otherwise a step costs one more pass for J, a second backward
    pass, and a pass of images and perturbed images.

    **Head.** An ``nn.Linear`` (or a subclass with the same forward pass) or a convolution of kernel 1, whose output is
    the finest logits. A linear layer on sequences has its classes on the last axis; the network may return them on axis
    1. Any other head raises an error.

    **Segmentation.** A sample is a voxel. Each image gives at most ``voxels_a_class`` voxels of every class, which
    limits memory and balances background and foreground. Labels are ``(batch, 1, *spatial)`` or ``(batch, *spatial)``.
    Use ``InputPerturbation(rms=...)``, or a style, which leaves the anatomy unchanged. Segmentation is an extension of
    this project.

    **Domains.** If the domains of the samples are given, both terms are computed per domain and averaged over the
    domains in the batch, so that the lambdas do not depend on the number of domains.

    **Weights.** Both terms are means of squares over the head's entries, so they shrink with the head and with the
    loss; no pair of lambdas suits every network. After some steps compare ``numbers()["udim"]["penalty"]`` with the
    loss, and choose lambdas on held-out domains among those with which the penalty is about 1 to 30 % of it. The
    benchmarks here use 30 for both with a perceptron of 64 inputs, and 1 and 0.1 with a network for hearts.

    **Edge cases.** A sample without an input gradient is not perturbed. A gradient that is not finite makes the penalty
    not finite, and the optimizer skips the step. No pass changes running statistics or other buffers. Batch norms in
    training mode, and layers that mix samples such as :class:`MixStyle`, see images and perturbed images as one batch.
    The ascent restores torch's global generators; a layer with its own generator draws again in each pass. Open
    autocast inside the closure and around the call of the function from ``at_weights``; moments are computed in
    float32. With several ranks, each rank uses its own samples.

    **Compilation and checkpointing.** A network compiled by ``torch.compile(net)`` is allowed: UDIM uses the original
    network inside. A network with compiled or scripted parts raises an error. Activation checkpointing must be
    ``use_reentrant=False``; the optimizer then needs ``net=``, to restore the running statistics that recomputed layers
    change during the backward pass.

    Args:
        net: the trained network, also inside ``DistributedDataParallel`` or ``torch.compile``. The network returns
            logits, or a list of logits, finest first.
        loss: the task's loss, called as ``loss(logits, label)`` with the network's output.
        perturbation: :class:`InputPerturbation` or :class:`StylePerturbation`, with its length.
        lambda1: weight of the variance gap.
        lambda2: weight of the gradient norm.
        rho: weight of the gradient norm in J; None is 0.05, or in a run the optimizer's rho, 0 without one.
        warmup_steps: number of first steps without penalty.
        direction: ``"ascent"``, or ``"random"`` for a control: a random direction of the same length.
        second_order: method for the gradient of the gradient norm; see :class:`InputAscent`. A kernel without a second
            derivative changes True to ``"finite_difference"``, with a warning.
        head: the head; None to detect the head in each pass.
        voxels_a_class: largest number of voxels per class and image.
        ignore_label: label of samples or voxels to leave out.
        seed: seed of voxels and random directions, combined with the step number.

    Raises:
        UsageError: an option is out of range or the head is not linear; or, from the step, the input is empty or not
            floating point, no linear head returns the logits, or label and logits do not fit.

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
        entries, as in the paper's code. Differs from the code: the perturbation is normalised per sample, in the code
        per pixel across the batch; style perturbations do change the images; domains are averaged, not summed; after
        the warm-up training continues, the code returns to the best checkpoint; second derivatives are optional;
        voxels, gamma and fields are extensions.
    """

    may_fail = rank_zero_only = False

    @check_options
    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Any, Tensor], Tensor],
        perturbation: Perturbation,
        *,
        lambda1: NonNegative = 1.0,
        lambda2: NonNegative = 1.0,
        rho: NonNegative | None = None,
        warmup_steps: NonNegativeInt = 0,
        direction: Direction = "ascent",
        second_order: SecondOrder = True,
        head: nn.Module | None = None,
        voxels_a_class: PositiveInt = 512,
        ignore_label: int | None = None,
        seed: int = 0,
    ) -> None:
        self.net, self.loss, self.perturbation = net, loss, perturbation
        self.lambda1, self.lambda2 = lambda1, lambda2
        self.warmup_steps = warmup_steps
        self.direction = direction
        self.seed = seed
        self.steps = 0
        self._sums = torch.zeros(3)
        self._ascent = InputAscent(rho=0.05 if rho is None else rho, second_order=second_order)
        self._head = Head(bare_network(net), head, voxels_a_class=voxels_a_class, ignore_label=ignore_label)

    def at_weights(
        self, image: Tensor, label: Tensor, *, domains: Domains | None = None
    ) -> Callable[[], Tensor] | None:
        """Return the penalty of a batch as a function; None during warm-up.

        Call once per step.

        Args:
            image: ``(batch, ...)``, floating point.
            label: class numbers, ``(batch,)``, ``(batch, *spatial)`` or ``(batch, 1, *spatial)``.
            domains: domain of each sample, names or numbers; None for a single domain.
        """
        step, self.steps = self.steps, self.steps + 1
        if step < self.warmup_steps or self.lambda1 == self.lambda2 == 0:
            return None
        return partial(self._penalty, image, label, domains, step)

    def perturbed(self, image: Tensor, label: Tensor, *, step: int | None = None) -> Tensor:
        """Return the perturbed images, without a gradient.

        Args:
            image: as for :meth:`at_weights`.
            label: as for :meth:`at_weights`.
            step: step number, a key of the random direction; None for the next step.
        """
        require(len(image), "image", got="no sample", expected="at least one sample")
        require(
            image.is_floating_point(),
            "image",
            got=image.dtype,
            expected="a floating-point type",
            fix="pass embeddings instead of tokens",
        )
        values = self.perturbation.start(image)
        if self.direction == "random":
            generator = generator_for(self.seed, "udim, direction", self.steps if step is None else step)
            direction = torch.randn(values.shape, generator=generator).to(values)
        else:
            net = bare_network(self.net)
            direction = self._ascent.gradient(
                net, lambda values: self.loss(net(self.perturbation.apply(image, values)), label), values
            )
        with torch.no_grad():
            return self.perturbation.apply(image, scale_to_length(direction, self.perturbation.length(image)))

    def terms(
        self, image: Tensor, label: Tensor, *, domains: Domains | None = None, step: int | None = None
    ) -> dict[str, Tensor]:
        """Return ``variance_gap`` and ``gradient_norm`` of a batch, without lambdas.

        Args:
            image: as for :meth:`at_weights`.
            label: as for :meth:`at_weights`.
            domains: as for :meth:`at_weights`.
            step: step number, a key of the random draws; None for the next step.
        """
        step = self.steps if step is None else step
        halves = torch.cat([image, self.perturbed(image, label, step=step)])
        generator = generator_for(self.seed, "udim, voxels", step)
        pairs = self._head.gradients(halves, label, generator, _group_by_domain(domains, len(image)))
        if not pairs:  # all samples are ignored
            zero = sum(
                (param.sum() * 0 for param in bare_network(self.net).parameters()), torch.zeros((), device=image.device)
            )
            return {"variance_gap": zero, "gradient_norm": zero}
        gaps = [variance_gap(source, target) for source, target in pairs]
        norms = [gradient_norm(target) for _, target in pairs]
        return {"variance_gap": torch.stack(gaps).mean(), "gradient_norm": torch.stack(norms).mean()}

    def check(self, image: Tensor) -> None:
        """Raise if a pass without side effects finds no linear head.

        Args:
            image: ``(batch, ...)``, such as noise; one sample is enough.

        Raises:
            UsageError: no linear head returns the logits.
        """
        with torch.no_grad(), torch.random.fork_rng([image.device] if image.is_cuda else []):
            self._head.forward(image)

    def numbers(self) -> dict[str, dict[str, float]]:
        """Return the means since the last call, ``{"udim": {...}}``.

        The means are ``variance_gap``, ``gradient_norm`` and the ``penalty`` weighted by lambda1 and lambda2, of this
        process. Steps with values that are not finite are left out. The result is empty without a penalty. Only this
        method copies values from the device.
        """
        gap, norm, count = self._sums.tolist()
        self._sums = torch.zeros(3)
        if not count:
            return {}
        sums = {"variance_gap": gap, "gradient_norm": norm, "penalty": self.lambda1 * gap + self.lambda2 * norm}
        return {"udim": {name: each / count for name, each in sums.items()}}

    def state_dict(self) -> dict[str, Any]:
        """Return the step number and the sums of :meth:`numbers`."""
        return {"steps": self.steps, "told": self._sums.clone()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the state of another run, bit for bit."""
        self.steps, self._sums = state_dict["steps"], state_dict["told"].clone()

    def on_epoch_end(self, run: RunView, row: Row) -> None:
        row |= self.numbers()

    def _penalty(self, image: Tensor, label: Tensor, domains: Domains | None, step: int) -> Tensor:
        terms = self.terms(image, label, domains=domains, step=step)
        gap, norm = terms["variance_gap"], terms["gradient_norm"]
        values = torch.stack([gap.detach().float(), norm.detach().float(), torch.ones((), device=gap.device)])
        self._sums = self._sums.to(gap.device) + torch.where(values.isfinite().all(), values, 0.0)
        return self.lambda1 * gap + self.lambda2 * norm


def _group_by_domain(domains: Domains | None, samples: int) -> list[list[int]]:
    """Return the sample indices of each domain, in order of first occurrence."""
    if domains is None:
        return [list(range(samples))]
    listed = domains.flatten().tolist() if isinstance(domains, Tensor) else domains
    names = [each.item() if isinstance(each, Tensor) else each for each in listed]
    require(len(names) == samples, "domains", got=f"{len(names)} domains", expected=f"one domain per sample, {samples}")
    groups: dict[Any, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(name, []).append(index)
    return list(groups.values())
