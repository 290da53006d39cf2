"""Transfer and augmentation of batches on the device, with optional prefetching."""

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
Loaded = tuple[Batch, "torch.cuda.Event | None"]  # batch on the device, event of its completion on a CUDA stream


class Prefetcher:
    """Batches of each epoch, moved to the device and augmented there.

    With ``read_ahead`` a thread loads the next batch while a step runs, so that two batches exist at a time. On CUDA
    the thread copies from pinned memory and augments on its own stream. The step's stream waits for that stream; the
    host does not wait. Batches and their order stay the same, but each is drawn one step early: draws from the global
    generators would change, and differ after a resume. If memory runs out for a batch while a step runs, that batch is
    loaded after the step.

    ``waited_s`` counts the seconds for which steps waited for their batches, on the host, without synchronising the
    device. With an optimizer that reads a number from the device in each step, as those of uumamba.optim do, the device
    is idle for about as long.

    Args:
        batches: function from the number of an epoch, from 0, to its batches.
        augment: function from batch to batch, on the device.
        read_ahead: prefetch in a thread; only if batches and augmentation draw from their own generators.

    Example:
        >>> ones = [{"image": torch.ones(1)}]
        >>> double = lambda batch: batch | {"image": 2 * batch["image"]}
        >>> prefetcher = Prefetcher(lambda epoch: ones, augment=double, read_ahead=True)
        >>> with prefetcher.load(prefetcher.batches(0)) as batches:
        ...     [batch["image"].item() for batch in batches]
        [2.0]
        >>> prefetcher.waited_s > 0
        True
    """

    def __init__(
        self,
        batches: Callable[[int], Iterable[Batch]],
        *,
        augment: Callable[[Batch], Batch] | None = None,
        read_ahead: bool = False,
    ) -> None:
        self.batches = batches
        self.augment = augment
        self.read_ahead = read_ahead
        self.waited_s = 0.0
        self.move_to("cpu")

    def move_to(self, device: torch.device | str, *, channels_last: bool = False) -> None:
        """Choose the device of the step, and the memory format of images."""
        self.device, self.channels_last = torch.device(device), channels_last
        has_stream = self.read_ahead and self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if has_stream else None

    @contextmanager
    def load(self, batches: Iterable[Batch]) -> Iterator[Iterator[Batch]]:
        """Yield an iterator over the loaded batches.

        At the end of the block the thread has ended and a generator is closed. An error of the batches or of the
        augmentation is raised at the request of its batch.
        """
        source = iter(batches)
        try:
            with closing(self._load_all(source)) as loaded:
                yield loaded
        finally:
            if close := getattr(source, "close", None):
                close()

    def _load_all(self, source: Iterator[Batch]) -> Generator[Batch, None, None]:
        loads = map(self._try_to_load, source)
        with closing(_read_ahead(loads)) if self.read_ahead else nullcontext(loads) as found:
            began = perf_counter()
            for batch, loaded in found:
                if loaded is None:
                    free_memory(self.device)
                    loaded = self._load(batch)
                self._synchronise(*loaded)
                self.waited_s += perf_counter() - began
                yield loaded[0]
                began = perf_counter()
            self.waited_s += perf_counter() - began

    def _try_to_load(self, batch: Batch) -> tuple[Batch, Loaded | None]:
        """Return a batch, and its loaded copy if memory suffices."""
        try:
            return batch, self._load(batch)
        except OutOfMemoryError:
            return batch, None

    def _load(self, batch: Batch) -> Loaded:
        try:
            if self._stream is None:
                return self._augment(batch_to_device(batch, self.device)), None
            with torch.cuda.stream(self._stream):
                pinned = {
                    key: value.pin_memory() if isinstance(value, Tensor) and value.device.type == "cpu" else value
                    for key, value in batch.items()
                }
                return self._augment(batch_to_device(pinned, self.device)), self._stream.record_event()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            shape = tuple(batch["image"].shape) if isinstance(batch.get("image"), Tensor) else "unknown shape"
            raise OutOfMemoryError(
                f"Memory ran out while a batch of {shape} was moved to {self.device} and augmented "
                f"({summarize_error(error)}). Fix: use a smaller training.batch_size or patch, or a device with more "
                "memory."
            ) from error

    def _augment(self, batch: Batch) -> Batch:
        if self.augment is not None:
            batch = self.augment(batch)
        return batch | {"image": to_channels_last(batch["image"])} if self.channels_last else batch

    def _synchronise(self, batch: Batch, complete: "torch.cuda.Event | None") -> None:
        """Let the stream of this thread wait for a batch.

        The allocator keeps the batch's memory until that stream has used the batch.
        """
        if complete is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(complete)
            for value in batch.values():
                if isinstance(value, Tensor) and value.is_cuda:
                    value.record_stream(stream)


def _read_ahead(source: Iterator[T]) -> Generator[T, None, None]:
    """Yield the same items, each produced in a thread one item early."""
    with ThreadPoolExecutor(1, thread_name_prefix="prefetcher") as pool:  # at its end waits for the item in progress
        found = pool.submit(next, source, None)
        while (item := found.result()) is not None:
            found = pool.submit(next, source, None)
            yield item
