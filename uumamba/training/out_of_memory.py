"""Steps that fit into memory: a batch that is too large goes through in pieces, as one and the same step."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from uumamba.optim.restore import running_statistics
from uumamba.runtime.memory_shortage import OutOfMemoryError, free_memory, is_out_of_memory, reason_of
from uumamba.training.run_state import RunState
from uumamba.training.step_start import StepStart
from uumamba.types import Batch

Ascent = Callable[[Any], Tensor]
Result = Tensor | tuple[Tensor, Any]


class FittingSteps:
    r"""Takes one optimizer step a batch, in pieces from the first time on that a whole batch did not fit into memory.

    A step that runs out of memory is taken again with the batch in halves, these in halves, down to single samples; the
    gradient is accumulated over all of them, and the optimizer's ``accumulation`` becomes ``"full"``, so that it climbs
    along the gradient of the whole batch. How many samples went through at once stands in the progress and so in the
    checkpoint. With B samples in K pieces of :math:`n_k` the step is that of

    .. math:: \sum_k \frac{n_k}{B}\, \mathrm{objective}(\mathrm{net}, \mathrm{piece}_k)

    **Exactly equal** to the whole batch's, but for rounding, where the objective is a mean over samples, such as a
    cross entropy of patches of one size. **Not equal** where samples of a batch meet: a Dice that sums over the whole
    batch becomes the mean of the pieces' Dice, a batch norm sees the statistics of a piece, dropout draws other masks,
    and a distance of answers (TRAM) is the mean over pieces of unequal size. Such a step is that of a smaller batch in
    this part, and of the whole one in all others. What a method adds is that of the pieces by the same weights; see
    :class:`MethodStep <uumamba.training.method_step.MethodStep>`.

    Edge cases. Before it is repeated, everything is as before the failed step: weights, running statistics, what the
    optimizer and the method remember, random numbers; no gradient is left. What an objective itself changes in its
    ``forward`` is not brought back. Memory that runs out in the base's own update, which no smaller piece would help
    and which may have moved some weights, ends the run; so it does with several ranks, of which one alone cannot repeat
    a step.
    What is as long as ``batch["image"]`` is divided, all else goes with each piece.

    Args:
        state: of the run.
        run: one pass over a batch or a piece of it, ``run(batch) -> loss`` or ``(loss, outputs)``.
        say: called with a sentence each time that the pieces become smaller.
        samples_at_once: the most samples in one piece from the start; None is the whole batch.
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
        self._statistics = running_statistics(state.net)  # found once: to look through all modules takes 0.2 ms
        self._updating = False
        self._weight = 1.0
        state.optimizer.base.register_step_pre_hook(self._note_update)

    def start(self) -> StepStart:
        """What a step that fails has to be repeated from."""
        return StepStart(self._statistics, self.state.optimizer, self.state.device, self.state.method)

    def step(self, batch: Batch, *, ascent: Ascent | None = None) -> Tensor:
        """One step of the optimizer; its loss.

        Raises:
            OutOfMemoryError: a single sample does not fit, or the step cannot be repeated.
        """
        samples = samples_of(batch)
        start = self.start()
        while True:
            self._updating = False
            try:
                return self._step_in_pieces(batch, samples, ascent)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._refuse_hopeless(batch, samples, error)
            # Only here the failed step's error is gone, and with it the frames that held its tensors.
            self.state.optimizer.zero_grad()
            free_memory(self.state.device)
            start.restore()
            self._take_fewer(samples)

    def _step_in_pieces(self, batch: Batch, samples: int, ascent: Ascent | None) -> Tensor:
        pieces = pieces_of(batch, samples, at_once=self._at_once(samples))
        added = None if self.state.method is None else self.state.method.of(pieces)
        if len(pieces) == 1:
            return self.state.optimizer.step(lambda: self.run(batch), ascent=ascent, at_weights=added)
        self.state.optimizer.accumulation = "full"
        weighted = None if ascent is None else lambda outputs: self._weight * ascent(outputs)
        closures = [self._closure(piece, weight=size * len(pieces) / samples) for piece, size in pieces]
        return self.state.optimizer.step(closures, ascent=weighted, at_weights=added)

    def _closure(self, piece: Batch, *, weight: float) -> Callable[[], Result]:
        """One pass over a piece, whose loss counts as its samples do; the engine takes the mean over pieces."""

        def closure() -> Result:
            self._weight = weight  # of the loss to climb too, for which the engine asks right after this pass
            result = self.run(piece)
            if weight == 1:
                return result
            return (result[0] * weight, result[1]) if isinstance(result, tuple) else result * weight

        return closure

    def _at_once(self, samples: int) -> int:
        """The most samples that go through together."""
        bounds = (self.samples_at_once, self.state.progress.samples_at_once, samples)
        return min(bound for bound in bounds if bound is not None)

    def _refuse_hopeless(self, batch: Batch, samples: int, error: BaseException) -> None:
        reason = reason_of(error)
        if self._updating:
            raise OutOfMemoryError(
                f"Memory ran out while the optimizer changed the weights ({reason}); go on from the last checkpoint "
                "with --resume on a device with more memory, or take an optimizer that keeps less, such as SGD."
            ) from error
        at_once = self._at_once(samples)
        if at_once <= 1:
            raise OutOfMemoryError(
                f"Memory ran out with a single {_shape_of(batch)} at a time ({reason}); take a smaller patch or "
                "network, precision bfloat16, or a device with more memory."
            ) from error
        if _ranks() > 1:
            raise OutOfMemoryError(
                f"Memory ran out with {at_once} samples at a time ({reason}), and one of several ranks cannot repeat a "
                f"step alone; go on with --resume --force --set training.samples_at_once={math.ceil(at_once / 2)}, "
                "which leaves the step that of the whole batch."
            ) from error

    def _take_fewer(self, samples: int) -> None:
        before = self._at_once(samples)
        self.state.progress.samples_at_once = now = math.ceil(before / 2)
        self.say(
            f"Memory ran out with {before} samples at once. The step is repeated, and from here on each batch goes "
            f"through in pieces of at most {now}, accumulated over all of it: the same training, in more time."
        )

    def _note_update(self, *_: Any) -> None:
        self._updating = True


