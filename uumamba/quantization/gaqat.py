"""Gradient-adaptive training of quantised networks: which scales follow the task, and which only the flatness."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from uumamba.quantization.disorder import SignFlips
from uumamba.quantization.quantize import quantizer_scales
from uumamba.runtime.errors import UsageError

Mode = Literal["task", "smooth", "always", "never", "alternate"]
MODES: tuple[Mode, ...] = ("task", "smooth", "always", "never", "alternate")


class Gradients(Protocol):
    """Parameters and their gradients at the unclimbed weights, as the sharpness-aware family passes them."""

    @property
    def params(self) -> Sequence[Tensor]:
        """The climbed parameters."""

    @property
    def grads(self) -> Sequence[Tensor]:
        """The gradient of each."""


class MixingOptimizer(Protocol):
    """An optimizer that descends with the mean of two gradients, and shows them; ``uumamba.optim.SAGM`` is one."""

    param_groups: list[dict[str, Any]]
    perturbation: Literal["rank", "global"]
    skipped_steps: int
    numbers: dict[str, float]

    @property
    def state(self) -> MutableMapping[Tensor, dict[str, Any]]:
        """What is kept by parameter."""

    def register_before_mix(self, hook: Callable[[Any, Sequence[Tensor]], None]) -> RemovableHandle:
        """Call ``hook(slope, second)`` before each mix."""

    def register_step_pre_hook(self, hook: Callable[..., None]) -> RemovableHandle:
        """Call ``hook`` before each step."""

    def register_step_post_hook(self, hook: Callable[..., None]) -> RemovableHandle:
        """Call ``hook`` after each step."""


@dataclass(frozen=True)
class Window:
    """What one window of steps showed.

    Attributes:
        step: steps counted so far.
        disorder: of each scale's task gradient, by the scale's name; NaN where it had fewer than two signs.
        frozen_fraction: the share of scales that lose a gradient in the next window.
    """

    step: int
    disorder: Mapping[str, Tensor]
    frozen_fraction: float


class GAQAT:
    r"""Freezes the task gradient of scales that it pushes one way for long, while SAGM trains the network.

    Attached to an optimizer that descends with the mean of the task gradient g and the climbed point's, :math:`g_p`.
    Every K = ``every`` steps each scale's disorder :math:`\delta` (:func:`gradient_disorder` of its g over these steps)
    is compared with r = ``threshold``, and for the next K steps

    .. math:: g_s = \begin{cases} \tfrac{1}{2} g_p & \delta < r \\ \tfrac{1}{2} (g + g_p) & \text{else} \end{cases}

    so that the step size does not change. Weights are never frozen. In the first window no scale is. With r = 0 nothing
    ever is, bit for bit; with r > 1 everything is from the second window on. A scale whose gradient had fewer than two
    signs counts as :math:`\delta = 1`. A step that the optimizer skipped does not count, nor one without a climb (rho 0
    in every group). Micro-batches of an accumulated step count as one. What is counted is part of the optimizer's
    ``state_dict``: attach anew with the same arguments, load, and training goes on bit for bit.

    Args:
        optimizer: ``uumamba.optim.SAGM``, holding the scales in groups that climb.
        net: a network after :func:`quantize_`.
        every: steps of a window, K.
        threshold: r.
        mode: ``"task"``; or an ablation: ``"smooth"`` freezes :math:`g_p` of the same scales instead, ``"always"``
            every task gradient from the first step, ``"never"`` none, ``"alternate"`` all in every second window.
        log: called with each :class:`Window` as it ends.

    Raises:
        UsageError: the optimizer descends with one gradient alone, does not climb along a scale, or ranks would freeze
            different scales; or the network has no scales.
        ValueError: ``every``, ``threshold`` or ``mode`` is out of range.

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
        Differs from the paper: no code is public and K and r are not given, so both are arguments; the rest is a
        reconstruction from the text.
    """

    def __init__(
        self,
        optimizer: MixingOptimizer,
        net: nn.Module,
        *,
        every: int = 50,
        threshold: float = 0.3,
        mode: Mode = "task",
        log: Callable[[Window], None] | None = None,
    ) -> None:
        _check(every, threshold, mode)
        self._scales = quantizer_scales(net)
        _check_optimizer(optimizer, self._scales)
        self.optimizer, self.every, self.threshold, self.mode, self.log = optimizer, every, threshold, mode, log
        self._place: dict[Tensor, int] = {scale: index for index, scale in enumerate(self._scales.values())}
        self._sizes = [scale.numel() for scale in self._scales.values()]
        self._task: Tensor | None = None  # this step's, of all scales
        self._skipped_before = optimizer.skipped_steps
        self._handles = [
            optimizer.register_step_pre_hook(self._begin_step),
            optimizer.register_before_mix(self._see_and_freeze),
            optimizer.register_step_post_hook(self._end_step),
        ]

    @property
    def frozen_fraction(self) -> float:
        """The share of scales that lose a gradient now."""
        return self.optimizer.numbers.get("gaqat_frozen_fraction", float(self.mode == "always"))

    @property
    def disorder(self) -> dict[str, Tensor]:
        """Of each scale in the last whole window, by name; empty before there was one."""
        known = self._memory().get("gaqat_disorder")
        return {} if known is None else self._by_name(known)

    @property
    def frozen(self) -> dict[str, Tensor]:
        """Which scales lose a gradient now, by name."""
        return self._by_name(self._frozen() != 0)

    def remove(self) -> None:
        """Let the optimizer go on without it."""
        for handle in self._handles:
            handle.remove()

    def _begin_step(self, *_: Any) -> None:
        self._task, self._skipped_before = None, self.optimizer.skipped_steps

    @torch.no_grad()
    def _see_and_freeze(self, slope: Gradients, second: Sequence[Tensor]) -> None:
        """Add up the task gradients of all scales, then take out the frozen ones."""
        task = [torch.zeros_like(scale) for scale in self._scales.values()]
        either: list[Tensor | None] = [None] * len(task)
        for param, first, other in zip(slope.params, slope.grads, second, strict=True):
            place = self._place.get(param)
            if place is not None:
                task[place], either[place] = first, other if self.mode == "smooth" else first
        joined = torch.cat([each.flatten() for each in task])
        self._task = joined if self._task is None else self._task + joined
        if self.frozen_fraction == 0:
            return
        for gradient, frozen in zip(either, self._frozen().split(self._sizes), strict=True):
            if gradient is not None:
                gradient.masked_fill_(frozen.view_as(gradient) != 0, 0)

    @torch.no_grad()
    def _end_step(self, *_: Any) -> None:
        """Count the step that was taken; at the end of a window decide about the next."""
        if self._task is None or self.optimizer.skipped_steps != self._skipped_before:
            return
        numbers = self.optimizer.numbers
        flips = self._flips()
        flips.count(self._task)
        numbers["gaqat_step"] = step = numbers.get("gaqat_step", 0) + 1
        if step % self.every == 0:
            disorder = flips.disorder()
            frozen = self._decide(disorder, window=int(step) // self.every)
            self._memory().update(gaqat_disorder=disorder, gaqat_frozen=frozen)
            numbers["gaqat_frozen_fraction"] = float(frozen.mean())
            flips.clear()
            if self.log is not None:
                self.log(Window(int(step), self._by_name(disorder), self.frozen_fraction))

    def _decide(self, disorder: Tensor, *, window: int) -> Tensor:
        """1 for each scale that is frozen in the window with this number, counted from 0."""
        if self.mode in ("task", "smooth"):
            return (disorder.nan_to_num(1.0) < self.threshold).to(disorder.dtype)
        every_one = self.mode == "always" or (self.mode == "alternate" and window % 2 == 1)
        return torch.full_like(disorder, float(every_one))

    def _memory(self) -> dict[str, Any]:
        """The optimizer's state of the first scale, which keeps what is known of all of them as one vector."""
        return self.optimizer.state[next(iter(self._scales.values()))]

    def _flips(self) -> SignFlips:
        memory = self._memory()
        if "gaqat_last" not in memory:
            fresh = SignFlips.of(self._nothing())
            memory.update(gaqat_last=fresh.last, gaqat_flips=fresh.flips, gaqat_pairs=fresh.pairs)
        return SignFlips(memory["gaqat_last"], memory["gaqat_flips"], memory["gaqat_pairs"])

    def _frozen(self) -> Tensor:
        known: Tensor | None = self._memory().get("gaqat_frozen")
        return self._nothing() + float(self.mode == "always") if known is None else known

    def _nothing(self) -> Tensor:
        return torch.cat([torch.zeros_like(scale).flatten() for scale in self._scales.values()])

    def _by_name(self, joined: Tensor) -> dict[str, Tensor]:
        parts = joined.split(self._sizes)
        return {name: part.view_as(scale) for (name, scale), part in zip(self._scales.items(), parts, strict=True)}


