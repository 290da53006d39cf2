"""State of a run: everything that changes in it, to be stored and restored as one."""

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
from uumamba.runtime.errors import UsageError
from uumamba.runtime.ranks import ALONE, Ranks
from uumamba.runtime.seeds import get_random_state, key_to_seed, seed_everything, set_random_state
from uumamba.training.checkpoint import Checkpoint
from uumamba.training.method_step import MethodStep
from uumamba.types import Batch, Objective

CLOCK_READINGS = ("seconds", "waited_seconds", "used_seconds", "longest_seconds")
"""Progress that no two runs share; all else of a run's progress is the same when it is repeated."""

LONGEST_PROBLEM = 240  # torch lists every weight that differs, on a line each


@dataclass
class Progress:
    """Progress of a run, at any step.

    Attributes:
        epochs_done: complete epochs, validation included.
        steps_in_epoch: steps of the current epoch.
        steps_done: steps of the whole run.
        skipped_steps: steps of the whole run that were skipped because a value was not finite.
        skipped_in_a_row: the latest of them without a good one between.
        best_dice: of the best validation; None before the first.
        lr: of the first parameter group in the latest step.
        loss_sum: of the finite losses of the current epoch.
        loss_count: their number.
        seconds: spent on the current epoch.
        samples_at_once: samples that fit into memory together; None as long as whole batches do.
        waited_seconds: part of ``seconds`` in which a step waited for its batch.
        used_seconds: of the run's budget, up to the latest step or epoch.
        longest_seconds: of a validation, and of a checkpoint.
        is_validated: true if the latest complete epoch was.
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


class EpochLoss:
    """Sum and count of the finite losses of an epoch, kept on the device so that no step waits for it.

    Example:
        >>> mean = EpochLoss(torch.device("cpu"))
        >>> for loss in (1.0, float("nan"), 2.0):
        ...     mean.add(torch.tensor(loss))
        >>> mean.read()
        [3.0, 2.0]
    """

    def __init__(self, device: torch.device, loss_sum: float = 0.0, loss_count: float = 0.0) -> None:
        self._sums = torch.tensor([loss_sum, loss_count], dtype=torch.float32, device=device)

    def add(self, loss: Tensor) -> None:
        """Count one step's loss."""
        loss = loss.reshape(())
        finite = loss.isfinite()
        self._sums += torch.stack([torch.where(finite, loss, 0.0), finite]).to(self._sums)

    def read(self) -> list[float]:
        """Return sum and count; this waits for the device."""
        return self._sums.tolist()


class RunState:
    """Objects that training changes, the progress, and the random generators.

    Args:
        net: the network.
        objective: its state is stored if it is a module.
        optimizer: of the family.
        scheduler: of the learning rate, if there is one.
        average: of the network's weights, if there is one.
        device: its random generator is stored beside the CPU's.
        ranks: the processes that train together: each has random numbers of its own, and a share of the mean loss.
        method: adds a penalty to each step; its state is stored.
    """

    def __init__(
        self,
        net: nn.Module,
        objective: Objective,
        optimizer: SharpnessAware,
        *,
        scheduler: LRScheduler | None,
        average: AveragedModel | None,
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
        self.loss = EpochLoss(device)
        self._random_at_epoch: dict[str, Any] | None = None

    def remaining_batches(self, batches: Callable[[int], Iterable[Batch]], epoch: int) -> Iterator[Batch]:
        """Return the epoch's batches without those that were done before the run was stopped."""
        now, done = get_random_state(self.device), self.progress.steps_in_epoch
        if not done or self._random_at_epoch is None:
            self._random_at_epoch = now
            return iter(batches(epoch))
        # A loader may draw its order from the global generators when it starts, so it starts from the epoch's first
        # state and skips what was done; only then the generators take the state of the next step.
        set_random_state(self._random_at_epoch, self.device)
        found = iter(batches(epoch))
        for _ in islice(found, done):
            pass
        set_random_state(now, self.device)
        return found

    def checkpoint(self, config: Any) -> Checkpoint:
        """Return the current state; a collective call. Tensors are not copied yet."""
        self.progress.loss_sum, self.progress.loss_count = self.ranks.reduce_sum(self.loss.read())
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
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore every object from a checkpoint.

        Raises:
            UsageError: it belongs to another network, objective, optimizer or method.
        """
        self.progress = Progress(**checkpoint.progress)
        if self.ranks.is_rank_zero:  # it takes the sums over all ranks
            self.loss = EpochLoss(self.device, self.progress.loss_sum, self.progress.loss_count)
        _load("network", self.net.load_state_dict, checkpoint.net)
        if isinstance(self.objective, nn.Module):
            _load("objective", self.objective.load_state_dict, checkpoint.objective)
        if self.average is not None:
            # A run that is forced to keep an average from now on starts it at the weights.
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
        """Give every rank but rank 0 random numbers of its own, so that dropout differs between ranks."""
        if not self.ranks.is_rank_zero:
            seed_everything(key_to_seed(torch.initial_seed(), "rank", self.ranks.rank, self.progress.steps_done))
            self._random_at_epoch = get_random_state(self.device)


def make_moving_average(net: nn.Module, decay: float | None) -> AveragedModel | None:
    """Return a copy whose weights follow ``decay * average + (1 - decay) * weights``; buffers are copied."""
    return None if decay is None else AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay))


def _load(name: str, load: Callable[[Any], Any], state: Any) -> None:
    try:
        load(state)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UsageError(
            name,
            got=shorten(str(error), width=LONGEST_PROBLEM, placeholder=" ..."),
            expected="the state of the checkpoint's own object",
            fix="build the object with the checkpoint's configuration",
        ) from error


def _match_parameter_layout(optimizer: SharpnessAware) -> None:
    """Store optimizer state in the memory layout of its weight.

    A checkpoint stores every tensor contiguously. Momentum in another layout than its weight's uses other kernels,
    which may round differently, so a resumed run could drift from one that never stopped.
    """
    for memory in (optimizer.state, optimizer.base.state):
        for parameter, values in memory.items():
            for name, value in values.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
