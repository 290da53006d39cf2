"""Between the batches and the step: to the device, augmented there, and how long the step waited for it."""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor

from uumamba.runtime.memory_format import to_channels_last
from uumamba.runtime.memory_shortage import OutOfMemoryError, free_memory, is_out_of_memory, reason_of
from uumamba.runtime.network import batch_to_device
from uumamba.types import Batch

T = TypeVar("T")


@dataclass(frozen=True)
class _Postponed:
    """A batch for which there was no room; it is prepared when the step is over."""

    batch: Batch


class Feed:
    """Brings each batch to the device and augments it there, and counts the seconds for which it was waited for.

    Read ahead, a thread does all that to the next batch while a step runs, so that two batches are there at a time. On
    CUDA it copies from pinned memory and augments on a stream of its own, which the step's stream waits for; the host
    waits for neither. The batches and their order stay the same, but they are drawn a step early: what draws from the
    global generators would draw otherwise, and not as after a resume.

    Where memory runs out for a batch while a step runs, that batch is prepared when the step is over.

    The seconds are the host's, without asking the device. An optimizer that reads a number off the device in each step,
    as the family's do, leaves the device idle for about as long.

    Args:
        device: where batches go.
        augment: a function from batch to batch.
        read_ahead: in a thread, one batch ahead; for batches and augmentation that draw from generators of their own.
        channels_last: lay out images with their channels innermost.

    Example:
        >>> feed = Feed("cpu", augment=lambda batch: batch | {"image": 2 * batch["image"]}, read_ahead=True)
        >>> with feed.of([{"image": torch.ones(1)}]) as batches:
        ...     [batch["image"].item() for batch in batches]
        [2.0]
        >>> feed.waited_s > 0
        True
    """

    def __init__(
        self,
        device: torch.device | str,
        *,
        augment: Callable[[Batch], Batch] | None = None,
        read_ahead: bool = False,
        channels_last: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.augment = augment
        self.read_ahead = read_ahead
        self.channels_last = channels_last
        self.waited_s = 0.0
        self._own_stream = read_ahead and self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if self._own_stream else None

    @contextmanager
    def of(self, batches: Iterable[Batch]) -> Iterator[Iterator[Batch]]:
        """The batches, ready for a step; left in whatever way, no thread goes on and a generator is closed.

        An error of the batches or of the augmentation is raised where its batch is asked for.
        """
        source = iter(batches)
        try:
            with closing(self._ready_batches(source)) as ready:
                yield ready
        finally:
            if close := getattr(source, "close", None):
                close()

    def _ready_batches(self, source: Iterator[Batch]) -> Generator[Batch, None, None]:
        prepared = map(self._prepared_or_postponed, source)
        with closing(_ahead(prepared) if self.read_ahead else _as_asked(prepared)) as found:
            while True:
                began = perf_counter()
                one = next(found, None)
                if isinstance(one, _Postponed):
                    one = self._prepared_between_steps(one.batch)
                batch = None if one is None else self._take_over(*one)
                self.waited_s += perf_counter() - began
                if batch is None:
                    return
                yield batch

    def _prepared_or_postponed(self, batch: Batch) -> "tuple[Batch, torch.cuda.Event | None] | _Postponed":
        """The batch as it came where there is no room for it beside the step under way."""
        try:
            return self._prepare(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return _Postponed(batch)

    def _prepared_between_steps(self, batch: Batch) -> tuple[Batch, torch.cuda.Event | None]:
        free_memory(self.device)
        try:
            return self._prepare(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            shape = tuple(batch["image"].shape) if isinstance(batch.get("image"), Tensor) else "unknown shape"
            raise OutOfMemoryError(
                f"Memory ran out while a batch of {shape} was brought to {self.device} and augmented "
                f"({reason_of(error)}); take a smaller training.batch_size or patch, or a device with more memory."
            ) from error

    def _prepare(self, batch: Batch) -> tuple[Batch, torch.cuda.Event | None]:
        """The batch on the device, and when it will be complete there."""
        if self._stream is None:
            return self._augmented(batch_to_device(batch, self.device)), None
        with torch.cuda.stream(self._stream):
            pinned = {key: value.pin_memory() if _on_host(value) else value for key, value in batch.items()}
            return self._augmented(batch_to_device(pinned, self.device)), self._stream.record_event()

    def _augmented(self, batch: Batch) -> Batch:
        if self.augment is not None:
            batch = self.augment(batch)
        return batch | {"image": to_channels_last(batch["image"])} if self.channels_last else batch

    def _take_over(self, batch: Batch, complete: torch.cuda.Event | None) -> Batch:
        """Let this thread's stream wait for the batch, and the allocator know that it is used there."""
        if complete is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(complete)
            for value in batch.values():
                if isinstance(value, Tensor) and value.is_cuda:
                    value.record_stream(stream)
        return batch


def _as_asked(source: Iterator[T]) -> Generator[T, None, None]:
    yield from source


def _ahead(source: Iterator[T]) -> Generator[T, None, None]:
    """The same items, each made in a thread while the one before it is in use."""
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as pool:  # left, it waits for the item under way
        found = pool.submit(next, source, None)
        while (item := found.result()) is not None:
            found = pool.submit(next, source, None)
            yield item


def _on_host(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cpu"