def _check(every: int, threshold: float, mode: str) -> None:
    if every < 2:
        raise ValueError(f"every must be at least 2, as a single gradient has no sign to compare with, got {every}")
    if not threshold >= 0:
        raise ValueError(f"threshold must not be negative, got {threshold}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")


def _check_optimizer(optimizer: MixingOptimizer, scales: Mapping[str, nn.Parameter]) -> None:
    if not scales:
        raise UsageError("This network has no scales to learn; call quantize_ before GAQAT and before the optimizer.")
    if not hasattr(optimizer, "register_before_mix"):
        raise UsageError(
            f"GAQAT tells the task's gradient from that of a climbed point; {type(optimizer).__name__} has no two "
            "gradients, so take uumamba.optim.SAGM."
        )
    climbed = {id(param) for group in optimizer.param_groups if group["perturb"] for param in group["params"]}
    for name, scale in scales.items():
        if id(scale) not in climbed:
            raise UsageError(
                f"The optimizer does not climb along the scale of {name}, whose task gradient it then never keeps; "
                "make it after quantize_, of groups with perturb=True, such as scale_groups(net)."
            )
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    if not alone and optimizer.perturbation != "global":
        raise UsageError(
            "Each rank would freeze by gradients of its own; make the optimizer with perturbation='global', in a "
            "configuration optim.perturbation=global."
        )
