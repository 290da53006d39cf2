"""Stochastic weight averaging, densely, over the valley of the validation loss."""

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

from uumamba.runtime.errors import UsageError


@dataclass
class _Segment:
    """The average of the steps between two validations."""

    model: AveragedModel
    first_step: int
    last_step: int
    loss: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        state = {"first_step": self.first_step, "last_step": self.last_step, "loss": self.loss}
        return state | {"model": self.model.state_dict()}

    def loaded(self, state: dict[str, Any]) -> Self:
        self.model.load_state_dict(state["model"])
        self.first_step, self.last_step, self.loss = state["first_step"], state["last_step"], state["loss"]
        return self


class SWAD:
    r"""The average of the weights of every step between where the validation loss settles and where it rises again.

    With :math:`E_i` the i-th validation loss, the average begins at the first s that no loss after it in its window
    undercuts, and ends with e before the first :math:`N_e` losses in a row above the tolerance l:

    .. math::
        E_s = \min_{0 \le j < N_s} E_{s + j}, \qquad
        l = \frac{1 + r}{N_s} \sum_{j=0}^{N_s - 1} E_{s + j}, \qquad
        \min_{1 \le j \le N_e} E_{e + j} > l, \qquad
        \bar w = \mathrm{mean}(w_t)\ \text{of every step t of segments s to e}

    where segment i are the steps after validation i - 1, up to i. Any loop can drive it: :meth:`after_step` once after
    every step, :meth:`validated` after every validation, :meth:`averaged` at the end. Validate on data of the
    training domains, some 50 to 100 steps apart; the learning rate should be constant.

    Edge cases. The loss never settles: the last segment's average, with a warning. Training ends before the valley
    does: losses above l at the very end are left out. After the end nothing is averaged any more and ``finished`` is
    True. Steps after the last validation are in no segment. A batch norm that is frozen, in evaluation mode while the
    network is in training mode, keeps its statistics and is frozen in the average too; what counts is the latest step
    that was told of with the network in training mode, and without one all are frozen. Memory: two copies of the
    weights, and one for each of the latest validations (``n_tolerance`` at most) that were above the tolerance, before
    the start ``n_converge``.

    Args:
        net: the network; it is copied.
        n_converge: :math:`N_s`.
        n_tolerance: :math:`N_e`.
        tolerance_ratio: r; the paper took 0.2 for VLCS.
        device: where the copies are kept; None: where the network is.

    Attributes:
        threshold: l; None until the loss has settled.
        finished: whether the valley has ended.

    Raises:
        ValueError: an option is out of range, or a loss is not finite.

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
        if min(n_converge, n_tolerance) < 1:
            raise ValueError(f"n_converge and n_tolerance must be at least 1, got {n_converge} and {n_tolerance}")
        if not 0 <= tolerance_ratio < math.inf:
            raise ValueError(f"tolerance_ratio must not be negative, got {tolerance_ratio}")
        self.n_converge = n_converge
        self.n_tolerance = n_tolerance
        self.tolerance_ratio = tolerance_ratio
        self.threshold: float | None = None
        self.finished = False
        self._device = torch.device(device) if device is not None else None
        self._taken = 0
        self._open = self._begun(net)
        self._waiting: deque[_Segment] = deque()
        self._average: _Segment | None = None
        self._trained = [False for _ in _batch_norms(net)]

    @property
    def steps(self) -> tuple[int, int] | None:
        """First and last step of the average, counted from 1; None until the loss has settled."""
        return None if self._average is None else (self._average.first_step, self._average.last_step)

    def after_step(self, net: nn.Module) -> None:
        """Take the weights in, once after every step of the optimizer."""
        if self.finished:
            return
        self._taken += 1
        self._open.model.update_parameters(net)
        self._open.last_step = self._taken
        if net.training:  # one in evaluation mode, as a validation leaves it, does not say which are frozen
            self._trained = [norm.training for norm in _batch_norms(net)]

    def validated(self, loss: float) -> None:
        """Close the segment with the validation loss of the present weights.

        Raises:
            ValueError: the loss is not finite; an infinite one would make an infinite threshold, a valley without end.
            UsageError: no step was taken since the last validation.
        """
        if not math.isfinite(loss):
            raise ValueError(
                f"The validation loss must be a finite number, got {loss}: training has diverged; lower its learning "
                "rate."
            )
        if self.finished:
            return
        if int(self._open.model.n_averaged) == 0:
            raise UsageError("validated was called twice without a step between; call after_step(net) after each step.")
        self._open.loss = float(loss)
        self._waiting.append(self._open)
        self._open = self._begun(self._open.model.module)
        if self.threshold is None:
            self._look_for_start()
        else:
            self._look_for_end()

    def averaged(self, batches: Iterable[Any] | None = None) -> nn.Module:
        """A network with the averaged weights; training can go on.

        Args:
            batches: inputs, or tuples that begin with them, of the training domains, from which batch norms take their
                statistics anew, as by torch's ``update_bn``. A network whose batch norms are all frozen, or that has
                none, needs no batches.

        Raises:
            UsageError: nothing was validated yet; or batch norms are not frozen and there are no batches.
        """
        segments = [self._average] if self._average is not None else [*self._waiting][-1:]
        if not segments:
            raise UsageError("There is no average yet; call validated(loss) at least once.")
        if self._average is None:
            warnings.warn(
                f"The validation loss did not settle: none was the lowest of the {self.n_converge} that began with it. "
                "These are the averaged weights of the steps before the last validation.",
                stacklevel=2,
            )
        net = deepcopy(segments[0].model.module)
        renewed = []
        for norm, trained in zip(_batch_norms(net), self._trained, strict=True):
            if trained:
                renewed.append(norm)
            else:
                norm.eval()
        if renewed:
            _renew_statistics(net, renewed, batches)
        return net

    def state_dict(self) -> dict[str, Any]:
        """Every average and loss that is still needed, as tensors and plain values."""
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
        """Take up where another run stopped, bit for bit."""
        self._taken, self.threshold, self.finished = state["taken"], state["threshold"], state["finished"]
        net = self._open.model.module
        self._trained = [*state.get("trained", [True] * len(_batch_norms(net)))]  # an earlier program wrote none
        self._open = self._begun(net).loaded(state["open"])
        self._waiting = deque(self._begun(net).loaded(each) for each in state["waiting"])
        self._average = None if state["average"] is None else self._begun(net).loaded(state["average"])

    def _begun(self, net: nn.Module) -> _Segment:
        return _Segment(AveragedModel(net, device=self._device), self._taken + 1, self._taken)

    def _look_for_start(self) -> None:
        if len(self._waiting) > self.n_converge:
            self._waiting.popleft()
        losses = [segment.loss for segment in self._waiting]
        if len(losses) == self.n_converge and losses[0] == min(losses):
            self.threshold = (1 + self.tolerance_ratio) * fmean(losses)
            self._average = self._waiting.popleft()
            self._take_in_valley()

    def _look_for_end(self) -> None:
        """The losses that the start was found with do not end the valley, so more may wait than end it."""
        self._take_in_valley()
        if len(self._waiting) >= self.n_tolerance:
            for _ in range(len(self._waiting) - self.n_tolerance):
                self._take_in(self._waiting.popleft())
            self._waiting.clear()
            self.finished = True

    def _take_in_valley(self) -> None:
        """All up to the last loss within tolerance; those after it wait."""
        assert self.threshold is not None  # the caller asks only after the start
        within = [index for index, segment in enumerate(self._waiting) if segment.loss <= self.threshold]
        for _ in range(within[-1] + 1 if within else 0):
            self._take_in(self._waiting.popleft())

    @torch.no_grad()
    def _take_in(self, segment: _Segment) -> None:
        assert self._average is not None  # the caller asks only after the start
        average, other = self._average.model, segment.model
        share = int(other.n_averaged) / int(other.n_averaged + average.n_averaged)
        torch._foreach_lerp_([*average.module.parameters()], [*other.module.parameters()], share)
        for mine, latest in zip(average.module.buffers(), other.module.buffers(), strict=True):
            mine.copy_(latest)
        average.n_averaged += other.n_averaged
        self._average.last_step = segment.last_step


def _batch_norms(net: nn.Module) -> list[_BatchNorm]:
    """Those with running statistics."""
    return [module for module in net.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


@torch.no_grad()
def _renew_statistics(net: nn.Module, renewed: Sequence[_BatchNorm], batches: Iterable[Any] | None) -> None:
    """The means over the batches; torch's ``update_bn`` would do it to frozen batch norms, too."""
    modes = {module: module.training for module in net.modules()}
    momenta = {norm: norm.momentum for norm in renewed}
    net.train()
    for norm in _batch_norms(net):
        norm.training = norm in momenta
    for norm in renewed:
        norm.reset_running_stats()
        norm.momentum = None  # every batch then counts alike
    seen = False
    for batch in batches if batches is not None else ():
        net(batch[0] if isinstance(batch, list | tuple) else batch)
        seen = True
    if not seen:
        raise UsageError(
            "The averaged weights need running statistics of their own and there are no batches to take them from; "
            "pass batches of the training domains."
        )
    for norm, momentum in momenta.items():
        norm.momentum = momentum
    for module, training in modes.items():
        module.training = training
