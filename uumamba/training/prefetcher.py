"""Batches on their way to the step: to the device, augmented there, one batch ahead if asked."""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor

from uumamba.runtime.memory_format import to_channels_last
from uumamba.runtime.memory_shortage import OutOfMemoryError, free_memory, is_out_of_memory, summarize_error
from uumamba.runtime.network import batch_to_device
from uumamba.types import Batch

T = TypeVar("T")
Ready = tuple[Batch, "torch.cuda.Event | None"]
"""A prepared batch, and the event after which it is complete on its device."""


class Prefetcher:
    """Moves each batch to the device, augments it there, and counts the seconds that the step waited for it.

    With ``read_ahead`` a thread prepares the next batch while a step runs, so that two batches exist at a time. On CUDA
    it copies from pinned memory and augments on a stream of its own, which the step's stream waits for; the host waits
    for neither. Batches and their order stay the same, but each is drawn one step early: draws from the global
    generators would change, and differ after a resume.

    If memory runs out for a batch while a step runs, that batch is prepared after the step.

    The seconds are the host's, without synchronising the device. An optimizer that reads a number off the device in
    each step, as the family's do, leaves the device idle for about as long.

    Args:
        device: of the step.
        augment: a function from batch to batch.
        read_ahead: prefetch in a thread; only if batches and augmentation draw from generators of their own.
        channels_last: store images channels-last.

    Example:
        >>> prefetcher = Prefetcher("cpu", augment=lambda batch: batch | {"image": 2 * batch["image"]}, read_ahead=True)
        >>> with prefetcher.prepare([{"image": torch.ones(1)}]) as batches:
        ...     [batch["image"].item() for batch in batches]
        [2.0]
        >>> prefetcher.waited_s > 0
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
        self._stream = torch.cuda.Stream(self.device) if read_ahead and self.device.type == "cuda" else None

    @contextmanager
    def prepare(self, batches: Iterable[Batch]) -> Iterator[Iterator[Batch]]:
        """Yield an iterator of prepared batches; afterwards no thread runs on and a generator is closed.

        An error of the batches or of the augmentation is raised where its batch is requested.
        """
        source = iter(batches)
        try:
            with closing(self._ready_batches(source)) as ready:
                yield ready
        finally:
            if close := getattr(source, "close", None):
                close()

    def _ready_batches(self, source: Iterator[Batch]) -> Generator[Batch, None, None]:
        prepared = map(self._try_to_prepare, source)
        with closing(_read_ahead(prepared)) if self.read_ahead else nullcontext(prepared) as found:
            began = perf_counter()
            for batch, ready in found:
                taken = self._take_over(*(ready or self._prepare_between_steps(batch)))
                self.waited_s += perf_counter() - began
                yield taken
                began = perf_counter()
            self.waited_s += perf_counter() - began

    def _try_to_prepare(self, batch: Batch) -> tuple[Batch, Ready | None]:
        """Return a batch as it came, and prepared if there is memory for it beside the step in progress."""
        try:
            return batch, self._prepare(batch)
        except OutOfMemoryError:
            return batch, None

    def _prepare_between_steps(self, batch: Batch) -> Ready:
        free_memory(self.device)
        return self._prepare(batch)

    def _prepare(self, batch: Batch) -> Ready:
        try:
            return self._move(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            shape = tuple(batch["image"].shape) if isinstance(batch.get("image"), Tensor) else "unknown shape"
            raise OutOfMemoryError(
                f"Memory ran out while a batch of {shape} was moved to {self.device} and augmented "
                f"({summarize_error(error)}); take a smaller training.batch_size or patch, or a device with more "
                "memory."
            ) from error

    def _move(self, batch: Batch) -> Ready:
        if self._stream is None:
            return self._augment(batch_to_device(batch, self.device)), None
        with torch.cuda.stream(self._stream):
            pinned = {key: value.pin_memory() if _is_on_host(value) else value for key, value in batch.items()}
            return self._augment(batch_to_device(pinned, self.device)), self._stream.record_event()

    def _augment(self, batch: Batch) -> Batch:
        if self.augment is not None:
            batch = self.augment(batch)
        return batch | {"image": to_channels_last(batch["image"])} if self.channels_last else batch

    def _take_over(self, batch: Batch, complete: "torch.cuda.Event | None") -> Batch:
        """Let this thread's stream wait for the batch, and tell the allocator that it is used there."""
        if complete is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(complete)
            for value in batch.values():
                if isinstance(value, Tensor) and value.is_cuda:
                    value.record_stream(stream)
        return batch


def _read_ahead(source: Iterator[T]) -> Generator[T, None, None]:
    """Yield the same items, each made in a thread while the one before it is in use."""
    with ThreadPoolExecutor(1, thread_name_prefix="prefetcher") as pool:  # waits at its end for the item in progress
        found = pool.submit(next, source, None)
        while (item := found.result()) is not None:
            found = pool.submit(next, source, None)
            yield item


def _is_on_host(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cpu"
