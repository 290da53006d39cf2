"""Stochastic weight averaging densely over the valley of the validation loss."""

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

from uumamba.runtime.errors import require
from uumamba.runtime.options import NonNegative, PositiveInt, check_options


@dataclass
class _Segment:
    """Average of the weights between two validations."""

    model: AveragedModel
    first_step: int
    last_step: int
    loss: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        return vars(self) | {"model": self.model.state_dict()}

    def load(self, state: dict[str, Any]) -> Self:
        self.model.load_state_dict(state["model"])
        self.first_step, self.last_step, self.loss = state["first_step"], state["last_step"], state["loss"]
        return self


class SWAD:
    r"""Weight average of every step in the valley of the validation loss.

    With :math:`E_i` the i-th validation loss, the average begins at the first s whose loss is the lowest of its window,
    and ends with e before the first :math:`N_e` losses in a row above the tolerance l:

    .. math::
        E_s = \min_{0 \le j < N_s} E_{s + j}, \qquad
        l = \frac{1 + r}{N_s} \sum_{j=0}^{N_s - 1} E_{s + j}, \qquad
        \min_{1 \le j \le N_e} E_{e + j} > l, \qquad
        \bar w = \mathrm{mean}(w_t)\ \text{of every step t of segments s to e}

    where segment i has the steps between validations i - 1 and i. In any loop, call :meth:`after_step` once after every
    step, :meth:`validated` after every validation and :meth:`averaged` at the end. Validate on data of the training
    domains every 50 to 100 steps, and keep the learning rate constant.

    **Edge cases.** If the loss never settles, the result is the last segment's average, with a warning. If training
    ends before the valley, the last losses above l are left out. After the end of the valley nothing is averaged and
    ``finished`` is True. Steps after the last validation are in no segment.

    **Batch norms.** A batch norm is frozen if it is in evaluation mode while the network is in training mode; the
    latest :meth:`after_step` in training mode decides, and without such a step all are frozen. A frozen batch norm
    keeps its statistics and is also frozen in the average.

    **Memory.** Two copies of the weights, and a copy for each of the latest validations above the tolerance (at most
    ``n_tolerance``; before the start ``n_converge``). :meth:`averaged` makes two more copies.

    Args:
        net: the network; SWAD copies the weights.
        n_converge: :math:`N_s`.
        n_tolerance: :math:`N_e`.
        tolerance_ratio: r; the paper uses 0.2 for VLCS.
        device: device of the copies; None for the network's device.

    Attributes:
        threshold: l; None until the loss has settled.
        finished: True after the end of the valley.

    Raises:
        UsageError: an option is out of range, a method is called out of order, or a loss is not finite.

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
        Differs from the paper: validation every few steps, and an average that ends at the last loss within the
        tolerance, both as in the paper's code. The code also averages segments before s with losses below l; here, as
        in the paper, s is the first segment. There the code counts a segment twice or drops one; here each segment from
        s to e counts once.
    """

    @check_options
    def __init__(
        self,
        net: nn.Module,
        *,
        n_converge: PositiveInt = 3,
        n_tolerance: PositiveInt = 6,
        tolerance_ratio: NonNegative = 0.3,
        device: torch.device | str | None = None,
    ) -> None:
        self.n_converge = n_converge
        self.n_tolerance = n_tolerance
        self.tolerance_ratio = tolerance_ratio
        self.threshold: float | None = None
        self.finished = False
        self._device = torch.device(device) if device is not None else None
        self._step = 0
        self._current = self._new_segment(net)
        self._pending: deque[_Segment] = deque()
        self._average: _Segment | None = None
        self._trained = [False for _ in _batch_norms(net)]

    @property
    def steps(self) -> tuple[int, int] | None:
        """First and last averaged step, from 1; None until the loss settles."""
        return None if self._average is None else (self._average.first_step, self._average.last_step)

    def after_step(self, net: nn.Module) -> None:
        """Add the weights to the current segment; call once per optimizer step."""
        if self.finished:
            return
        self._step += 1
        self._current.model.update_parameters(net)
        self._current.last_step = self._step
        if net.training:  # in evaluation mode all batch norms look frozen
            self._trained = [norm.training for norm in _batch_norms(net)]

    def validated(self, loss: float) -> None:
        """End the current segment with the validation loss of the weights.

        Raises:
            UsageError: the loss is not finite (an infinite loss would give an infinite threshold), or there was no step
                since the last validation.
        """
        require(math.isfinite(loss), "loss", got=loss, expected="a finite number", fix="lower the learning rate")
        if self.finished:
            return
        require(
            self._current.model.n_averaged > 0,
            "validated",
            got="no step",
            expected="at least one step since the last validation",
            fix="call after_step(net) after each step",
        )
        self._current.loss = float(loss)
        self._pending.append(self._current)
        self._current = self._new_segment(self._current.model.module)
        was_settled = self.threshold is not None
        if not was_settled:
            self._find_start()
        if self.threshold is not None:
            self._extend_average(self.threshold, may_end=was_settled)

    def averaged(self, batches: Iterable[Any] | None = None) -> nn.Module:
        """Return a copy of the network with the averaged weights.

        Args:
            batches: inputs from the training domains, or tuples that begin with inputs. Batch norms compute new
                statistics from these inputs, as in torch's ``update_bn``. Not needed without batch norms, or if all
                batch norms are frozen.

        Raises:
            UsageError: there was no validation yet, or a batch norm is not frozen and there are no batches.
        """
        segments = [self._average] if self._average is not None else [*self._pending][-1:]
        require(
            segments,
            "averaged",
            got="no average",
            expected="a validated segment",
            fix="call validated(loss) at least once",
        )
        if self._average is None:
            warnings.warn(
                f"The validation loss did not settle: no loss was the lowest of {self.n_converge} in a row from it on. "
                "The result averages the steps before the last validation only. Train longer, or lower n_converge.",
                stacklevel=2,
            )
        net = deepcopy(segments[0].model.module)
        for norm, is_trained in zip(_batch_norms(net), self._trained, strict=True):
            norm.training = norm.training and is_trained
        if any(self._trained):
            _renew_statistics(net, self._trained, batches)
        return net

    def state_dict(self) -> dict[str, Any]:
        """Return all averages and losses, as tensors and plain values."""
        return {
            "taken": self._step,
            "threshold": self.threshold,
            "finished": self.finished,
            "trained": self._trained,
            "open": self._current.state_dict(),
            "waiting": [segment.state_dict() for segment in self._pending],
            "average": None if self._average is None else self._average.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of another run, bit for bit."""
        self._step, self.threshold, self.finished = state["taken"], state["threshold"], state["finished"]
        self._trained = [*state["trained"]]
        net = self._current.model.module
        self._current = self._new_segment(net).load(state["open"])
        self._pending = deque(self._new_segment(net).load(each) for each in state["waiting"])
        self._average = None if state["average"] is None else self._new_segment(net).load(state["average"])

    def _new_segment(self, net: nn.Module) -> _Segment:
        return _Segment(AveragedModel(net, device=self._device), self._step + 1, self._step)

    def _find_start(self) -> None:
        if len(self._pending) > self.n_converge:
            self._pending.popleft()
        losses = [segment.loss for segment in self._pending]
        if len(losses) == self.n_converge and losses[0] == min(losses):
            self.threshold = (1 + self.tolerance_ratio) * fmean(losses)
            self._average = self._pending.popleft()

    def _extend_average(self, threshold: float, *, may_end: bool) -> None:
        """Add the segments up to the last loss within tolerance.

        ``n_tolerance`` later segments end the valley. The losses that set the threshold do not end the valley, so more
        than ``n_tolerance`` segments may be pending.
        """
        within = [index for index, segment in enumerate(self._pending) if segment.loss <= threshold]
        added = within[-1] + 1 if within else 0
        self.finished = may_end and len(self._pending) - added >= self.n_tolerance
        if self.finished:
            added = len(self._pending) - self.n_tolerance
        for _ in range(added):
            self._add(self._pending.popleft())
        if self.finished:
            self._pending.clear()

    @torch.no_grad()
    def _add(self, segment: _Segment) -> None:
        assert self._average is not None  # set by _find_start
        average, other = self._average.model, segment.model
        share = int(other.n_averaged) / int(other.n_averaged + average.n_averaged)
        torch._foreach_lerp_([*average.module.parameters()], [*other.module.parameters()], share)
        for buffer, latest in zip(average.module.buffers(), other.module.buffers(), strict=True):
            buffer.copy_(latest)
        average.n_averaged += other.n_averaged
        self._average.last_step = segment.last_step


def _batch_norms(net: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorm layers that track running statistics."""
    return [module for module in net.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


@torch.no_grad()
def _renew_statistics(net: nn.Module, is_trained: Sequence[bool], batches: Iterable[Any] | None) -> None:
    """Compute the running statistics of all trained batch norms from batches.

    Torch's ``update_bn`` would also change frozen batch norms. A copy of the network runs the batches, so that modes
    and momenta of ``net`` stay.
    """
    copy = deepcopy(net).train()
    for norm, is_renewed in zip(_batch_norms(copy), is_trained, strict=True):
        norm.training = is_renewed
        if is_renewed:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
    is_empty = True
    for batch in () if batches is None else batches:
        copy(batch[0] if isinstance(batch, list | tuple) else batch)
        is_empty = False
    require(
        not is_empty,
        "batches",
        got="no batch",
        expected="at least one batch",
        fix="pass batches of the training domains, for the running statistics of the averaged weights",
    )
    net.load_state_dict(copy.state_dict())
