"""Optimizer steps that fit into memory: a batch that is too large is split into micro-batches of one step."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from uumamba.optim.restore import running_statistics
from uumamba.runtime.memory_shortage import OutOfMemoryError, free_memory, is_out_of_memory, summarize_error
from uumamba.training.run_state import RunState
from uumamba.training.snapshot import Snapshot
from uumamba.types import Batch

Ascent = Callable[[Any], Tensor]
Result = Tensor | tuple[Tensor, Any]


class AdaptiveMicrobatch:
    r"""One optimizer step a batch, split into micro-batches once a whole batch has not fitted into memory.

    A step that runs out of memory is repeated with half the samples at once, again and again down to single samples;
    the gradient is accumulated over all micro-batches, and the optimizer's ``accumulation`` becomes ``"full"``, so that
    it climbs along the gradient of the whole batch. The number of samples at once is part of the progress and so of the
    checkpoint. With B samples in K micro-batches of :math:`n_k` the step is that of

    .. math:: \sum_k \frac{n_k}{B}\, \mathrm{objective}(\mathrm{net}, \mathrm{micro\text{-}batch}_k)

    **Exactly equal** to the whole batch's, up to rounding, if the objective is a mean over samples, such as a cross
    entropy of patches of one size. **Not equal** if it compares samples of a batch: a Dice over the whole batch becomes
    the mean of the micro-batches' Dice, batch norm uses the statistics of a micro-batch, dropout draws other masks, and
    a distance of outputs (TRAM) is the mean over micro-batches of unequal size. Such a step is that of a smaller batch
    in this part, and of the whole one in all others. A method's penalty is weighted in the same way; see
    :class:`MethodStep <uumamba.training.method_step.MethodStep>`.

    Edge cases. Before a step is repeated everything is restored: weights, running statistics, the memory of optimizer
    and method, random states; no gradient is left. State that an objective changes in its ``forward`` is not restored.
    Memory that runs out in the base's own update, where smaller micro-batches do not help and some weights may have
    moved, ends the run; so it does with several ranks, of which one alone cannot repeat a step. Values as long as
    ``batch["image"]`` are split, all others go with each micro-batch.

    Args:
        state: of the run.
        run: one pass over a batch or a part of it, ``run(batch) -> loss`` or ``(loss, outputs)``.
        say: called with a sentence each time that the micro-batches become smaller.
        samples_at_once: the most samples in one micro-batch from the start; None is the whole batch.
    """

    def __init__(
        self,
        state: RunState,
        run: Callable[[Batch], Result],
        *,
        say: Callable[[str], None],
        samples_at_once: int | None = None,
    ) -> None:
        self.state = state
        self.run = run
        self.say = say
        self.samples_at_once = samples_at_once
        self._statistics = running_statistics(state.net)  # found once: a walk through all modules takes 0.2 ms
        self._is_updating = False
        self._weight = 1.0
        state.optimizer.base.register_step_pre_hook(self._note_update)

    def snapshot(self) -> Snapshot:
        """Store what a failed step has to be repeated from."""
        return Snapshot(self._statistics, self.state.optimizer, self.state.device, self.state.method)

    def step(self, batch: Batch, *, ascent: Ascent | None = None) -> Tensor:
        """Take one optimizer step and return its loss.

        Raises:
            OutOfMemoryError: a single sample does not fit, or the step cannot be repeated.
        """
        samples = count_samples(batch)
        snapshot = self.snapshot()
        while True:
            self._is_updating = False
            try:
                return self._step_in_parts(batch, samples, ascent)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._raise_if_hopeless(batch, samples, error)
            # Only here the failed step's error is gone, and with it the frames that held its tensors.
            self.state.optimizer.zero_grad()
            free_memory(self.state.device)
            snapshot.restore()
            self._halve(samples)

    def _step_in_parts(self, batch: Batch, samples: int, ascent: Ascent | None) -> Tensor:
        parts = split_batch(batch, samples, at_once=self._at_once(samples))
        added = None if self.state.method is None else self.state.method.scalars(parts)
        if len(parts) == 1:
            return self.state.optimizer.step(lambda: self.run(batch), ascent=ascent, at_weights=added)
        self.state.optimizer.accumulation = "full"
        weighted = None if ascent is None else lambda outputs: self._weight * ascent(outputs)
        closures = [self._closure(part, weight=size * len(parts) / samples) for part, size in parts]
        return self.state.optimizer.step(closures, ascent=weighted, at_weights=added)

    def _closure(self, part: Batch, *, weight: float) -> Callable[[], Result]:
        """Return one pass with a loss weighted by its samples; the engine takes the mean over micro-batches."""

        def closure() -> Result:
            self._weight = weight  # also of the ascent loss, which the engine computes right after this pass
            result = self.run(part)
            if weight == 1:
                return result
            return (result[0] * weight, result[1]) if isinstance(result, tuple) else result * weight

        return closure

    def _at_once(self, samples: int) -> int:
        bounds = (self.samples_at_once, self.state.progress.samples_at_once, samples)
        return min(bound for bound in bounds if bound is not None)

    def _raise_if_hopeless(self, batch: Batch, samples: int, error: BaseException) -> None:
        reason, at_once = summarize_error(error), self._at_once(samples)
        if self._is_updating:
            raise OutOfMemoryError(
                f"Memory ran out while the optimizer changed the weights ({reason}); go on from the last checkpoint "
                "with --resume on a device with more memory, or take an optimizer that keeps less, such as SGD."
            ) from error
        if at_once <= 1:
            image = batch.get("image")
            shape = f"sample of shape {tuple(image.shape[1:])}" if isinstance(image, Tensor) else "batch"
            raise OutOfMemoryError(
                f"Memory ran out with a single {shape} at a time ({reason}); take a smaller patch or network, "
                "precision bfloat16, or a device with more memory."
            ) from error
        if _world_size() > 1:
            raise OutOfMemoryError(
                f"Memory ran out with {at_once} samples at a time ({reason}), and one of several ranks cannot repeat a "
                f"step alone; go on with --resume --force --set training.samples_at_once={math.ceil(at_once / 2)}, "
                "which leaves the step that of the whole batch."
            ) from error

    def _halve(self, samples: int) -> None:
        before = self._at_once(samples)
        self.state.progress.samples_at_once = now = math.ceil(before / 2)
        self.say(
            f"Memory ran out with {before} samples at once. The step is repeated, and from here on each batch is split "
            f"into micro-batches of at most {now}, accumulated over all of it: the same training, in more time."
        )

    def _note_update(self, *_: Any) -> None:
        self._is_updating = True


def count_samples(batch: Batch) -> int:
    """Return the length of a batch's image; 1 if it cannot be split."""
    image = batch.get("image")
    return len(image) if isinstance(image, Tensor) and image.ndim else 1


def split_batch(batch: Batch, samples: int, *, at_once: int) -> list[tuple[Batch, int]]:
    """Split a batch into as few parts as ``at_once`` allows, with their sizes, which differ by at most one.

    Example:
        >>> [(part["image"].tolist(), size) for part, size in split_batch({"image": torch.arange(5)}, 5, at_once=2)]
        [([0, 1], 2), ([2, 3], 2), ([4], 1)]
    """
    number = math.ceil(samples / at_once)
    if number == 1:
        return [(batch, samples)]
    parts = torch.arange(samples).tensor_split(number)
    return [({key: _part(value, samples, rows) for key, value in batch.items()}, len(rows)) for rows in parts]


def _part(value: Any, samples: int, rows: Tensor) -> Any:
    """Slice a value that has one entry a sample; return any other as it is."""
    is_splittable = isinstance(value, list | tuple) or (isinstance(value, Tensor) and value.ndim > 0)
    return value[int(rows[0]) : int(rows[-1]) + 1] if is_splittable and len(value) == samples else value


def _world_size() -> int:
    """Return the number of ranks, also in a group that the caller made and the run does not know."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
