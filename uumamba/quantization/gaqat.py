"""GAQAT: freezing of scale gradients in quantization-aware training with SAGM."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from uumamba.quantization.disorder import SignFlips
from uumamba.quantization.quantize import quantizer_scales
from uumamba.runtime.errors import require
from uumamba.runtime.options import AtLeastTwo, NonNegative, check_options

FreezeMode = Literal["task", "smooth", "always", "never", "alternate"]


@dataclass(frozen=True)
class Window:
    """Result of one window of steps.

    Attributes:
        step: number of steps so far.
        disorder: disorder of each scale's task gradient, by name; NaN with fewer than two signs.
        frozen_fraction: share of scales with a frozen gradient in the next window.
    """

    step: int
    disorder: Mapping[str, Tensor]
    frozen_fraction: float


class GAQAT:
    r"""Freezing of scales whose task gradient rarely changes sign, for SAGM.

    GAQAT adds hooks to an optimizer that descends with the mean of the task gradient g and the perturbed gradient
    :math:`g_p`. Every K = ``every`` steps each scale's disorder :math:`\delta` (:func:`gradient_disorder` of g over
    these steps) is compared with r = ``threshold``, and for the next K steps

    .. math:: g_s = \begin{cases} \tfrac{1}{2} g_p & \delta < r \\ \tfrac{1}{2} (g + g_p) & \text{else} \end{cases}

    so that the step size does not change. Weights are never frozen. No scale is frozen in the first window. With r = 0
    training equals SAGM bit for bit; with r > 1 all scales are frozen from the second window on. A scale whose gradient
    had fewer than two signs has :math:`\delta = 1`. Skipped steps and steps without a perturbation (rho 0 in every
    group) do not count. The micro-batches of an accumulated step count as one step. All counts are part of the
    optimizer's ``state_dict``: create GAQAT with the same arguments, load the state, and training continues bit for
    bit.

    Args:
        optimizer: ``uumamba.optim.SAGM`` with the scales in groups with ``perturb=True``, or another optimizer with
            the method ``register_before_mix(hook)``. Before each mix of both gradients, the optimizer calls
            ``hook(task, perturbed)`` with ``task.params``, ``task.grads`` and the list of perturbed gradients.
        net: a network after :func:`quantize_`.
        every: steps per window, K, at least 2.
        threshold: r, at least 0.
        mode: ``"task"``, or an ablation: ``"smooth"`` freezes :math:`g_p` of the same scales instead, ``"always"``
            freezes all task gradients from the first step, ``"never"`` freezes none, ``"alternate"`` freezes all in
            every second window.
        log: function called with the :class:`Window` at the end of each window.

    Raises:
        UsageError: the optimizer has a single gradient or does not perturb a scale, ranks would freeze different
            scales, the network has no scales, or ``every``, ``threshold`` or ``mode`` is out of range.

    Example:
        >>> from functools import partial
        >>> from uumamba.optim import SAGM
        >>> from uumamba.quantization import quantize_, scale_groups
        >>> net = quantize_(nn.Sequential(nn.Linear(2, 2)), weight_bits=2, act_bits=None)
        >>> optimizer = SAGM(scale_groups(net), partial(torch.optim.SGD, lr=0.1))
        >>> gaqat = GAQAT(optimizer, net, every=2, threshold=1.1, log=lambda window: print(window.frozen_fraction))
        >>> for _ in range(2):
        ...     loss = optimizer.step(lambda: net(torch.ones(1, 2)).square().sum())
        1.0

    References:
        Jiang et al., *GAQAT: Gradient-Adaptive Quantization-Aware Training for Domain Generalization*, 2024,
        arXiv:2412.05551.
        Wang et al., *Sharpness-Aware Gradient Matching for Domain Generalization*, CVPR 2023, arXiv:2303.10353.
        Differs from the paper: K and r are not published, so both are arguments; no code is public, so the rest is a
        reconstruction from the text.
    """

    @check_options
    def __init__(
        self,
        optimizer: Any,
        net: nn.Module,
        *,
        every: AtLeastTwo = 50,
        threshold: NonNegative = 0.3,
        mode: FreezeMode = "task",
        log: Callable[[Window], None] | None = None,
    ) -> None:
        self._scales = quantizer_scales(net)
        self.optimizer, self.every, self.threshold, self.mode, self.log = optimizer, every, threshold, mode, log
        _check_fit(optimizer, self._scales)
        self._index: dict[Tensor, int] = {scale: index for index, scale in enumerate(self._scales.values())}
        self._sizes = [scale.numel() for scale in self._scales.values()]
        self._task: Tensor | None = None  # task gradients of all scales in the current step
        self._skipped_before = optimizer.skipped_steps
        self._handles = [
            optimizer.register_step_pre_hook(self._begin_step),
            optimizer.register_before_mix(self._freeze),
            optimizer.register_step_post_hook(self._end_step),
        ]

    @staticmethod
    def find_first_effect(options: Mapping[str, Any], start_step: int) -> int:
        """Return the first step, counted from 1, that GAQAT can change.

        Before ``start_step`` scales have no gradient, so there is no gradient to freeze and no sign to compare.

        Args:
            options: ``every``, ``threshold`` and ``mode``.
            start_step: of :func:`quantize_`.
        """
        every, mode = options["every"], options["mode"]
        if mode in ("always", "never"):
            return start_step + 1
        before = max(start_step, every)
        if mode == "alternate" and before // every % 2 == 0:  # this window freezes nothing
            before = (before // every + 1) * every
        if mode in ("task", "smooth") and options["threshold"] <= 1:  # the end of a window with two signs
            before = -(-(start_step + 2) // every) * every
        return int(before) + 1

    @property
    def frozen_fraction(self) -> float:
        """Share of scales with a frozen gradient in the current window."""
        return float(self.optimizer.numbers.get("gaqat_frozen_fraction", self.mode == "always"))

    @property
    def disorder(self) -> dict[str, Tensor]:
        """Disorder per scale name in the last complete window.

        Empty in the first window.
        """
        stored = self._state.get("gaqat_disorder")
        return {} if stored is None else self._split_by_name(stored)

    @property
    def frozen(self) -> dict[str, Tensor]:
        """Mask of frozen scales in the current window, by name."""
        return self._split_by_name(self._frozen() != 0)

    def remove(self) -> None:
        """Detach from the optimizer."""
        for handle in self._handles:
            handle.remove()

    def _begin_step(self, *_: Any) -> None:
        self._task, self._skipped_before = None, self.optimizer.skipped_steps

    @torch.no_grad()
    def _freeze(self, task: Any, perturbed: Sequence[Tensor]) -> None:
        """Sum the task gradients of all scales; zero the frozen gradients."""
        masks = self._frozen().split(self._sizes)
        gradients = [torch.zeros_like(scale) for scale in self._scales.values()]
        for param, first, second in zip(task.params, task.grads, perturbed, strict=True):
            index = self._index.get(param)
            if index is not None:
                gradients[index] = first.clone()
                frozen = second if self.mode == "smooth" else first
                frozen.masked_fill_(masks[index].view_as(frozen) != 0, 0)
        joined = torch.cat([each.flatten() for each in gradients])
        self._task = joined if self._task is None else self._task + joined

    @torch.no_grad()
    def _end_step(self, *_: Any) -> None:
        """Count the step; at a window's end choose the scales to freeze."""
        if self._task is None or self.optimizer.skipped_steps != self._skipped_before:
            return
        numbers = self.optimizer.numbers
        flips = self._flips()
        flips.count(self._task)
        numbers["gaqat_step"] = step = numbers.get("gaqat_step", 0) + 1
        if step % self.every == 0:
            disorder = flips.disorder()
            frozen = self._choose_frozen(disorder, window=int(step) // self.every)
            self._state.update(gaqat_disorder=disorder, gaqat_frozen=frozen)
            numbers["gaqat_frozen_fraction"] = float(frozen.mean())
            flips.clear()
            if self.log is not None:
                self.log(Window(int(step), self._split_by_name(disorder), self.frozen_fraction))

    def _choose_frozen(self, disorder: Tensor, *, window: int) -> Tensor:
        """Return 1 per scale to freeze, else 0; windows count from 0."""
        if self.mode in ("task", "smooth"):
            return (disorder.nan_to_num(1.0) < self.threshold).to(disorder.dtype)
        freezes_all = self.mode == "always" or (self.mode == "alternate" and window % 2 == 1)
        return torch.full_like(disorder, float(freezes_all))

    @property
    def _state(self) -> dict[str, Any]:
        """Optimizer state of the first scale, with one vector for all scales."""
        return cast(dict[str, Any], self.optimizer.state[next(iter(self._scales.values()))])

    def _flips(self) -> SignFlips:
        names = ("gaqat_last", "gaqat_flips", "gaqat_pairs")
        if names[0] not in self._state:
            self._state.update({name: self._zeros() for name in names})
        return SignFlips(*(self._state[name] for name in names))

    def _frozen(self) -> Tensor:
        stored: Tensor | None = self._state.get("gaqat_frozen")
        return self._zeros() + float(self.mode == "always") if stored is None else stored

    def _zeros(self) -> Tensor:
        return torch.cat([torch.zeros_like(scale).flatten() for scale in self._scales.values()])

    def _split_by_name(self, joined: Tensor) -> dict[str, Tensor]:
        parts = joined.split(self._sizes)
        return {name: part.view_as(scale) for (name, scale), part in zip(self._scales.items(), parts, strict=True)}


def _check_fit(optimizer: Any, scales: Mapping[str, nn.Parameter]) -> None:
    require(
        scales,
        "net",
        got="a network without scales",
        expected="a quantized network",
        fix="call quantize_ before you create the optimizer and GAQAT",
    )
    require(
        hasattr(optimizer, "register_before_mix"),
        "optimizer",
        got=type(optimizer).__name__,
        expected="SAGM or an optimizer with register_before_mix",
    )
    perturbed = {id(param) for group in optimizer.param_groups if group["perturb"] for param in group["params"]}
    for name, scale in scales.items():
        require(
            id(scale) in perturbed,
            "optimizer",
            got=f"no perturbation of {name}",
            expected="all scales in groups with perturb=True",
            fix="create the optimizer after quantize_, with scale_groups(net)",
        )
    hooks = getattr(optimizer, "_before_mix", {}).values()
    require(
        not any(isinstance(getattr(hook, "__self__", None), GAQAT) for hook in hooks),
        "optimizer",
        got="an optimizer with a GAQAT",
        expected="one GAQAT per optimizer, since two would count every step twice",
        fix="call remove() of the first one",
    )
    has_ranks = torch.distributed.is_available() and torch.distributed.is_initialized()
    require(
        not has_ranks or optimizer.perturbation == "global",
        "perturbation",
        got=optimizer.perturbation,
        expected="global, so that all ranks freeze the same scales",
        fix="set optim.perturbation=global",
    )
