"""Group of the training processes that torchrun starts."""

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

from uumamba.runtime.errors import EXIT_FAILED, EndedWithAnother, UsageError
from uumamba.runtime.memory_shortage import summarize_error
from uumamba.runtime.rank_watch import REASON_S, SILENCE_S, RankLostError, RankWatch, leave_after_others
from uumamba.runtime.ranks import ALONE, Place, Ranks
from uumamba.runtime.stop import StopRequest
from uumamba.runtime.tree import flatten, unflatten

T = TypeVar("T")

JOIN_WITHIN = timedelta(minutes=5)
WAIT_AT_MOST = timedelta(hours=1)
"""Time limit of a collective call: enough for a slow rank that validates a large scan."""


@contextmanager
def join_group(device: str, place: Place | None = None, *, silence_s: float = SILENCE_S) -> Iterator[Ranks]:
    """Join this process's training group for the duration of the block.

    The block ends on every rank together. A single process gets :data:`ALONE`. Processes of torchrun may join again
    after the block.

    A rank that leaves the block by an error ends the group. Its error is raised unchanged, and within a minute all
    other ranks raise :class:`EndedWithAnother` with the same exit code. If a rank disappears (killed, or its machine
    failed), one of the others raises :class:`RankLostError`.

    Args:
        device: of this process; ranks on CUDA devices use NCCL, others gloo.
        place: rank of this process; None reads torchrun's variables.
        silence_s: time without a heartbeat after which a rank is lost.

    Raises:
        EndedWithAnother: another rank failed and reports the reason.
        RankLostError: another rank disappeared.
        UsageError: torchrun's variables hold no address, or a process did not join within five minutes.
    """
    place = Place.from_environment() if place is None else place
    if place.count == 1:
        yield ALONE
        return
    on_cuda = device.startswith("cuda")
    if on_cuda:
        torch.cuda.set_device(device)
    store, rank, count = _find_store()
    # torchrun keeps the store, so a second group of the same processes needs keys of its own.
    number = (store.add("uumamba/joined", 1) - 1) // count
    own_store = PrefixStore(f"uumamba/{number}", store.clone())
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
        store=PrefixStore(f"torch/{number}", store),
        rank=rank,
        world_size=count,
        timeout=WAIT_AT_MOST,
    )
    watch = RankWatch(own_store, rank=rank, count=count, silence_s=silence_s)
    group = Group(own_store, watch, rank=rank, count=count)
    try:
        with StopRequest():  # a rank that waits for rank 0's work must not die of a signal that rank 0 obeys later
            yield group
            group.on_rank_zero(lambda: None)  # rank 0 may work longer than the others, after training
    except BaseException as error:
        reported = _select_error(error, watch)
        if reported is error:
            raise
        raise reported from error
    finally:
        watch.stop()
        leave_after_others(own_store, rank=rank, count=count)
    dist.destroy_process_group()  # not after an error: NCCL's may wait for a lost rank


def _find_store() -> tuple[Any, int, int]:
    try:
        return next(iter(rendezvous("env://", timeout=JOIN_WITHIN)))
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            "MASTER_ADDR, MASTER_PORT",
            got=summarize_error(error),
            expected="an address that all processes of the group reach",
            fix="start all processes with torchrun",
        ) from error


