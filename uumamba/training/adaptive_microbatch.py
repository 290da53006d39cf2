"""Optimizer steps in micro-batches, for batches that do not fit into memory."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from uumamba.optim.passes import Ascent
from uumamba.optim.restore import running_statistics
from uumamba.runtime.memory_shortage import OutOfMemoryError, free_memory, is_out_of_memory, summarize_error
from uumamba.training.run_state import RunState
from uumamba.training.snapshot import Snapshot
from uumamba.types import Batch

Result = Tensor | tuple[Tensor, Any]


class AdaptiveMicrobatch:
    r"""Optimizer step that splits the batch when memory runs out.

    A step that runs out of memory is repeated with half the samples per micro-batch, if necessary down to one sample.
    The gradient is accumulated over all micro-batches. The optimizer's ``accumulation`` becomes ``"full"``, so that
    the perturbation follows the gradient of the whole batch. The micro-batch size is part of the progress and of the
    checkpoint. With B samples in K micro-batches of :math:`n_k` samples, the loss of the step is

    .. math:: \sum_k \frac{n_k}{B}\, \mathrm{objective}(\mathrm{net}, \mathrm{micro\text{-}batch}_k)

    **Equal** to the loss of the whole batch, up to rounding, if the objective is a mean over samples, such as the cross
    entropy of patches of one size. **Not equal** if the objective compares samples of a batch: a Dice over the batch
    becomes the mean of the micro-batches' Dice, batch norm uses the statistics of a micro-batch, dropout draws other
    masks, and a distance of outputs (TRAM) is the mean over micro-batches of unequal size. A method's penalty is
    weighted in the same way; see :class:`MethodStep <uumamba.training.method_step.MethodStep>`.

    Edge cases. Before a step is repeated, weights, running statistics, the state of optimizer and method, and the
    random states are restored; no gradient is left. State that an objective changes in its ``forward`` is not restored.
    A lack of memory in the base optimizer's own update ends the run, because smaller micro-batches do not help there
    and some weights may have changed. A lack of memory also ends a run of several ranks, because one rank cannot repeat
    a step on its own. Values as long as ``batch["image"]`` are split; all others go with each micro-batch.

    Args:
        state: state of the run.
        run: one pass over a batch or a part of it, ``run(batch) -> loss`` or ``(loss, outputs)``.
        say: called with a sentence each time that the micro-batches become smaller.
        samples_at_once: largest micro-batch from the start; None is the whole batch.
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
        """Store the state from which a failed step is repeated."""
        return Snapshot(self._statistics, self.state.optimizer, self.state.device, self.state.method)

    def step(self, batch: Batch, *, ascent: Ascent | None = None) -> Tensor:
        """Take one optimizer step and return its loss.

        Raises:
            OutOfMemoryError: a single sample does not fit, or the step cannot be repeated.
        """
        image = batch.get("image")
        samples = len(image) if isinstance(image, Tensor) and image.ndim else 1
        snapshot = self.snapshot()
        while True:
            self._is_updating = False
            try:
                return self._step_in_parts(batch, samples, ascent)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._raise_if_not_repeatable(image, samples, error)
            # After the handler, because the error holds the frames and with them the tensors of the failed step.
            self.state.optimizer.zero_grad()
            free_memory(self.state.device)
            snapshot.restore()
            before = self._micro_batch_size(samples)
            self.state.progress.samples_at_once = after = math.ceil(before / 2)
            self.say(
                f"Memory ran out with {before} samples at once. The step is repeated. From now on each batch is split "
                f"into micro-batches of at most {after}, with accumulated gradients: the same training, but slower."
            )

    def _step_in_parts(self, batch: Batch, samples: int, ascent: Ascent | None) -> Tensor:
        parts = split_batch(batch, samples, at_once=self._micro_batch_size(samples))
        added = None if self.state.method is None else self.state.method.scalars(parts)
        if len(parts) == 1:
            return self.state.optimizer.step(lambda: self.run(batch), ascent=ascent, at_weights=added)
        self.state.optimizer.accumulation = "full"
        weighted = None if ascent is None else lambda outputs: self._weight * ascent(outputs)
        closures = [self._make_closure(part, weight=size * len(parts) / samples) for part, size in parts]
        return self.state.optimizer.step(closures, ascent=weighted, at_weights=added)

    def _make_closure(self, part: Batch, *, weight: float) -> Callable[[], Result]:
        """Make a pass whose loss is weighted by the number of samples.

        The optimizer takes the mean over micro-batches.
        """

        def closure() -> Result:
            self._weight = weight  # also for the ascent loss, computed right after this pass
            result = self.run(part)
            if weight == 1:
                return result
            return (result[0] * weight, result[1]) if isinstance(result, tuple) else result * weight

        return closure

    def _micro_batch_size(self, samples: int) -> int:
        bounds = (self.samples_at_once, self.state.progress.samples_at_once, samples)
        return min(bound for bound in bounds if bound is not None)

    def _raise_if_not_repeatable(self, image: Any, samples: int, error: BaseException) -> None:
        reason, size = summarize_error(error), self._micro_batch_size(samples)
        if self._is_updating:
            raise OutOfMemoryError(
                f"Memory ran out while the optimizer changed the weights ({reason}). Fix: continue from the last "
                "checkpoint with --resume on a device with more memory, or use an optimizer with less state, such as "
                "SGD."
            ) from error
        if size <= 1:
            shape = f" of shape {tuple(image.shape[1:])}" if isinstance(image, Tensor) else ""
            raise OutOfMemoryError(
                f"Memory ran out with a single sample{shape} ({reason}). Fix: use a smaller patch or network, "
                "precision bfloat16, or a device with more memory."
            ) from error
        if self.state.ranks.count > 1:
            raise OutOfMemoryError(
                f"Memory ran out with {size} samples per micro-batch ({reason}); with several ranks no step is "
                f"repeated. Fix: continue with --resume --force --set training.samples_at_once={math.ceil(size / 2)}."
            ) from error

    def _note_update(self, *_: Any) -> None:
        self._is_updating = True


def split_batch(batch: Batch, samples: int, *, at_once: int) -> list[tuple[Batch, int]]:
    """Split a batch into the fewest parts of at most ``at_once`` samples.

    Returns:
        The parts with their sizes, which differ by at most one.

    Example:
        >>> [(part["image"].tolist(), size) for part, size in split_batch({"image": torch.arange(5)}, 5, at_once=2)]
        [([0, 1], 2), ([2, 3], 2), ([4], 1)]
    """
    number = math.ceil(samples / at_once)
    if number == 1:
        return [(batch, samples)]
    parts = torch.arange(samples).tensor_split(number)
    return [({key: _slice(value, samples, rows) for key, value in batch.items()}, len(rows)) for rows in parts]


def _slice(value: Any, samples: int, rows: Tensor) -> Any:
    """Slice a value with one entry per sample; return any other unchanged."""
    is_splittable = isinstance(value, list | tuple) or (isinstance(value, Tensor) and value.ndim > 0)
    return value[int(rows[0]) : int(rows[-1]) + 1] if is_splittable and len(value) == samples else value
