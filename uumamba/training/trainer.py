"""Resumable training loop for any network, objective and optimizer."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from uumamba.optim import SharpnessAware
from uumamba.runtime.autocast import autocast
from uumamba.runtime.errors import UumambaError, require
from uumamba.runtime.memory_format import lay_channels_last
from uumamba.runtime.network import bare_network
from uumamba.runtime.observer import Observer, ObserverList, Row, RunView
from uumamba.runtime.stop import StoppedOnRequest, StopRequest
from uumamba.training.budget import Budget, Clock
from uumamba.training.checkpoint import Checkpoint
from uumamba.training.display import standard_observers
from uumamba.training.method_step import MethodStep
from uumamba.training.prefetcher import Prefetcher
from uumamba.training.repeatable_step import RepeatableStep
from uumamba.training.run_folder import RESUME, RunFolder, check_new_run, check_same_config, replace_infinite
from uumamba.training.run_state import MovingAverage, Progress, RunState
from uumamba.training.schedule import BudgetSchedule
from uumamba.training.trainer_options import Execution, StepOptions, Validation
from uumamba.types import Batch, Objective


class TrainingDivergedError(UumambaError):
    """Error after too many consecutive steps without a finite loss or gradient."""


class Trainer:
    """Training loop that resumes bit for bit after any interruption.

    The caller builds each object once: the optimizer defines a step, the objective the loss, and the trainer never
    branches on either. The trainer draws no random number itself. On a CPU the weights of a resumed run equal those of
    an uninterrupted run, bit for bit, provided that ``batches(epoch)`` depends only on the epoch and the global
    generators, whose states are part of the checkpoint.

    Edge cases. A step whose loss or gradient is not finite is skipped by the optimizer, left out of the mean loss and
    counted; too many such steps in a row end the run. A step that runs out of memory is repeated in micro-batches, see
    :class:`RepeatableStep <uumamba.training.repeatable_step.RepeatableStep>`. SIGTERM and SIGUSR1 end a run with a
    folder after the current step, with a checkpoint. Validation runs without gradients on the moving average, or on the
    network if there is no average, and selects ``best``.

    With ``execution.ranks`` several processes train together. ``net`` must then be ``ranks.wrap(net)`` here and in the
    optimizer. ``batches(epoch)`` gives this process's share, in an order that does not depend on the global generators,
    because each process has its own random numbers. All ranks validate. Only rank 0 writes, shows progress and holds
    the folder's lock; a signal to any rank stops all ranks.

    Args:
        net: the network; checkpoints hold it without wrappers.
        objective: ``objective(net, batch) -> scalar``; the state of a module is stored and its parameters may be
            trained. An objective that is an :class:`Observer <uumamba.runtime.observer.Observer>`, such as MESA,
            follows the run.
        optimizer: an optimizer of :mod:`uumamba.optim` with every parameter of both that requires a gradient.
        batches: function from the number of an epoch, from 0, to its batches, or a :class:`Prefetcher` of it that
            augments batches or reads them ahead.
        epochs: number of epochs of the run; with a budget the largest number.
        step: ascent loss, method, micro-batches, and the limit of skipped steps.
        execution: device, precision, memory format, compiling, and ranks.
        schedule: learning rate schedule, stepped after every optimizer step. That of :func:`by_budget` also ends the
            run: at the end of its budget the current epoch is cut short.
        average: moving average of the network's weights, updated every step.
        validation: validation of the network, and the epochs between two of them.
        folder: folder of checkpoints and ``metrics.jsonl``; None writes no file.
        observers: display, plot, trackers and other observers, which also see ``folder``; None for those of
            :func:`standard_observers`.

    Raises:
        UsageError: the optimizer is not of uumamba.optim, lacks a parameter, or lacks a scaler for float16; an observer
            is of another class; or ``epochs`` is below 1.

    Example:
        >>> from functools import partial
        >>> from uumamba.optim import SAM
        >>> from uumamba.training import SupervisedObjective, Trainer
        >>> net, objective = nn.Linear(2, 3), SupervisedObjective(nn.CrossEntropyLoss())
        >>> optimizer = SAM(net.parameters(), partial(torch.optim.SGD, lr=0.1), rho=0.05)
        >>> batch = {"image": torch.eye(2), "label": torch.tensor([0, 2])}
        >>> Trainer(net, objective, optimizer, batches=lambda epoch: [batch], epochs=30).fit()
        >>> net(batch["image"]).argmax(dim=1)
        tensor([0, 2])
    """

    def __init__(
        self,
        net: nn.Module,
        objective: Objective,
        optimizer: SharpnessAware,
        *,
        batches: Callable[[int], Iterable[Batch]] | Prefetcher,
        epochs: int,
        step: StepOptions | None = None,
        execution: Execution | None = None,
        schedule: LRScheduler | None = None,
        average: MovingAverage | None = None,
        validation: Validation | None = None,
        folder: RunFolder | None = None,
        observers: Sequence[Observer] | None = None,
    ) -> None:
        self.step_options = step = step or StepOptions()
        self.execution = execution = execution or Execution()
        _check_optimizer(net, objective, optimizer, precision=execution.precision)
        require(epochs >= 1, "epochs", got=epochs, expected="an integer of at least 1")
        self.device, ranks = torch.device(execution.device), execution.ranks
        self._autocast = partial(autocast, self.device, execution.precision)
        self.net = bare_network(net)
        self.objective = objective.to(self.device) if isinstance(objective, nn.Module) else objective
        self.optimizer = optimizer
        self.average = average
        # Not the average's counter, which stays on the CPU, where reading it waits for no device.
        for each in (net, *(() if average is None else (average.module,))):
            each.to(self.device)
            if execution.channels_last:
                lay_channels_last(each)
        self.prefetcher = batches if isinstance(batches, Prefetcher) else Prefetcher(batches)
        self.prefetcher.move_to(self.device, channels_last=execution.channels_last)
        self.epochs = epochs
        self.validation = validation
        self.run_folder = folder
        self.folder = folder if ranks.is_rank_zero else None  # the other ranks write nothing
        self.budget = schedule.budget if isinstance(schedule, BudgetSchedule) else Budget()
        self.clock = Clock(
            self.budget, ranks, optimizer, save_every_minutes=None if folder is None else folder.save_every_minutes
        )
        self.state = RunState(
            self.net,
            self.objective,
            optimizer,
            scheduler=schedule,
            average=self.average,
            device=self.device,
            ranks=ranks,
            method=None if step.method is None else MethodStep(step.method, entering=self._autocast),
        )
        optimizer.register_step_post_hook(lambda *_: ranks.broadcast_buffers(self.net))
        self.observers = ObserverList(
            [
                *([objective] if isinstance(objective, Observer) else []),
                *(standard_observers() if observers is None else observers),
                *([step.method] if isinstance(step.method, Observer) else []),
            ],
            RunView(
                net=self.net,
                optimizer=optimizer,
                epochs=epochs,
                folder=None if self.folder is None else self.folder.path,
                ranks=ranks,
            ),
        )
        self.step = RepeatableStep(
            net, self.state, step, autocast=self._autocast, compiles=execution.compiles, say=self.observers.say
        )
        self._stop = StopRequest()

    @property
    def progress(self) -> Progress:
        """Return epochs and steps done."""
        return self.state.progress

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
        with self._in_folder(), self.observers, self._noting_stops():
            self._begin(resume=resume, force=force)
            while not self._is_done():
                with self._open_epoch() as batches:
                    for batch in batches:
                        self.state.progress.lr = float(self.optimizer.param_groups[0]["lr"])
                        loss = self.step.take(batch)
                        if self.state.scheduler is not None:
                            self.state.scheduler.step()
                        if self.average is not None:
                            self.average.update_parameters(self.net)
                        self._count_step(loss)
                        self.observers.on_step()
                        self._raise_if_diverged()
                        self.clock.update()
                        self._stop_if_requested()
                        if self.clock.save_is_due:
                            self._save()
                        if self.clock.is_over:
                            break
                scores = self._validate()
                row = self._make_row(scores)
                self.observers.on_epoch_end(row)
                self._close_epoch(row)
                with self.budget.measure("saving"):
                    self._save(best=self._is_best(scores))
                self.clock.update()
                self.observers.on_epoch_saved(row)
                self._stop_if_requested()

    def _in_folder(self) -> AbstractContextManager[object]:
        return nullcontext() if self.folder is None else self.folder.locked()

    @contextmanager
    def _noting_stops(self) -> Iterator[None]:
        """Note stop requests, and report a later error as the stop."""
        with self._stop if self.run_folder else nullcontext():
            try:
                yield
            except StoppedOnRequest:
                raise
            except Exception as error:
                # A cluster also signals the data loader's workers, whose end may be noticed before the request.
                self._stop.raise_if_requested(f"({error}); continue from the last checkpoint with {RESUME}")
                raise

    def _begin(self, *, resume: bool, force: bool) -> None:
        """Restore the folder's state, or start a run there."""
        self.state.seed_per_rank()
        require(self.run_folder or not resume, "folder", got=None, expected="the folder of the run to resume")
        if resume and self.run_folder is not None:
            self._restore_latest(self.run_folder, force=force)
        elif self.folder is not None:
            check_new_run(self.folder.path)
        progress, run = self.state.progress, self.observers.run
        run.epochs, run.epochs_done = self.epochs, progress.epochs_done
        if self.folder is not None:
            run.rows = self.folder.begin(epochs=progress.epochs_done)
        self.observers.on_start()
        self.budget.begin(used_s=progress.used_seconds, longest_s=progress.longest_seconds)
        self.clock.note_save()
        self.clock.update()

    def _restore_latest(self, folder: RunFolder, *, force: bool) -> None:
        """Restore the newest undamaged checkpoint, which rank 0 reads for all ranks."""
        found = folder.latest(self.observers.say) if self.state.ranks.is_rank_zero else None
        stored = self.state.ranks.broadcast(None if found is None else vars(found))
        if stored is not None:
            if not force:
                check_same_config(stored["config"], folder.config, complete=folder.complete_config)
            self.state.restore(Checkpoint(**stored))
            self.observers.load_state_dict(stored["observers"])

    def _is_done(self) -> bool:
        """Return whether the last epoch is complete and validated.

        The last epoch is the last of ``epochs``, or the one that ended with the budget.
        """
        progress = self.state.progress
        is_between = progress.is_validated and not progress.steps_in_epoch
        return progress.epochs_done >= self.epochs or (is_between and self.clock.is_over)

    def _open_epoch(self) -> AbstractContextManager[Iterator[Batch]]:
        """Start or continue an epoch; return a context of its remaining batches."""
        progress = self.state.progress
        self._epoch_began, self.prefetcher.waited_s = time.monotonic() - progress.seconds, progress.waited_seconds
        self.net.train()
        self.observers.on_epoch_start()
        return self.prefetcher.load(self.state.remaining_batches(self.prefetcher.batches, progress.epochs_done))

    def _count_step(self, loss: Tensor) -> None:
        self.state.add_loss(loss)
        progress, run = self.state.progress, self.observers.run
        progress.steps_in_epoch += 1
        progress.steps_done += 1
        progress.seconds, progress.waited_seconds = time.monotonic() - self._epoch_began, self.prefetcher.waited_s
        progress.used_seconds = self.budget.used_s
        run.loss, run.was_skipped = loss, self.optimizer.skipped_steps > progress.skipped_steps
        progress.skipped_steps = self.optimizer.skipped_steps
        progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if run.was_skipped else 0

    def _raise_if_diverged(self) -> None:
        progress = self.state.progress
        if progress.skipped_in_a_row >= self.step_options.max_skipped_in_a_row:
            raise TrainingDivergedError(
                f"{progress.skipped_in_a_row} steps in a row had a loss or gradient that is not finite, up to step "
                f"{progress.steps_in_epoch} of epoch {progress.epochs_done + 1}. Fix: lower the learning rate or the "
                "perturbation radius, train in float32, or look for NaN in the data."
            )

    def _validate(self) -> dict[str, float]:
        """Return the scores of a validation that is due; empty without one."""
        progress, validation = self.state.progress, self.validation
        due = validation is None or validation.is_due(progress.epochs_done, epochs=self.epochs)
        progress.is_validated = bool(self.state.ranks.reduce_max(int(self.budget.needs_validation(due=due))))
        if not progress.is_validated:
            return {}
        net = self.net if self.average is None else self.average.module
        net.eval()
        with self.budget.measure("validation"), torch.no_grad(), self._autocast():
            found = {} if validation is None else validation.run(net)
            scores = self.state.ranks.broadcast({name: float(value) for name, value in found.items()})
        require(
            validation is None or "dice" in scores,
            "validation",
            got=sorted(scores),
            expected="scores that include 'dice'",
        )
        return scores

    def _make_row(self, scores: dict[str, float]) -> Row:
        """Make the row of the epoch that ends; a collective call."""
        progress, epoch = self.state.progress, self.state.progress.epochs_done
        require(progress.steps_in_epoch, "batches", got=f"no batch in epoch {epoch}", expected="at least one batch")
        loss_sum, loss_count = self.state.ranks.reduce_sum(self.state.loss_sums.tolist())
        return {
            "epoch": epoch,
            "loss": loss_sum / loss_count if loss_count else None,
            **scores,
            "lr": progress.lr,
            "skipped_steps": progress.skipped_steps,
            "data_wait": round(progress.waited_seconds / max(progress.seconds, 1e-9), 4),
            "seconds": round(time.monotonic() - self._epoch_began, 3),
        }

    def _close_epoch(self, row: Row) -> None:
        """Write the epoch's row, and count the epoch."""
        progress, run = self.state.progress, self.observers.run
        progress.epochs_done, progress.steps_in_epoch = row["epoch"] + 1, 0
        progress.seconds, progress.waited_seconds = 0.0, 0.0
        progress.used_seconds, progress.longest_seconds = self.budget.used_s, dict(self.budget.longest_s)
        self.state.loss_sums.zero_()
        if self.folder is not None:
            self.folder.log.append(row)
        if self.state.ranks.is_rank_zero:
            run.rows.append(replace_infinite(row))
        run.epochs_done, run.seconds_left = progress.epochs_done, 0.0 if self.budget.is_over else self.budget.left_s

    def _is_best(self, scores: dict[str, float]) -> bool:
        """Return whether the Dice is the best so far, and note it."""
        progress, dice = self.state.progress, scores.get("dice", float("nan"))
        is_best = dice > (float("-inf") if progress.best_dice is None else progress.best_dice)
        if is_best:
            progress.best_dice = dice
        return is_best

    def _save(self, *, best: bool = False) -> None:
        """Write a checkpoint; a collective call (random states of all ranks)."""
        if self.run_folder is not None:
            checkpoint = self.state.checkpoint(self.run_folder.config, self.observers.state_dict())
            # The other ranks wait: a rank that stops after a save must not end rank 0 during its write.
            self.state.ranks.on_rank_zero(partial(self.run_folder.save, checkpoint, best=best))
        self.clock.note_save()

    def _stop_if_requested(self) -> None:
        if self.run_folder is None or self._is_done():
            return
        self._stop.sync(self.state.ranks)
        progress = self.state.progress
        if self._stop.signal_name is not None and progress.steps_in_epoch:
            self._save()
        self._stop.raise_if_requested(
            f"in epoch {progress.epochs_done + 1} after {progress.steps_in_epoch} steps, with a checkpoint; continue "
            f"with {RESUME}"
        )


