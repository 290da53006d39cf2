"""Stochastic weight averaging, in every step, over the valley of the validation loss."""

import math
import warnings
from collections import deque
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Self

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from uumamba.runtime.errors import UumambaError, require


@dataclass
class _Segment:
    """Average of the steps between two validations."""

    model: AveragedModel
    first_step: int
    last_step: int
    loss: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        state = {"first_step": self.first_step, "last_step": self.last_step, "loss": self.loss}
        return state | {"model": self.model.state_dict()}

    def load(self, state: dict[str, Any]) -> Self:
        self.model.load_state_dict(state["model"])
        self.first_step, self.last_step, self.loss = state["first_step"], state["last_step"], state["loss"]
        return self


class SWAD:
    r"""Average of the weights of every step in the valley of the validation loss.

    With :math:`E_i` the i-th validation loss, the average begins at the first s that is the lowest of its window, and
    ends with e before the first :math:`N_e` losses in a row above the tolerance l:

    .. math::
        E_s = \min_{0 \le j < N_s} E_{s + j}, \qquad
        l = \frac{1 + r}{N_s} \sum_{j=0}^{N_s - 1} E_{s + j}, \qquad
        \min_{1 \le j \le N_e} E_{e + j} > l, \qquad
        \bar w = \mathrm{mean}(w_t)\ \text{of every step t of segments s to e}

    where segment i has the steps after validation i - 1, up to i. In any loop, call :meth:`after_step` once after every
    step, :meth:`validated` after every validation and :meth:`averaged` at the end. Validate on data of the training
    domains, some 50 to 100 steps apart; the learning rate should be constant.

    Edge cases. The loss never settles: the last segment's average, with a warning. Training ends before the valley
    does: losses above l at the very end are left out. After the end nothing is averaged and ``finished`` is True. Steps
    after the last validation are in no segment. A frozen batch norm, in evaluation mode while the network is in
    training mode, keeps its statistics and is frozen in the average too; the latest :meth:`after_step` with the network
    in training mode decides, and without one all are frozen. Memory: two copies of the weights, and one for each of
    the latest validations above the tolerance (``n_tolerance`` at most), before the start ``n_converge``.

    Args:
        net: the network; it is copied.
        n_converge: :math:`N_s`.
        n_tolerance: :math:`N_e`.
        tolerance_ratio: r; the paper took 0.2 for VLCS.
        device: of the copies; None for the network's.

    Attributes:
        threshold: l; None until the loss has settled.
        finished: the valley has ended.

    Raises:
        UsageError: an option is out of range, or a method is called out of order.
        UumambaError: a loss is not finite.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> swad = SWAD(net, n_converge=2)
        >>> for loss in (1.0, 0.5, 0.6, 0.7):
        ...     swad.after_step(net)
        ...     swad.validated(loss)
        >>> round(swad.threshold, 3), swad.steps
        (0.715, (2, 4))
        >>> swad.averaged()
        Linear(in_features=1, out_features=1, bias=True)

    References:
        Cha et al., *SWAD: Domain Generalization by Seeking Flat Minima*, NeurIPS 2021, arXiv:2102.08604, algorithm 1.
        Differs from the paper: validation every few steps, as in its code; a valley that training leaves but not for
        :math:`N_e` validations ends where it was left, as there. Its code also takes in segments before s that lie
        below l; here, as in the paper, s is the first.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        n_converge: int = 3,
        n_tolerance: int = 6,
        tolerance_ratio: float = 0.3,
        device: torch.device | str | None = None,
    ) -> None:
        for key, count in (("n_converge", n_converge), ("n_tolerance", n_tolerance)):
            require(count >= 1, key, got=count, expected="at least 1")
        require(0 <= tolerance_ratio < math.inf, "tolerance_ratio", got=tolerance_ratio, expected="at least 0, finite")
        self.n_converge = n_converge
        self.n_tolerance = n_tolerance
        self.tolerance_ratio = tolerance_ratio
        self.threshold: float | None = None
        self.finished = False
        self._device = torch.device(device) if device is not None else None
        self._taken = 0
        self._open = self._new_segment(net)
        self._waiting: deque[_Segment] = deque()
        self._average: _Segment | None = None
        self._trained = [False for _ in _batch_norms(net)]

    @property
    def steps(self) -> tuple[int, int] | None:
        """Return the first and last step of the average, from 1; None until the loss has settled."""
        return None if self._average is None else (self._average.first_step, self._average.last_step)

    def after_step(self, net: nn.Module) -> None:
        """Add the weights to the segment, once after every step of the optimizer."""
        if self.finished:
            return
        self._taken += 1
        self._open.model.update_parameters(net)
        self._open.last_step = self._taken
        if net.training:  # in evaluation mode, as after a validation, all seem frozen
            self._trained = [norm.training for norm in _batch_norms(net)]

    def validated(self, loss: float) -> None:
        """Close the segment with the validation loss of the current weights.

        Raises:
            UumambaError: the loss is not finite; an infinite one would make an infinite threshold.
            UsageError: there was no step since the last validation.
        """
        if not math.isfinite(loss):
            raise UumambaError(f"The validation loss is {loss}: training has diverged; lower its learning rate.")
        if self.finished:
            return
        fix = "call after_step(net) after each step"
        require(self._open.model.n_averaged > 0, "validated", got="no step", expected="a step since the last", fix=fix)
        self._open.loss = float(loss)
        self._waiting.append(self._open)
        self._open = self._new_segment(self._open.model.module)
        was_settled = self.threshold is not None
        if not was_settled:
            self._find_start()
        if self.threshold is not None:
            self._extend_average(self.threshold, may_end=was_settled)

    def averaged(self, batches: Iterable[Any] | None = None) -> nn.Module:
        """Return a network with the averaged weights; training can go on.

        Args:
            batches: inputs, or tuples that begin with them, of the training domains, from which batch norms compute
                new statistics, as by torch's ``update_bn``. A network without batch norms, or with frozen ones alone,
                needs none.

        Raises:
            UsageError: there was no validation yet, or batch norms are not frozen and there are no batches.
        """
        segments = [self._average] if self._average is not None else [*self._waiting][-1:]
        fix = "call validated(loss) at least once"
        require(segments, "averaged", got="no average", expected="a validated segment", fix=fix)
        if self._average is None:
            warnings.warn(
                f"The validation loss did not settle: none was the lowest of the {self.n_converge} from it on. These "
                "are the averaged weights of the steps before the last validation.",
                stacklevel=2,
            )
        net = deepcopy(segments[0].model.module)
        norms = dict(zip(_batch_norms(net), self._trained, strict=True))
        for norm in norms:
            norm.training = norm.training and norms[norm]
        _renew_statistics(net, [norm for norm in norms if norms[norm]], batches)
        return net

    def state_dict(self) -> dict[str, Any]:
        """Return every average and loss that is still needed, as tensors and plain values."""
        return {
            "taken": self._taken,
            "threshold": self.threshold,
            "finished": self.finished,
            "trained": self._trained,
            "open": self._open.state_dict(),
            "waiting": [segment.state_dict() for segment in self._waiting],
            "average": None if self._average is None else self._average.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another run stopped, bit for bit."""
        self._taken, self.threshold, self.finished = state["taken"], state["threshold"], state["finished"]
        self._trained = [*state["trained"]]
        net = self._open.model.module
        self._open = self._new_segment(net).load(state["open"])
        self._waiting = deque(self._new_segment(net).load(each) for each in state["waiting"])
        self._average = None if state["average"] is None else self._new_segment(net).load(state["average"])

    def _new_segment(self, net: nn.Module) -> _Segment:
        return _Segment(AveragedModel(net, device=self._device), self._taken + 1, self._taken)

    def _find_start(self) -> None:
        if len(self._waiting) > self.n_converge:
            self._waiting.popleft()
        losses = [segment.loss for segment in self._waiting]
        if len(losses) == self.n_converge and losses[0] == min(losses):
            self.threshold = (1 + self.tolerance_ratio) * fmean(losses)
            self._average = self._waiting.popleft()

    def _extend_average(self, threshold: float, *, may_end: bool) -> None:
        """Add all segments up to the last loss within tolerance; enough later ones end the valley.

        The losses that settled the threshold do not end it, so more than ``n_tolerance`` may wait.
        """
        within = [index for index, segment in enumerate(self._waiting) if segment.loss <= threshold]
        taken = within[-1] + 1 if within else 0
        self.finished = may_end and len(self._waiting) - taken >= self.n_tolerance
        if self.finished:
            taken = len(self._waiting) - self.n_tolerance
        for _ in range(taken):
            self._add(self._waiting.popleft())
        if self.finished:
            self._waiting.clear()

    @torch.no_grad()
    def _add(self, segment: _Segment) -> None:
        assert self._average is not None  # there is one after the start
        average, other = self._average.model, segment.model
        share = int(other.n_averaged) / int(other.n_averaged + average.n_averaged)
        torch._foreach_lerp_([*average.module.parameters()], [*other.module.parameters()], share)
        for mine, latest in zip(average.module.buffers(), other.module.buffers(), strict=True):
            mine.copy_(latest)
        average.n_averaged += other.n_averaged
        self._average.last_step = segment.last_step


def _batch_norms(net: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorm layers that track running statistics."""
    return [module for module in net.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


@torch.no_grad()
def _renew_statistics(net: nn.Module, renewed: Sequence[_BatchNorm], batches: Iterable[Any] | None) -> None:
    """Set means over the batches; torch's ``update_bn`` would change frozen batch norms, too."""
    if not renewed:
        return
    modes = {module: module.training for module in net.modules()}
    momenta = {norm: norm.momentum for norm in renewed}
    net.train()
    for norm in _batch_norms(net):
        norm.training = norm in momenta
    for norm in renewed:
        norm.reset_running_stats()
        norm.momentum = None  # every batch then counts alike
    seen = False
    for batch in () if batches is None else batches:
        net(batch[0] if isinstance(batch, list | tuple) else batch)
        seen = True
    fix = "pass batches of the training domains, for the running statistics of the averaged weights"
    require(seen, "batches", got="none", expected="at least one", fix=fix)
    for norm, momentum in momenta.items():
        norm.momentum = momentum
    for module, is_training in modes.items():
        module.training = is_training