class Group:
    """One rank of a training group of several processes.

    Control messages use the CPU, gradients the device.

    Args:
        store: holds a key for each work of rank 0 that is done.
        watch: ends a wait for rank 0 when that rank is lost.
        rank: of this process.
        count: number of processes in the group.
    """

    def __init__(self, store: Store, watch: RankWatch, *, rank: int, count: int) -> None:
        self.rank = rank
        self.count = count
        self.is_rank_zero = rank == 0
        self._store = store
        self._watch = watch
        self._stages = 0

    def wrap(self, net: nn.Module) -> nn.Module:
        """Return the network in DistributedDataParallel, with rank 0's weights."""
        return DistributedDataParallel(net)

    @torch.no_grad()
    def broadcast_buffers(self, net: nn.Module) -> None:
        """Copy rank 0's buffers, such as running statistics, to every rank."""
        for buffer in net.buffers():
            dist.broadcast(buffer, src=0)

    def reduce_max(self, number: int) -> int:
        """Return the largest number of all ranks."""
        message = torch.tensor([number])
        dist.all_reduce(message, dist.ReduceOp.MAX)
        return int(message)

    def reduce_sum(self, numbers: Sequence[float]) -> list[float]:
        """Return the sums over ranks, in double precision."""
        message = torch.tensor(list(numbers), dtype=torch.float64)
        dist.all_reduce(message)
        return message.tolist()

    def broadcast(self, tree: Any) -> Any:
        """Return rank 0's tree."""
        return self._send(0, tree)

    def gather(self, tree: Any) -> list[Any]:
        """Return every rank's tree."""
        return [self._send(rank, tree) for rank in range(self.count)]

    def on_rank_zero(self, work: Callable[[], T]) -> T | None:
        """Run ``work`` on rank 0 while the other ranks wait.

        They poll the store until the work is done or a rank has ended the group.
        """
        self._stages += 1
        key = f"stage/{self._stages}"
        if self.is_rank_zero:
            result = work()
            self._store.set(key, "done")
            return result
        while not self._store.check([key]):
            if (error := self._watch.read_end_error()) is not None:
                raise error
            time.sleep(0.1)
        return None

    def _send(self, source: int, tree: Any) -> Any:
        """Broadcast one rank's tree: plain values as JSON, tensors as bytes.

        No pickle is used.
        """
        if source != self.rank:
            header = json.loads(bytes(self._send_bytes(source).tolist()))
            tensors = {
                name: self._send_bytes(source).view(getattr(torch, dtype)).reshape(shape)
                for name, dtype, shape in header["tensors"]
            }
            return unflatten(tensors, header["rest"])
        tensors, rest = flatten(tree)
        header = {
            "tensors": [[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()],
            "rest": rest,
        }
        self._send_bytes(source, torch.tensor(list(json.dumps(header).encode()), dtype=torch.uint8))
        for tensor in tensors.values():
            self._send_bytes(source, tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8))
        return tree

    def _send_bytes(self, source: int, message: Tensor | None = None) -> Tensor:
        """Broadcast the bytes of one rank; the other ranks pass None."""
        length = torch.tensor([0 if message is None else len(message)])
        dist.broadcast(length, src=source)
        message = torch.empty(int(length), dtype=torch.uint8) if message is None else message
        if len(message):
            dist.broadcast(message, src=source)
        return message


def _select_error(error: BaseException, watch: RankWatch) -> BaseException:
    """Return the error that ends this rank.

    It is the rank's own error, unless another rank ended before.
    """
    if isinstance(error, EndedWithAnother):
        return error
    lost = _find_connection_error(error)
    if lost is not None:
        first = watch.read_end_error(wait_s=REASON_S)
        if first is not None:
            return first
        reason = "; ".join([summarize_error(lost).rstrip("."), *getattr(lost, "__notes__", [])])
        error = RankLostError(
            f"Another process of the group disappeared ({reason}), perhaps killed for lack "
            "of memory. Fix: continue from the last checkpoint with --resume."
        )
    exit_code = getattr(error, "exit_code", EXIT_FAILED)
    notes = getattr(error, "__notes__", [])  # say where it happened, such as at which client
    message = (str(error) or type(error).__name__) + (f" ({'; '.join(notes)})" if notes else "")
    return watch.end_group(message, exit_code=exit_code) or error


def _find_connection_error(error: BaseException | None) -> RuntimeError | None:
    """Find torch's error about a lost connection in an error's causes."""
    while error is not None:
        if isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
            return error
        error = error.__cause__ or error.__context__
    return None
