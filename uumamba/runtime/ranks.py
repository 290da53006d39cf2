"""Rank of a process in its training group.

A single process is rank 0 of 1.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import nn

from uumamba.runtime.errors import require

T = TypeVar("T")


class Ranks(Protocol):
    """Collective calls of the processes that train one network together.

    The bodies in this protocol are those of a single process. Every method is collective: all ranks call it, in the
    same order, and each waits until the others have called it.
    """

    rank: int = 0
    count: int = 1
    is_rank_zero: bool = True
    """Whether this is the rank that writes files and prints."""

    def wrap(self, net: nn.Module) -> nn.Module:
        """Return the network wrapped to average gradients over ranks.

        The network must be on its device.
        """
        return net

    def broadcast_buffers(self, net: nn.Module) -> None:
        """Copy rank 0's buffers, such as running statistics, to every rank."""
        return

    def reduce_max(self, number: int) -> int:
        """Return the largest number of all ranks."""
        return number

    def reduce_sum(self, numbers: Sequence[float]) -> list[float]:
        """Return the sums over ranks, number by number, in double precision."""
        return list(numbers)

    def broadcast(self, tree: Any) -> Any:
        """Return rank 0's tree on every rank.

        A tree is made of lists and dictionaries of tensors and plain values. Trees of other ranks are ignored.
        """
        return tree

    def gather(self, tree: Any) -> list[Any]:
        """Return the trees of all ranks, in order of ranks."""
        return [tree]

    def on_rank_zero(self, work: Callable[[], T]) -> T | None:
        """Run ``work`` on rank 0 and return its result there.

        The other ranks wait without a time limit and get None.
        """
        return work()


class Alone(Ranks):
    """Single process: collective calls return at once.

    Example:
        >>> ranks = Alone()
        >>> ranks.is_rank_zero, ranks.reduce_max(3), ranks.gather("here")
        (True, 3, ['here'])
    """


ALONE = Alone()


@dataclass(frozen=True)
class Place:
    """Rank of this process among the processes started together.

    Attributes:
        rank: in the group, from 0.
        count: number of processes in the group.
        local_rank: on this machine, from 0.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Place":
        """Read torchrun's RANK, WORLD_SIZE and LOCAL_RANK.

        Without RANK or WORLD_SIZE the process is a single one. The variables identify a process and configure nothing.

        Raises:
            UsageError: the variables contradict each other.

        Example:
            >>> Place.from_environment({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"})
            Place(rank=3, count=4, local_rank=1)
        """
        if "RANK" not in environment or "WORLD_SIZE" not in environment:
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        found = tuple(environment.get(name, "") for name in names)
        try:
            place = cls(*map(int, found))
        except ValueError:
            place = cls(rank=-1)
        require(
            0 <= place.rank < place.count and place.local_rank >= 0,
            ", ".join(names),
            got=found,
            expected="0 <= RANK < WORLD_SIZE",
            fix="start with torchrun, or unset RANK to train in one process",
        )
        return place

    def device(self, name: str, *, found: int) -> str:
        """Return this process's device, one CUDA device per process.

        Args:
            name: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
            found: number of CUDA devices on this machine.

        Raises:
            UsageError: one device is given for several processes, or there are fewer devices than processes.

        Example:
            >>> Place(rank=3, count=4, local_rank=1).device("cuda", found=2)
            'cuda:1'
        """
        if self.count == 1 or name == "cpu":
            return name
        require(
            name == "cuda",
            "--device",
            got=name,
            expected=f"cuda or cpu with {self.count} processes",
            fix="leave --device out",
        )
        require(
            self.local_rank < found,
            "LOCAL_RANK",
            got=self.local_rank,
            expected=f"a number below {found}, the number of CUDA devices",
            fix="start one process per device (torchrun --nproc-per-node)",
        )
        return f"cuda:{self.local_rank}"
