"""Complete state of a run, stored in and restored from a checkpoint."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from uumamba.optim import SharpnessAware
from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.network import bare_network
from uumamba.runtime.ranks import ALONE, Ranks
from uumamba.runtime.seeds import get_random_state, key_to_seed, seed_everything, set_random_state
from uumamba.training.checkpoint import Checkpoint
from uumamba.training.method_step import MethodStep
from uumamba.types import Batch, Objective

LONGEST_REASON = 240  # torch lists every wrong weight on its own line


@dataclass
class Progress:
    """Progress of a run, at any step.

    Attributes:
        epochs_done: complete epochs, including their validation.
        steps_in_epoch: steps of the current epoch.
        steps_done: steps of the run.
        skipped_steps: steps of the run that were skipped because a value was not finite.
        skipped_in_a_row: number of the latest consecutive skipped steps.
        best_dice: Dice of the best validation; None before the first.
        lr: learning rate of the first parameter group in the latest step.
        loss_sum: sum of the finite losses of the current epoch.
        loss_count: number of the finite losses of the current epoch.
        seconds: duration of the current epoch so far.
        samples_at_once: largest micro-batch that fits into memory; None if whole batches fit.
        waited_seconds: part of ``seconds`` in which steps waited for their batches.
        used_seconds: used time of the budget, up to the latest step or epoch.
        longest_seconds: longest duration of a validation and of a checkpoint.
        is_validated: whether the latest complete epoch was validated.
    """

    epochs_done: int = 0
    steps_in_epoch: int = 0
    steps_done: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    best_dice: float | None = None
    lr: float | None = None
    loss_sum: float = 0.0
    loss_count: float = 0.0
    seconds: float = 0.0
    samples_at_once: int | None = None
    waited_seconds: float = 0.0
    used_seconds: float = 0.0
    longest_seconds: dict[str, float] = field(default_factory=dict)
    is_validated: bool = False


class MovingAverage(AveragedModel):
    """Exponential moving average of a network's weights.

    An update gives ``decay * average + (1 - decay) * weights``; buffers are copied. ``module`` is the averaged network.

    Args:
        net: the network, copied without its wrappers.
        decay: share of the average that an update keeps, from 0 to 1.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        require(0 <= decay <= 1, "decay", got=decay, expected="a number from 0 to 1")
        super().__init__(bare_network(net), multi_avg_fn=get_ema_multi_avg_fn(decay))


