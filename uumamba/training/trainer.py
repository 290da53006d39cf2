"""Resumable training loop for any network, objective and optimizer of the family."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from uumamba.optim import SharpnessAware
from uumamba.runtime.autocast import Precision, autocast
from uumamba.runtime.errors import UumambaError, require
from uumamba.runtime.memory_format import lay_channels_last
from uumamba.runtime.network import bare_network
from uumamba.runtime.ranks import ALONE, Ranks
from uumamba.runtime.stop import StoppedOnRequest, StopRequest
from uumamba.training.adaptive_microbatch import AdaptiveMicrobatch
from uumamba.training.budget import Budget, Clock
from uumamba.training.callback_list import Callback, CallbackList
from uumamba.training.check_setup import check_setup
from uumamba.training.checkpoint import Checkpoint
from uumamba.training.compiled_step import CompiledStep
from uumamba.training.display import LineDisplay, make_display
from uumamba.training.method_step import MethodStep
from uumamba.training.prefetcher import Prefetcher
from uumamba.training.progress_plot import draw_progress
from uumamba.training.run_folder import RESUME, RunFolder, check_new_run, check_same_config
from uumamba.training.run_state import RunState, make_moving_average
from uumamba.types import Batch, Method, Objective

SECONDS_BETWEEN_PLOTS = 30.0  # drawing one takes about half a second


class TrainingDivergedError(UumambaError):
    """Error after too many consecutive steps without a finite loss or gradient."""


class Trainer:
    """Training loop that resumes bit for bit after any interruption.

    The caller builds each object once: the optimizer defines a step, the objective the loss, and the trainer never
    branches on either. The trainer draws no random number itself. On a CPU the weights of a resumed run equal those of
    an uninterrupted run, bit for bit, provided that ``batches(epoch)`` depends only on the epoch and the global
    generators, whose states are part of the checkpoint.

    Edge cases. A step whose loss or gradient is not finite is skipped by the optimizer, left out of the mean loss and
    counted; ``max_skipped_in_a_row`` such steps end the run. A step that runs out of memory is repeated in
    micro-batches, see :class:`AdaptiveMicrobatch <uumamba.training.adaptive_microbatch.AdaptiveMicrobatch>`. SIGTERM
    and SIGUSR1 end the run after the current step, with a checkpoint. Validation runs without gradients on the moving
    average, or on the network if there is no average, and selects ``best``.

    With ``ranks`` several processes train together. ``net`` must then be ``ranks.wrap(net)`` here and in the optimizer.
    ``batches(epoch)`` gives this process's share, in an order that does not depend on the global generators, because
    each process has its own random numbers. All ranks call ``validate``. Only rank 0 writes, shows progress and holds
    the folder's lock; a signal to any rank stops all ranks.

    Args:
        net: the network; checkpoints hold it without wrappers.
        objective: ``objective(net, batch) -> scalar``; the state of a module is stored and its parameters may be
            trained. ``begin_epoch(epoch)`` and ``after_step(net)`` of the objective, if present, are called when an
            epoch starts or is resumed, and after each optimizer step.
        optimizer: an optimizer of :mod:`uumamba.optim` with every parameter of both that requires a gradient.
        ascent: scalar for the ascent step in place of the loss, computed from the objective's outputs.
        method: penalty added to each step at the original weights, such as UDIM. It is called once per step with the
            augmented batch's ``image``, ``label`` and, if given, ``domain``. Its scalar is computed under the run's
            autocast, and its state is part of the checkpoint.
        epochs: number of epochs of the run; with a ``budget`` the largest number.
        batches: function from the number of an epoch, from 0, to its batches.
        augment: function from batch to batch, on the device.
        read_ahead: prefetch and augment the next batch in a thread; :class:`Prefetcher` gives the conditions.
        validate: ``validate(net) -> {"dice": ..., ...}``, higher is better, in evaluation mode.
        validate_every: epochs between validations; the last epoch is always validated.
        scheduler: learning rate schedule, stepped after every optimizer step.
        budget: total time of the run; at its end the current epoch is cut short.
        ema_decay: decay of the moving average ``decay * average + (1 - decay) * weights``, updated every step.
        device: device of the training.
        precision: precision of autocast, entered again for every pass; ``"float16"`` needs an optimizer with a scaler.
        channels_last: store weights and images channels-last; on a CPU torch 2.13 can crash with this format.
        compiles: train through ``torch.compile``; a failure is reported and training continues without it.
        max_skipped_in_a_row: end the run after this number of consecutive skipped steps.
        samples_at_once: most samples in one pass; larger batches are split into micro-batches. None is no limit.
        save_every_minutes: time after which a checkpoint is also written between two steps, by a monotonic clock; None
            writes checkpoints at the ends of epochs only.
        run_dir: folder of checkpoints, ``metrics.jsonl`` and ``progress.png``; None writes no file.
        config: JSON values, stored in the checkpoints and compared when the run is resumed.
        complete_config: fills keys that an older program did not store, before the comparison.
        callbacks: called with each epoch's row, such as trackers.
        numbers: called at the end of an epoch; returns numbers to add to the row.
        ranks: the processes that train together; a single process by default.
        progress: True for a bar, False for one line per epoch, None for a bar on a terminal.
        log: called with each line; stderr by default.

    Raises:
        UsageError: the optimizer is not of the family, lacks a parameter, or lacks a scaler for float16; or a number is
            out of range.
        TypeError: the configuration is not JSON.

    Example:
        >>> from functools import partial
        >>> from uumamba.optim import SAM
        >>> from uumamba.training import SupervisedObjective, Trainer
        >>> net, objective = nn.Linear(2, 3), SupervisedObjective(nn.CrossEntropyLoss())
        >>> optimizer = SAM(net.parameters(), partial(torch.optim.SGD, lr=0.1), rho=0.05)
        >>> batch = {"image": torch.eye(2), "label": torch.tensor([0, 2])}
        >>> trainer = Trainer(net, objective, optimizer, epochs=30, batches=lambda epoch: [batch], log=[].append)
        >>> trainer.fit()
        >>> net(batch["image"]).argmax(dim=1)
        tensor([0, 2])
    """

    def __init__(
        self,
        net: nn.Module,
        objective: Objective,
        optimizer: SharpnessAware,
        *,
        epochs: int,
        batches: Callable[[int], Iterable[Batch]],
        ascent: Callable[[Any], Tensor] | None = None,
        method: Method | None = None,
        augment: Callable[[Batch], Batch] | None = None,
        read_ahead: bool = False,
        validate: Callable[[nn.Module], dict[str, float]] | None = None,
        validate_every: int = 1,
        scheduler: LRScheduler | None = None,
        budget: Budget | None = None,
        ema_decay: float | None = None,
        device: torch.device | str = "cpu",
        precision: Precision = "float32",
        channels_last: bool = False,
        compiles: bool = False,
        max_skipped_in_a_row: int = 25,
        samples_at_once: int | None = None,
        save_every_minutes: float | None = 10.0,
        run_dir: Path | str | None = None,
        config: Any = None,
        complete_config: Callable[[Any], Any] | None = None,
        callbacks: Sequence[Callback] = (),
        numbers: Callable[[], dict[str, Any]] | None = None,
        ranks: Ranks = ALONE,
        progress: bool | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        check_setup(
            net,
            objective,
            optimizer,
            precision=precision,
            save_every_minutes=save_every_minutes,
            epochs=epochs,
            validate_every=validate_every,
            max_skipped_in_a_row=max_skipped_in_a_row,
            samples_at_once=1 if samples_at_once is None else samples_at_once,
        )
        self.device = torch.device(device)
        net.to(self.device)
        self.net = bare_network(net)
        if channels_last:
            lay_channels_last(self.net)
        self.objective = objective.to(self.device) if isinstance(objective, nn.Module) else objective
        self.optimizer = optimizer
        self.ascent = ascent
        self.average = make_moving_average(self.net, ema_decay)
        self.epochs = epochs
        self.batches = batches
        self.augment = augment
        self.prefetcher = Prefetcher(
            self.device, augment=self._augment, read_ahead=read_ahead, channels_last=channels_last
        )
        self.validate = validate
        self.validate_every = validate_every
        self.precision = precision
        self._autocast = partial(autocast, self.device, precision)
        self.max_skipped_in_a_row = max_skipped_in_a_row
        self.has_folder = run_dir is not None
        self.folder = RunFolder(run_dir) if run_dir is not None and ranks.is_rank_zero else None
        self.config = json.loads(json.dumps(config))
        self.complete_config = complete_config
        self.numbers = numbers
        self.budget = Budget() if budget is None else budget
        self.clock = Clock(self.budget, ranks, optimizer, save_every_minutes=save_every_minutes)
        self.state = RunState(
            self.net,
            self.objective,
            optimizer,
            scheduler=scheduler,
            average=self.average,
            device=self.device,
            ranks=ranks,
            method=None if method is None else MethodStep(method, entering=self._autocast),
        )
        optimizer.register_step_post_hook(lambda *_: ranks.broadcast_buffers(self.net))
        self._display = make_display(progress, log) if ranks.is_rank_zero else LineDisplay(lambda sentence: None)
        self._callbacks = CallbackList(callbacks, say=self._display.say)
        self._microbatch = AdaptiveMicrobatch(
            self.state, self._compute_objective, say=self._display.say, samples_at_once=samples_at_once
        )
        self._compiled = CompiledStep(net, enabled=compiles, say=self._display.say)
        self._stop = StopRequest()
        self._epoch_began = self._plotted = time.monotonic()

    def fit(self, *, resume: bool = False, force: bool = False) -> None:
        """Train for the remaining epochs.

        Args:
            resume: continue from the folder's newest undamaged checkpoint; start a run in a folder without any.
            force: continue with a changed configuration.

        Raises:
            UsageError: the folder holds a checkpoint and ``resume`` is off, or the configuration has changed.
            DamagedCheckpointError: all checkpoints are damaged.
            StoppedOnRequest: a signal arrived; the run can be resumed.
            TrainingDivergedError: too many consecutive steps were not finite.
        """
        lock = nullcontext() if self.folder is None else self.folder.locked()
        with self._display, lock, self._callbacks, self._stop if self.has_folder else nullcontext():
            try:
                self._begin(resume=resume, force=force)
                while not self._is_done():
                    self._train_epoch()
            except StoppedOnRequest:
                raise
            except Exception as error:
                # A cluster also signals the data loader's workers, whose end may be noticed before the request.
                self._stop.raise_if_requested(f"({error}); continue from the last checkpoint with {RESUME}")
                raise

    def _begin(self, *, resume: bool, force: bool) -> None:
        """Restore the folder's state, or start a run there."""
        self.state.seed_per_rank()
        require(self.has_folder or not resume, "run_dir", got=None, expected="the folder of the run to resume")
        if resume:
            self._restore_latest(force=force)
        elif self.folder is not None:
            check_new_run(self.folder.path)
        progress = self.state.progress
        done = progress.epochs_done
        rows = [] if self.folder is None else self.folder.begin(self.config, epochs=done)
        self._callbacks.begin(rows, done=done, epochs=self.epochs)
        self.budget.begin(used_s=progress.used_seconds, longest_s=progress.longest_seconds)
        self._display.begin(epochs=self.epochs, done=done, budget=self.budget)
        self.clock.note_save()
        self.clock.update()

    def _restore_latest(self, *, force: bool) -> None:
        """Restore the newest undamaged checkpoint, which rank 0 reads for all ranks."""
        found = None if self.folder is None else self.folder.latest(self._display.say)
        stored = self.state.ranks.broadcast(None if found is None else vars(found))
        if stored is not None:
            if not force:
                check_same_config(stored["config"], self.config, complete=self.complete_config)
            self.state.restore(Checkpoint(**stored))

    def _is_done(self) -> bool:
        """Return whether the last epoch is complete and validated.

        The last epoch is the last of ``epochs``, or the one that ended with the budget.
        """
        progress = self.state.progress
        is_between = progress.is_validated and not progress.steps_in_epoch
        return progress.epochs_done == self.epochs or (is_between and self.clock.is_over)

    def _train_epoch(self) -> None:
        progress = self.state.progress
        epoch = progress.epochs_done
        self._epoch_began, self.prefetcher.waited_s = time.monotonic() - progress.seconds, progress.waited_seconds
        self.net.train()
        self._notify_objective("begin_epoch", epoch)
        with self.prefetcher.load(self.state.remaining_batches(self.batches, epoch)) as batches:
            for batch in batches:
                self._take_step(batch)
                self.clock.update()
                self._stop_if_requested()
                if self.clock.save_is_due:
                    self._save()
                if self.clock.is_over:
                    break
        self._finish_epoch(epoch, self._validate(epoch))
        self._stop_if_requested()

    def _augment(self, batch: Batch) -> Batch:
        return batch if self.augment is None else self.augment(batch)

    def _take_step(self, batch: Batch) -> None:
        self.state.progress.lr = float(self.optimizer.param_groups[0]["lr"])
        step = partial(self._microbatch.step, batch, ascent=self.ascent)
        loss = self._compiled.attempt(step, snapshot=self._microbatch.snapshot)
        if self.state.scheduler is not None:
            self.state.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.net)
        self._notify_objective("after_step", self.net)
        self._count_step(loss)

    def _compute_objective(self, batch: Batch) -> Tensor | tuple[Tensor, Any]:
        """Run one pass in its own autocast.

        Autocast caches casts of weights, which must not outlive a perturbation of the weights.
        """
        with self._autocast():
            return self.objective(self._compiled.net, batch)

    def _notify_objective(self, event: str, subject: Any) -> None:
        """Call a hook of the objective, if present."""
        if hasattr(self.objective, event):
            getattr(self.objective, event)(subject)

    def _count_step(self, loss: Tensor) -> None:
        self.state.add_loss(loss)
        self._display.step()
        progress = self.state.progress
        progress.steps_in_epoch += 1
        progress.steps_done += 1
        progress.seconds, progress.waited_seconds = time.monotonic() - self._epoch_began, self.prefetcher.waited_s
        progress.used_seconds = self.budget.used_s
        was_skipped = self.optimizer.skipped_steps > progress.skipped_steps
        progress.skipped_steps = self.optimizer.skipped_steps
        progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if was_skipped else 0
        if progress.skipped_in_a_row >= self.max_skipped_in_a_row:
            raise TrainingDivergedError(
                f"{progress.skipped_in_a_row} steps in a row had a loss or gradient that is not finite, up to step "
                f"{progress.steps_in_epoch} of epoch {progress.epochs_done + 1}. Fix: lower the learning rate or the "
                "perturbation radius, train in float32, or look for NaN in the data."
            )

    def _validate(self, epoch: int) -> dict[str, float]:
        due = (epoch + 1) % self.validate_every == 0 or epoch + 1 == self.epochs
        self.state.progress.is_validated = bool(self.state.ranks.reduce_max(int(self.budget.needs_validation(due=due))))
        if not self.state.progress.is_validated:
            return {}
        net = self.net if self.average is None else self.average.module
        net.eval()
        with self.budget.measure("validation"), torch.no_grad(), self._autocast():
            found = {} if self.validate is None else self.validate(net)
            scores = self.state.ranks.broadcast({name: float(value) for name, value in found.items()})
        is_valid = self.validate is None or "dice" in scores
        require(is_valid, "validate", got=sorted(scores), expected="scores that include 'dice'")
        return scores

    def _finish_epoch(self, epoch: int, scores: dict[str, float]) -> None:
        """Write the epoch's row, then the checkpoint that includes it."""
        progress = self.state.progress
        require(progress.steps_in_epoch, "batches", got=f"no batch in epoch {epoch}", expected="at least one batch")
        loss_sum, loss_count = self.state.ranks.reduce_sum(self.state.loss_sums.tolist())
        row: dict[str, Any] = {
            "epoch": epoch,
            "loss": loss_sum / loss_count if loss_count else None,
            **scores,
            "lr": progress.lr,
            "skipped_steps": progress.skipped_steps,
            "data_wait": round(progress.waited_seconds / max(progress.seconds, 1e-9), 4),
            "seconds": round(time.monotonic() - self._epoch_began, 3),
        }
        loss_weights = getattr(self.objective, "loss_weights", None)
        if loss_weights is not None:
            row["loss_weights"] = loss_weights()
        row |= {} if self.numbers is None else self.numbers()
        row |= {} if self.state.method is None else self.state.method.numbers()
        dice = scores.get("dice", float("nan"))
        is_best = dice > (float("-inf") if progress.best_dice is None else progress.best_dice)
        if is_best:
            progress.best_dice = dice
        progress.epochs_done, progress.steps_in_epoch = epoch + 1, 0
        progress.seconds, progress.waited_seconds = 0.0, 0.0
        progress.used_seconds, progress.longest_seconds = self.budget.used_s, dict(self.budget.longest_s)
        self.state.loss_sums.zero_()
        if self.folder is not None:
            self.folder.log.append(row)
        with self.budget.measure("saving"):
            self._save(best=is_best)
        self.clock.update()
        plot_is_due = self._is_done() or time.monotonic() - self._plotted > SECONDS_BETWEEN_PLOTS
        if self.folder is not None and plot_is_due:
            draw_progress(self.folder.log.rows(), self.folder.plot)
            self._plotted = time.monotonic()
        self._display.epoch(row)
        self._callbacks.epoch(row)

    def _save(self, *, best: bool = False) -> None:
        """Write a checkpoint; a collective call (random states of all ranks)."""
        if self.has_folder:
            checkpoint, folder = self.state.checkpoint(self.config), self.folder
            # The other ranks wait: a rank that stops after a save must not end rank 0 during its write.
            self.state.ranks.on_rank_zero(lambda: None if folder is None else folder.save(checkpoint, best=best))
        self.clock.note_save()

    def _stop_if_requested(self) -> None:
        if not self.has_folder or self._is_done():
            return
        self._stop.sync(self.state.ranks)
        progress = self.state.progress
        if self._stop.signal_name is not None and progress.steps_in_epoch:
            self._save()
        where = f"in epoch {progress.epochs_done + 1} after {progress.steps_in_epoch} steps"
        self._stop.raise_if_requested(f"{where}, with a checkpoint; continue with {RESUME}")
