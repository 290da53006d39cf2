"""What a process knows of the group that it trains in; alone it is the first of one."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import nn

from uumamba.runtime.errors import UsageError

T = TypeVar("T")


class Ranks(Protocol):
    """The processes that train one network together, as one of them sees them.

    All methods are for all ranks at once, in the same order: a rank that calls one waits until every other has.
    """

    rank: int
    count: int

    @property
    def first(self) -> bool:
        """Whether this rank is the one that writes files and talks to people."""

    def wrap(self, net: nn.Module) -> nn.Module:
        """The network on its device, so wrapped that ranks average its gradients."""

    def share_buffers(self, net: nn.Module) -> None:
        """Give every rank the first one's running statistics."""

    def largest(self, number: int) -> int:
        """The largest of all ranks' numbers; of 0 and 1, whether any says so."""

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Sums over ranks, number by number."""

    def from_first(self, tree: Any) -> Any:
        """The first rank's lists and dictionaries of tensors and plain values; the others' are not looked at."""

    def gather(self, tree: Any) -> list[Any]:
        """Every rank's lists and dictionaries of tensors and plain values, in the order of ranks."""

    def first_alone(self, work: Callable[[], T]) -> T | None:
        """What the first rank's work returns, and None on others, which wait as long as that takes."""


class Alone:
    """One process, which never waits.

    Example:
        >>> ranks = Alone()
        >>> ranks.first, ranks.largest(3), ranks.gather("here")
        (True, 3, ['here'])
    """

    rank = 0
    count = 1
    first = True

    def wrap(self, net: nn.Module) -> nn.Module:
        """The network itself."""
        return net

    def share_buffers(self, net: nn.Module) -> None:
        """There is nobody to share with."""

    def largest(self, number: int) -> int:
        """The number."""
        return number

    def total(self, numbers: Sequence[float]) -> list[float]:
        """The numbers."""
        return list(numbers)

    def from_first(self, tree: Any) -> Any:
        """The tree."""
        return tree

    def gather(self, tree: Any) -> list[Any]:
        """The tree, in a list."""
        return [tree]

    def first_alone(self, work: Callable[[], T]) -> T | None:
        """The work's result."""
        return work()


ALONE = Alone()


@dataclass(frozen=True)
class Place:
    """Who a process is among those that were started together.

    Attributes:
        rank: among all, from 0.
        count: of all.
        local_rank: among those on this machine, from 0.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Place":
        """What torchrun says in RANK, WORLD_SIZE and LOCAL_RANK; alone where RANK or WORLD_SIZE is not there.

        These name a process and configure nothing, so they may be variables of the environment.

        Raises:
            UsageError: they do not fit together.

        Example:
            >>> Place.from_environment({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"})
            Place(rank=3, count=4, local_rank=1)
        """
        if "RANK" not in environment or "WORLD_SIZE" not in environment:
            return cls()
        found = {name: environment.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        try:
            place = cls(*map(int, found.values()))
        except ValueError:
            place = cls(rank=-1)
        if not (0 <= place.rank < place.count and place.local_rank >= 0):
            words = ", ".join(f"{name}={value!r}" for name, value in found.items())
            raise UsageError(f"{words} name no process of a group; start with torchrun, or unset RANK to train alone.")
        return place

    def device(self, name: str, *, found: int) -> str:
        """This process's own device, of those called ``name``: the processes of a machine take one each.

        Args:
            name: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
            found: CUDA devices on this machine.

        Raises:
            UsageError: one device is named for all, or there are fewer than processes.

        Example:
            >>> Place(rank=3, count=4, local_rank=1).device("cuda", found=2)
            'cuda:1'
        """
        if self.count == 1 or name == "cpu":
            return name
        if name != "cuda":
            raise UsageError(f"--device {name} is one device for {self.count} processes; give cuda, or leave it out.")
        if self.local_rank >= found:
            raise UsageError(
                f"Process {self.local_rank + 1} of this machine has no CUDA device of its own, torch finds {found}; "
                "start as many processes as devices (torchrun --nproc-per-node)."
            )
        return f"cuda:{self.local_rank}"