def _check_optimizer(net: nn.Module, objective: Objective, optimizer: SharpnessAware, *, precision: str) -> None:
    """Check that the optimizer holds every trainable parameter.

    Args:
        net: the network.
        objective: its parameters should be trained too.
        optimizer: an optimizer of uumamba.optim, with a scaler for float16.
        precision: precision of autocast.

    Raises:
        UsageError: the key names the option, or the first missing parameter.
    """
    require(
        isinstance(optimizer, SharpnessAware),
        "optimizer",
        got=type(optimizer).__name__,
        expected="an optimizer of uumamba.optim",
        fix="pass Plain(net.parameters(), partial(torch.optim.SGD, lr=0.01))",
    )
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trainable = {f"net.{name}": value for name, value in net.named_parameters()}
    if isinstance(objective, nn.Module):
        trainable |= {f"objective.{name}": value for name, value in objective.named_parameters()}
    missing = [name for name, value in trainable.items() if value.requires_grad and id(value) not in held]
    require(
        not missing,
        "optimizer",
        got=f"no {' '.join(missing[:1])} ({len(missing)} parameters are missing)",
        expected="every parameter that requires a gradient",
        fix="give all parameters to the optimizer, or set requires_grad to False",
    )
    require(
        precision != "float16" or optimizer.scaler is not None,
        "precision",
        got=precision,
        expected="float32 or bfloat16 for an optimizer without a gradient scaler",
        fix="make the optimizer with scaler=torch.amp.GradScaler(), or choose bfloat16",
    )