class RunState:
    """Objects that training changes, the progress, and the random generators.

    ``loss_sums`` holds sum and count of the epoch's finite losses on the device, so that no step waits for the device.

    Args:
        net: the network.
        objective: the objective; its state is stored if it is a module.
        optimizer: an optimizer of uumamba.optim.
        scheduler: learning rate schedule, or None.
        average: moving average of the network's weights, or None.
        device: device whose random generator is stored in addition to the CPU's.
        ranks: the processes that train together; each has its own random numbers and a share of the mean loss.
        method: penalty of each step; its state is stored.
    """

    def __init__(
        self,
        net: nn.Module,
        objective: Objective,
        optimizer: SharpnessAware,
        *,
        scheduler: LRScheduler | None,
        average: MovingAverage | None,
        device: torch.device,
        ranks: Ranks = ALONE,
        method: MethodStep | None = None,
    ) -> None:
        self.net = net
        self.objective = objective
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.average = average
        self.device = device
        self.ranks = ranks
        self.method = method
        self.progress = Progress()
        self.loss_sums = torch.zeros(2, device=device)
        self._random_at_epoch: dict[str, Any] | None = None

    def remaining_batches(self, batches: Callable[[int], Iterable[Batch]], epoch: int) -> Iterator[Batch]:
        """Return the epoch's batches that are not trained on yet."""
        now, done = get_random_state(self.device), self.progress.steps_in_epoch
        if not done or self._random_at_epoch is None:
            self._random_at_epoch = now
            return iter(batches(epoch))
        # A loader may draw its order from the global generators when it starts. It therefore starts from their state at
        # the epoch's begin and skips the finished batches; then the generators get the state of the next step.
        set_random_state(self._random_at_epoch, self.device)
        remaining = iter(batches(epoch))
        for _ in islice(remaining, done):
            pass
        set_random_state(now, self.device)
        return remaining

    def add_loss(self, loss: Tensor) -> None:
        """Add the loss of one step to ``loss_sums`` if it is finite."""
        is_finite = loss.reshape(()).isfinite()
        self.loss_sums += torch.stack([torch.where(is_finite, loss.reshape(()), 0.0), is_finite]).to(self.loss_sums)

    def checkpoint(self, config: Any, observers: dict[str, Any] | None = None) -> Checkpoint:
        """Return the current state, without copying tensors; a collective call.

        Args:
            config: configuration of the run.
            observers: states of its observers, by their keys.
        """
        self.progress.loss_sum, self.progress.loss_count = self.ranks.reduce_sum(self.loss_sums.tolist())
        now = get_random_state(self.device)
        at_epoch = self._random_at_epoch if self.progress.steps_in_epoch else now
        own, *others = self.ranks.gather({"now": now, "at_epoch": at_epoch})
        return Checkpoint(
            net=self.net.state_dict(),
            ema=None if self.average is None else self.average.module.state_dict(),
            objective=self.objective.state_dict() if isinstance(self.objective, nn.Module) else {},
            optimizer=self.optimizer.state_dict(),
            scheduler=None if self.scheduler is None else self.scheduler.state_dict(),
            random=own | ({"others": others} if others else {}),
            progress=asdict(self.progress),
            config=config,
            method={} if self.method is None else self.method.state(),
            observers=observers or {},
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore every object from a checkpoint.

        Raises:
            UsageError: the checkpoint belongs to another network, objective, optimizer or method.
        """
        self.progress = Progress(**checkpoint.progress)
        if self.ranks.is_rank_zero:  # the stored sums are those over all ranks
            self.loss_sums = torch.tensor([self.progress.loss_sum, self.progress.loss_count], device=self.device)
        _load("network", self.net.load_state_dict, checkpoint.net)
        if isinstance(self.objective, nn.Module):
            _load("objective", self.objective.load_state_dict, checkpoint.objective)
        if self.average is not None:
            # A run with a new average (--force) starts the average at the weights.
            weights = checkpoint.net if checkpoint.ema is None else checkpoint.ema
            _load("average", self.average.module.load_state_dict, weights)
            self.average.n_averaged.fill_(self.progress.steps_done)
        _load("optimizer", self.optimizer.load_state_dict, checkpoint.optimizer)
        _match_parameter_layout(self.optimizer)
        if self.scheduler is not None and checkpoint.scheduler is not None:
            self.scheduler.load_state_dict(checkpoint.scheduler)
        if self.method is not None:
            _load("method", self.method.restore, checkpoint.method)
        everyone = [checkpoint.random, *checkpoint.random.get("others", ())]
        if self.ranks.rank < len(everyone):
            own = everyone[self.ranks.rank]
            self._random_at_epoch = own["at_epoch"]
            set_random_state(own["now"], self.device)
        else:
            self.seed_per_rank()

    def seed_per_rank(self) -> None:
        """Seed each rank except rank 0 differently, for different dropout masks."""
        if not self.ranks.is_rank_zero:
            seed_everything(key_to_seed(torch.initial_seed(), "rank", self.ranks.rank, self.progress.steps_done))
            self._random_at_epoch = get_random_state(self.device)


def _load(name: str, load: Callable[[Any], Any], state: Any) -> None:
    try:
        load(state)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UsageError(
            name,
            got=shorten(str(error), width=LONGEST_REASON, placeholder=" ..."),
            expected=f"the {name} of the checkpoint",
            fix=f"build the {name} with the checkpoint's configuration",
        ) from error


def _match_parameter_layout(optimizer: SharpnessAware) -> None:
    """Store optimizer state in the memory layout of its weight.

    A checkpoint stores every tensor contiguously. Momentum in a layout different from its weight's uses other kernels,
    which may round differently, so a resumed run could differ from an uninterrupted one.
    """
    for memory in (optimizer.state, optimizer.base.state):
        for parameter, values in memory.items():
            for name, value in values.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
