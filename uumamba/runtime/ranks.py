"""Rank of a process in its training group; a single process is rank 0 of 1."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import nn

from uumamba.runtime.errors import require

T = TypeVar("T")


class Ranks(Protocol):
    """The processes that train one network together, seen from one of them; the bodies are those of a single process.

    Every method is collective: all ranks call it, in the same order, and each waits until the others have.
    """

    rank: int = 0
    count: int = 1
    is_rank_zero: bool = True
    """True on the rank that writes files and prints."""

    def wrap(self, net: nn.Module) -> nn.Module:
        """Return the network, on its device, wrapped so that gradients are averaged over ranks."""
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
        """Return rank 0's lists and dictionaries of tensors and plain values; those of other ranks are ignored."""
        return tree

    def gather(self, tree: Any) -> list[Any]:
        """Return every rank's lists and dictionaries of tensors and plain values, in the order of ranks."""
        return [tree]

    def on_rank_zero(self, work: Callable[[], T]) -> T | None:
        """Run ``work`` on rank 0 and return its result there, None elsewhere; the others wait for any time."""
        return work()


class Alone(Ranks):
    """Single process, which never waits.

    Example:
        >>> ranks = Alone()
        >>> ranks.is_rank_zero, ranks.reduce_max(3), ranks.gather("here")
        (True, 3, ['here'])
    """


ALONE = Alone()


@dataclass(frozen=True)
class Place:
    """Rank of this process among those that were started together.

    Attributes:
        rank: in the whole group, from 0.
        count: processes in the group.
        local_rank: on this machine, from 0.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Place":
        """Read torchrun's RANK, WORLD_SIZE and LOCAL_RANK; a single process where RANK or WORLD_SIZE is missing.

        They identify a process and configure nothing, so they may be environment variables.

        Raises:
            UsageError: they contradict each other.

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
        """Return this process's own device: the processes of one machine take one CUDA device each.

        Args:
            name: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
            found: CUDA devices on this machine.

        Raises:
            UsageError: one device is given to several processes, or there are fewer devices than processes.

        Example:
            >>> Place(rank=3, count=4, local_rank=1).device("cuda", found=2)
            'cuda:1'
        """
        if self.count == 1 or name == "cpu":
            return name
        require(name == "cuda", "--device", got=name, expected=f"cuda or no --device, with {self.count} processes")
        require(
            self.local_rank < found,
            "LOCAL_RANK",
            got=self.local_rank,
            expected=f"a number below that of CUDA devices ({found})",
            fix="start as many processes as there are devices (torchrun --nproc-per-node)",
        )
        return f"cuda:{self.local_rank}"
