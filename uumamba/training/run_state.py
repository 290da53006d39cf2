"""Everything of a run that changes, as one thing that can be kept and brought back."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from uumamba.optim import SharpnessAware
from uumamba.runtime.errors import UsageError
from uumamba.runtime.random_state import random_state, set_random_state
from uumamba.runtime.ranks import ALONE, Ranks
from uumamba.runtime.seeds import key_to_seed, seed_everything
from uumamba.training.checkpoint import Checkpoint
from uumamba.training.method_step import MethodStep
from uumamba.training.progress import EpochLoss, Progress
from uumamba.types import Batch, Objective

LONGEST_PROBLEM = 240  # torch names every weight that differs, on a line each


class RunState:
    """The objects that training changes, how far it is, and the random generators.

    Args:
        net: the network.
        objective: its state is kept where it is a module.
        optimizer: of the family.
        scheduler: of the learning rate, if there is one.
        average: of the network's weights, if there is one.
        device: whose random generator is kept beside the CPU's.
        ranks: the processes that train together: each has random numbers of its own, and a share of the mean loss.
        method: what is added to each step, if anything is; what it keeps is kept.
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

    def batches_left(self, batches: Callable[[int], Iterable[Batch]], epoch: int) -> Iterator[Batch]:
        """The epoch's batches without those that were done before the run was stopped."""
        now, done = random_state(self.device), self.progress.steps_in_epoch
        if not done or self._random_at_epoch is None:
            self._random_at_epoch = now
            return iter(batches(epoch))
        # A loader may draw its order from the global generators when it starts: so it starts from the epoch's first
        # state, passes over what was done, and only then the generators take the state of the step that comes next.
        set_random_state(self._random_at_epoch, self.device)
        found = iter(batches(epoch))
        for _ in islice(found, done):
            pass
        set_random_state(now, self.device)
        return found

    def checkpoint(self, config: Any) -> Checkpoint:
        """The state as it is now, on every rank; tensors are not copied yet."""
        self.progress.loss_sum, self.progress.loss_count = self.ranks.total(self.loss.read())
        now = random_state(self.device)
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
        """Bring every object to a checkpoint's state.

        Raises:
            UsageError: it is of another network, objective, optimizer or method.
        """
        self.progress = Progress(**checkpoint.progress)
        if self.ranks.first:  # it takes the sums over all
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
        _lay_out_as_parameters(self.optimizer)
        if self.scheduler is not None and checkpoint.scheduler is not None:
            self.scheduler.load_state_dict(checkpoint.scheduler)
        if self.method is not None:
            _load("method", self.method.restore, checkpoint.method)
        everyone = [checkpoint.random, *checkpoint.random.get("others", ())]
        if self.ranks.rank < len(everyone):
            self._random_at_epoch = everyone[self.ranks.rank]["at_epoch"]
            set_random_state(everyone[self.ranks.rank]["now"], self.device)
        else:
            self.part_random_numbers()

    def part_random_numbers(self) -> None:
        """Give every rank but the first random numbers of its own, so that no two drop out the same units."""
        if not self.ranks.first:
            seed_everything(key_to_seed(torch.initial_seed(), "rank", self.ranks.rank, self.progress.steps_done))
            self._random_at_epoch = random_state(self.device)


def moving_average(net: nn.Module, decay: float | None) -> AveragedModel | None:
    """A copy of the network whose weights follow ``decay * average + (1 - decay) * weights``, buffers as they are."""
    return None if decay is None else AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay))


def _load(name: str, load: Callable[[Any], Any], state: Any) -> None:
    try:
        load(state)
    except (RuntimeError, ValueError, KeyError) as error:
        problem = shorten(str(error), width=LONGEST_PROBLEM, placeholder=" ...")
        raise UsageError(
            f"The checkpoint does not fit this run's {name} ({problem}); build the one that it was made with."
        ) from error


def _lay_out_as_parameters(optimizer: SharpnessAware) -> None:
    """Momentum in another layout than its weight's goes through other kernels, which may round otherwise.

    A checkpoint stores every tensor contiguously, so without this a resumed run could drift from one that never
    stopped.
    """
    for memory in (optimizer.state, optimizer.base.state):
        for parameter, values in memory.items():
            for name, value in values.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