def samples_of(batch: Batch) -> int:
    """How many samples a batch has: the length of its image; 1 where there is none that could be divided."""
    image = batch.get("image")
    return len(image) if isinstance(image, Tensor) and image.ndim else 1


def pieces_of(batch: Batch, samples: int, *, at_once: int) -> list[tuple[Batch, int]]:
    """A batch in as few pieces as ``at_once`` allows, and each one's number of samples; they differ by at most one.

    Example:
        >>> [(piece["image"].tolist(), size) for piece, size in pieces_of({"image": torch.arange(5)}, 5, at_once=2)]
        [([0, 1], 2), ([2, 3], 2), ([4], 1)]
    """
    number = math.ceil(samples / at_once)
    if number == 1:
        return [(batch, samples)]
    sizes = [samples // number + (index < samples % number) for index in range(number)]
    starts = [sum(sizes[:index]) for index in range(number)]
    return [
        ({key: _part(value, samples, start, start + size) for key, value in batch.items()}, size)
        for start, size in zip(starts, sizes, strict=True)
    ]


def _part(value: Any, samples: int, start: int, stop: int) -> Any:
    """Some samples of what there is one of for each; anything else as it is."""
    divisible = isinstance(value, list | tuple) or (isinstance(value, Tensor) and value.ndim > 0)
    return value[start:stop] if divisible and len(value) == samples else value


def _shape_of(batch: Batch) -> str:
    image = batch.get("image")
    return f"sample of shape {tuple(image.shape[1:])}" if isinstance(image, Tensor) and image.ndim else "batch"


def _ranks() -> int:
    """How many train together, also in a group that the caller made and the run was not told of."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
