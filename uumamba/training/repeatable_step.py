"""Optimizer steps with retries after out-of-memory and failed compiles."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from uumamba.optim.restore import running_statistics
from uumamba.runtime.errors import UumambaError
from uumamba.runtime.memory_shortage import OutOfMemoryError, free_memory, is_out_of_memory, summarize_error
from uumamba.runtime.seeds import get_random_state, set_random_state
from uumamba.training.run_state import RunState
from uumamba.training.trainer_options import StepOptions
from uumamba.types import Batch


class RepeatableStep:
    r"""Optimizer step, repeated if memory runs out or ``torch.compile`` fails.

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

    Compiling starts with the first pass and again with another shape, so it may fail inside any step. That step is
    repeated with the plain network, whose own errors are raised, and so are all later ones. The plain network is
    unchanged and its state keeps its names.

    Edge cases. Before a step is repeated, weights, running statistics, the state of optimizer and method, and the
    random states are restored; no gradient is left. State that an objective changes in its ``forward`` is not restored.
    An error in the base optimizer's own update ends the run, because some weights may have changed. A lack of memory
    also ends a run of several ranks, because one rank cannot repeat a step on its own. Values as long as
    ``batch["image"]`` are split; all others go with each micro-batch.

    Args:
        net: the network that the passes use, such as a data-parallel wrapper.
        state: state of the run.
        options: options of the step.
        autocast: makes the context of one pass, entered again for each: autocast caches casts of weights, which must
            not outlive a perturbation of the weights.
        compiles: compile the network.
        say: called with a sentence each time that the micro-batches become smaller, and if compiling fails.
    """

    def __init__(
        self,
        net: nn.Module,
        state: RunState,
        options: StepOptions,
        *,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
        compiles: bool = False,
        say: Callable[[str], None],
    ) -> None:
        self.net = cast(nn.Module, torch.compile(net)) if compiles else net
        self.state = state
        self.options = options
        self.say = say
        self._plain = net
        self._autocast = autocast
        self._statistics = running_statistics(state.net)  # found once: a walk through all modules takes 0.2 ms
        self._is_updating = False
        self._weight = 1.0
        state.optimizer.base.register_step_pre_hook(self._note_update)

    def take(self, batch: Batch) -> Tensor:
        """Take one optimizer step and return its loss.

        Raises:
            OutOfMemoryError: a single sample does not fit, or the step cannot be repeated.
        """
        snapshot = Snapshot(self._statistics, self.state)
        compiler_failure = ""
        while True:
            self._is_updating = False
            try:
                loss = self._attempt(batch)
            except Exception as error:
                if is_out_of_memory(error):
                    self._halve_micro_batch(batch, error)
                elif self.net is self._plain or self._is_updating or isinstance(error, UumambaError):
                    raise  # no fault of the compiler, or some weights may have changed
                else:
                    self.net = self._plain
                    compiler_failure = f"{type(error).__name__}: {summarize_error(error)}"
            else:
                if compiler_failure:
                    self.say(f"torch.compile failed ({compiler_failure}); training continues without compiling.")
                return loss
            # After the handler, because the error holds the frames and with them the tensors of the failed step.
            self.state.optimizer.zero_grad()
            free_memory(self.state.device)
            snapshot.restore()

    def _attempt(self, batch: Batch) -> Tensor:
        """Take the step once, in micro-batches if necessary."""
        samples = _count_samples(batch)
        parts = split_batch(batch, samples, at_once=self._micro_batch_size(samples))
        optimizer, ascent = self.state.optimizer, self.options.ascent
        added = None if self.state.method is None else self.state.method.scalars(parts)
        if len(parts) == 1:
            return optimizer.step(partial(self._run_pass, batch), ascent=ascent, at_weights=added)
        optimizer.accumulation = "full"
        weighted = None if ascent is None else lambda outputs: self._weight * ascent(outputs)
        # Weighted by the number of samples, because the optimizer takes the mean over micro-batches.
        closures = [partial(self._run_pass, part, weight=size * len(parts) / samples) for part, size in parts]
        return optimizer.step(closures, ascent=weighted, at_weights=added)

    def _run_pass(self, batch: Batch, *, weight: float = 1.0) -> Tensor | tuple[Tensor, Any]:
        """Compute the weighted objective of a batch or micro-batch."""
        self._weight = weight  # also for the ascent loss, computed right after this pass
        with self._autocast():
            result = self.state.objective(self.net, batch)
        if weight == 1:
            return result
        return (result[0] * weight, result[1]) if isinstance(result, tuple) else result * weight

    def _micro_batch_size(self, samples: int) -> int:
        bounds = (self.options.samples_at_once, self.state.progress.samples_at_once, samples)
        return min(bound for bound in bounds if bound is not None)

    def _halve_micro_batch(self, batch: Batch, error: BaseException) -> None:
        """Halve the micro-batches, or raise where that does not help."""
        reason, size = summarize_error(error), self._micro_batch_size(_count_samples(batch))
        if self._is_updating:
            raise OutOfMemoryError(
                f"Memory ran out while the optimizer changed the weights ({reason}). Fix: continue from the last "
                "checkpoint with --resume on a device with more memory, or use an optimizer with less state, such as "
                "SGD."
            ) from error
        if size <= 1:
            image = batch.get("image")
            shape = f" of shape {tuple(image.shape[1:])}" if isinstance(image, Tensor) else ""
            raise OutOfMemoryError(
                f"Memory ran out with a single sample{shape} ({reason}). Fix: use a smaller patch or network, "
                "precision bfloat16, or a device with more memory."
            ) from error
        after = math.ceil(size / 2)
        if self.state.ranks.count > 1:
            raise OutOfMemoryError(
                f"Memory ran out with {size} samples per micro-batch ({reason}); with several ranks no step is "
                f"repeated. Fix: continue with --resume --force --set training.samples_at_once={after}."
            ) from error
        self.state.progress.samples_at_once = after
        self.say(
            f"Memory ran out with {size} samples at once. The step is repeated. From now on each batch is split "
            f"into micro-batches of at most {after}, with accumulated gradients: the same training, but slower."
        )

    def _note_update(self, *_: Any) -> None:
        self._is_updating = True


class Snapshot:
    """State that a step changes before it updates the weights.

    The snapshot holds running statistics, the state of optimizer and method, and the random states. The optimizer
    restores the weights itself when a pass raises. Per-parameter state of an optimizer is stored by reference, not
    copied: the rules replace such tensors before the weight update, and change them in place only in the update.

    Args:
        statistics: running statistics of the network, which are copied; most networks of the package have none.
        state: optimizer, method and device of the run; the random states are those of the device and the CPU.

    Example:
        >>> from uumamba.optim import Plain
        >>> net = torch.nn.BatchNorm1d(1)
        >>> optimizer = Plain(net.parameters(), partial(torch.optim.SGD, lr=0.1))
        >>> state = RunState(net, nn.MSELoss(), optimizer, scheduler=None, average=None, device=torch.device("cpu"))
        >>> start = Snapshot(running_statistics(net), state)
        >>> _, drawn = net(torch.tensor([[1.0], [3.0]])), torch.rand(2)
        >>> start.restore()
        >>> net.running_mean, torch.equal(torch.rand(2), drawn)
        (tensor([0.]), True)
    """

    def __init__(self, statistics: Sequence[Tensor], state: RunState) -> None:
        self._state = state
        self._statistics = [(value, value.clone()) for value in statistics]
        self._memory = {param: dict(values) for param, values in state.optimizer.state.items()}
        self._numbers = dict(state.optimizer.numbers)
        self._method_state = {} if state.method is None else state.method.state()
        self._random = get_random_state(state.device)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the stored state."""
        optimizer, method, device = self._state.optimizer, self._state.method, self._state.device
        for value, stored in self._statistics:
            value.copy_(stored)
        optimizer.state.clear()
        optimizer.state.update({param: dict(values) for param, values in self._memory.items()})
        optimizer.numbers.clear()
        optimizer.numbers.update(self._numbers)
        if method is not None:
            method.restore(self._method_state)
        set_random_state(self._random, device)
        scaler = optimizer.scaler
        if scaler is not None:  # refuses a second unscaling before an update, so its scale is updated to itself
            scaler.scale(torch.zeros((), device=device))  # creates the scale if this is the first use
            scaler.update(new_scale=scaler.get_scale())


def _count_samples(batch: Batch) -> int:
    image = batch.get("image")
    return len(image) if isinstance(image, Tensor) and image.ndim else 1


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
