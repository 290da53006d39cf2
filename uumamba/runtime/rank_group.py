"""The group that torchrun starts: a process joins it, works in it, and ends with it."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from uumamba.runtime.errors import EXIT_FAILED, EndedWithAnother, UsageError, UumambaError
from uumamba.runtime.memory_shortage import reason_of
from uumamba.runtime.rank_watch import SILENCE_S, WORD_S, RankLostError, RankWatch, leave_after_others
from uumamba.runtime.ranks import ALONE, Place, Ranks
from uumamba.runtime.stop import StopRequest
from uumamba.runtime.tree import flatten, unflatten

T = TypeVar("T")

JOIN_WITHIN = timedelta(minutes=5)
WAIT_AT_MOST = timedelta(hours=1)
"""For a rank that lives and is slow, such as one with a large scan to validate; one that is gone is noticed sooner."""


@contextmanager
def joined(device: str, place: Place | None = None, *, silence_s: float = SILENCE_S) -> Iterator[Ranks]:
    """The group of this process, until the block ends on every rank; :data:`ALONE` where it was started alone.

    A rank that leaves the block by an error ends the group: the first one's error goes on as it is, and the others, by
    that time or within a minute, raise :class:`EndedWithAnother` with its exit code, wherever they are. Where a rank is
    gone without a word (killed, or its machine is), one of the others raises :class:`RankLostError`.

    Args:
        device: this process's own; ranks on CUDA devices talk by NCCL, others by gloo.
        place: this process in the group; None reads it from torchrun's variables.
        silence_s: a rank that shows no sign of life for so long is gone.

    Raises:
        EndedWithAnother: another rank failed and says why.
        RankLostError: another rank is gone without a word.
        UsageError: torchrun's variables name no place where the processes meet, or not all came within five minutes.
    """
    place = Place.from_environment() if place is None else place
    if place.count == 1:
        yield ALONE
        return
    on_cuda = device.startswith("cuda")
    if on_cuda:
        torch.cuda.set_device(device)
    store, rank, count = _meet()
    own_store = PrefixStore("uumamba", store.clone())
    backend = "cpu:gloo,cuda:nccl" if on_cuda else "gloo"
    dist.init_process_group(
        backend, store=PrefixStore("torch", store), rank=rank, world_size=count, timeout=WAIT_AT_MOST
    )
    watch = RankWatch(own_store, rank=rank, count=count, silence_s=silence_s)
    watch.begin()
    group = Group(own_store, watch, rank=rank, count=count)
    try:
        with StopRequest():  # who waits for the first one's work must not die of a signal that the first one follows
            yield group
            group.part()
    except BaseException as error:
        verdict = _verdict(error, watch)
        watch.leave()
        leave_after_others(own_store, rank=rank, count=count)
        if verdict is error:
            raise
        raise verdict from error
    finally:
        watch.leave()
    dist.destroy_process_group()  # not after an error: NCCL's may wait for a rank that is gone


def _meet() -> tuple[Any, int, int]:
    try:
        return next(iter(rendezvous("env://", timeout=JOIN_WITHIN)))
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            f"This process found no group to train in ({reason_of(error)}); start all with torchrun, or set "
            "MASTER_ADDR and MASTER_PORT to one place that all of them reach."
        ) from error


class Group:
    """One process among several; what it says to the others goes through the CPU, gradients through the device's net.

    Args:
        store: where a rank waits for another's work of any length.
        watch: which ends that waiting when the other is gone.
        rank: of this process.
        count: of all.
    """

    def __init__(self, store: Store, watch: RankWatch, *, rank: int, count: int) -> None:
        self.rank = rank
        self.count = count
        self._store = store
        self._watch = watch
        self._stages = 0

    @property
    def first(self) -> bool:
        """Whether this rank writes files and talks to people."""
        return self.rank == 0

    def wrap(self, net: nn.Module) -> nn.Module:
        """Wrapped for data-parallel training, with the first rank's weights."""
        return DistributedDataParallel(net)

    @torch.no_grad()
    def share_buffers(self, net: nn.Module) -> None:
        """Give every rank the first one's buffers, such as running statistics."""
        for buffer in net.buffers():
            dist.broadcast(buffer, src=0)

    def largest(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        message = torch.tensor([number])
        dist.all_reduce(message, dist.ReduceOp.MAX)
        return int(message)

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Sums over ranks, in double precision."""
        message = torch.tensor(list(numbers), dtype=torch.float64)
        dist.all_reduce(message)
        return [float(number) for number in message]

    def from_first(self, tree: Any) -> Any:
        """The first rank's tree."""
        return self._sent_by(0, tree)

    def gather(self, tree: Any) -> list[Any]:
        """Every rank's tree."""
        return [self._sent_by(rank, tree) for rank in range(self.count)]

    def first_alone(self, work: Callable[[], T]) -> T | None:
        """What the first rank's work returns; others look every moment whether it is done, or its rank gone."""
        self._stages += 1
        key = f"stage/{self._stages}"
        if self.first:
            result = work()
            self._store.set(key, "done")
            return result
        self._wait_until(lambda: self._store.check([key]))
        return None

    def part(self) -> None:
        """End the group's work; the first rank, which may keep the store, is the last to turn from it."""
        if self.first:
            self._store.set("over", "")
            self._wait_until(lambda: self._store.add("parted", 0) == self.count - 1)
        else:
            self._wait_until(lambda: self._store.check(["over"]))
            self._watch.leave()
            self._store.add("parted", 1)

    def _wait_until(self, is_done: Callable[[], bool]) -> None:
        """Wait for another rank's work of any length, as long as all live."""
        while not is_done():
            word = self._watch.word()
            if word is not None:
                raise word.as_error()
            time.sleep(0.1)

    def _sent_by(self, source: int, tree: Any) -> Any:
        """A tree of one rank: its plain values as JSON, then each tensor's bytes; no pickle."""
        if source != self.rank:
            header = json.loads(bytes(self._bytes_of(source, None).tolist()))
            tensors = {
                name: self._bytes_of(source, None).view(getattr(torch, dtype)).reshape(shape)
                for name, dtype, shape in header["tensors"]
            }
            return unflatten(tensors, header["rest"])
        tensors, rest = flatten(tree)
        kinds = [[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()]
        header = json.dumps({"tensors": kinds, "rest": rest}).encode()
        self._bytes_of(source, torch.tensor(list(header), dtype=torch.uint8))
        for tensor in tensors.values():
            self._bytes_of(source, tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8))
        return tree

    def _bytes_of(self, source: int, message: Tensor | None) -> Tensor:
        """Bytes that one rank has, on all of them."""
        length = torch.tensor([0 if message is None else len(message)])
        dist.broadcast(length, src=source)
        message = torch.empty(int(length), dtype=torch.uint8) if message is None else message
        if len(message):
            dist.broadcast(message, src=source)
        return message


def _verdict(error: BaseException, watch: RankWatch) -> BaseException:
    """What to raise for an error that ends this rank: itself, unless another rank ended before."""
    if isinstance(error, EndedWithAnother):
        return error
    lost = _lost_connection(error)
    if lost is not None:
        word = watch.word(wait_s=WORD_S)
        if word is not None:
            return word.as_error()
        reason = str(lost).strip().splitlines()[0].rstrip(".")
        error = RankLostError(
            f"Another process of the group is gone without a word ({reason}); it may have been killed, for want of "
            "memory for one. Go on from the last checkpoint with --resume."
        )
    code = error.exit_code if isinstance(error, UumambaError) else EXIT_FAILED
    first = watch.claim(str(error) or type(error).__name__, exit_code=code)
    return error if first is None else first.as_error()


def _lost_connection(error: BaseException | None) -> RuntimeError | None:
    """The error of torch's among an error and its causes that says that another rank is gone."""
    while error is not None:
        if isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
            return error
        error = error.__cause__ or error.__context__
    return None
