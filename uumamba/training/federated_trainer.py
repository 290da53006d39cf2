"""Resumable training of sites that exchange weights, simulated in one process."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn

from uumamba.federated import RoundRecord, Simulation
from uumamba.runtime.errors import require
from uumamba.runtime.network import evaluating
from uumamba.runtime.observer import Observer, ObserverList, Row, RunView
from uumamba.runtime.options import PositiveInt, check_options
from uumamba.runtime.seeds import get_random_state, set_random_state
from uumamba.runtime.stop import StopRequest
from uumamba.training.checkpoint import Checkpoint
from uumamba.training.display import standard_observers
from uumamba.training.run_folder import RESUME, RunFolder, check_new_run, check_same_config, replace_infinite
from uumamba.training.run_state import Progress
from uumamba.training.trainer import TrainingDivergedError

SiteModels = Mapping[str, Callable[[], nn.Module]]
"""Functions that load a site's own model and return its network."""


class FederatedTrainer:
    """Training of a :class:`Simulation <uumamba.federated.Simulation>` with checkpoints, validation and a log.

    A row of ``metrics.jsonl`` is an epoch of some rounds. In addition to the rows of :class:`Trainer
    <uumamba.training.Trainer>` it has ``consensus_distance`` and ``isolated`` sites of the epoch's last round and
    ``sent_megabytes`` since the start. Checkpoints hold the network with the mean of all sites' weights, so that
    prediction needs no other code, and the state of every site. A resumed run equals an uninterrupted one.

    Args:
        simulation: sites and method. Its module has the children ``net`` and ``objective``.
        epochs: number of epochs.
        rounds_per_epoch: rounds of an epoch.
        validate: ``validate(net, sites)`` returns scores with ``"dice"``; ``net`` has the mean weights. In the last
            epoch ``sites`` load the sites' own models into the same network, so ``net`` comes first.
        validate_every: epochs between validations; the last epoch is always validated.
        folder: folder of checkpoints and ``metrics.jsonl``; None writes no file.
        observers: display and others; None for those of :func:`standard_observers`.

    Raises:
        UsageError: a number is below 1.
    """

    @check_options
    def __init__(
        self,
        simulation: Simulation,
        *,
        epochs: PositiveInt,
        rounds_per_epoch: PositiveInt,
        validate: Callable[[nn.Module, SiteModels], dict[str, Any]] | None = None,
        validate_every: PositiveInt = 1,
        folder: RunFolder | None = None,
        observers: Sequence[Observer] | None = None,
    ) -> None:
        self.simulation, self.epochs, self.rounds_per_epoch = simulation, epochs, rounds_per_epoch
        self.validate, self.validate_every, self.folder = validate, validate_every, folder
        self.progress = Progress()
        self.sent_bytes = 0
        module = simulation.net
        self.net, self.objective = module.get_submodule("net"), module.get_submodule("objective")
        self.observers = ObserverList(
            [
                *([self.objective] if isinstance(self.objective, Observer) else []),
                *(standard_observers() if observers is None else observers),
            ],
            RunView(net=self.net, epochs=epochs, folder=None if folder is None else folder.path),
        )
        self._stop = StopRequest()
        self._saved_at = time.monotonic()

    def fit(self, *, resume: bool = False, force: bool = False) -> None:
        """Train for the remaining epochs.

        Args:
            resume: continue from the folder's newest undamaged checkpoint; start a run in a folder without any.
            force: continue with a changed configuration.

        Raises:
            UsageError: the folder holds a checkpoint and ``resume`` is off, the configuration has changed, or a site
                fails on a directed graph.
            StoppedOnRequest: a signal arrived; the run can be resumed.
            TrainingDivergedError: no site had a finite step in a round.
        """
        with self._in_folder(), self.observers, self._noting_stops():
            self._begin(resume=resume, force=force)
            while self.progress.epochs_done < self.epochs:
                self.observers.on_epoch_start()
                began = time.monotonic() - self.progress.seconds
                while self.progress.steps_in_epoch < self.rounds_per_epoch:
                    record = self.simulation.run_round()
                    self._count(record)
                    self.progress.seconds = time.monotonic() - began
                    self.observers.on_step()
                    self._save_if_due()
                row = self._make_row(record, self._validate(), seconds=time.monotonic() - began)
                self.observers.on_epoch_end(row)
                self._close_epoch(row)
                self.observers.on_epoch_saved(row)
                self._stop_if_requested()

    def _in_folder(self) -> AbstractContextManager[object]:
        return nullcontext() if self.folder is None else self.folder.locked()

    @contextmanager
    def _noting_stops(self) -> Iterator[None]:
        with self._stop if self.folder else nullcontext():
            yield

    def _begin(self, *, resume: bool, force: bool) -> None:
        folder = self.folder
        require(folder or not resume, "folder", got=None, expected="the folder of the run to resume")
        if folder is not None:
            found = folder.latest(self.observers.say) if resume else None
            if found is not None:
                if not force:
                    check_same_config(found.config, folder.config, complete=folder.complete_config)
                self._restore(found)
            elif not resume:
                check_new_run(folder.path)
            self.observers.run.rows = folder.begin(epochs=self.progress.epochs_done)
        self.observers.run.epochs_done = self.progress.epochs_done
        self.observers.on_start()
        method = self.simulation.method
        self.observers.say(f"sites: {method.topology.describe(method.gossip_steps)}")

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.progress = Progress(**checkpoint.progress)
        self.sent_bytes = checkpoint.method["sent_bytes"]
        self.simulation.load_state_dict(checkpoint.method["simulation"])
        set_random_state(checkpoint.random, torch.device("cpu"))
        self.observers.load_state_dict(checkpoint.observers)

    def _count(self, record: RoundRecord) -> None:
        progress, run = self.progress, self.observers.run
        steps, skipped = self.simulation.method.local_steps, sum(record.skipped_steps.values())
        progress.steps_in_epoch += 1
        progress.steps_done += steps
        progress.skipped_steps += skipped
        if math.isfinite(record.loss):
            progress.loss_sum, progress.loss_count = progress.loss_sum + record.loss, progress.loss_count + 1
        self.sent_bytes += record.sent_bytes
        run.loss, run.was_skipped = torch.tensor(record.loss), skipped == steps * len(record.skipped_steps)
        if run.was_skipped:
            raise TrainingDivergedError(
                f"No site had a finite loss and gradient in round {record.round + 1}. Fix: lower the learning rate or "
                "the perturbation radius, or look for NaN in the data."
            )

    def _validate(self) -> dict[str, Any]:
        """Return the scores of a due validation, and load the mean weights."""
        epoch = self.progress.epochs_done + 1
        scores: dict[str, Any] = {}
        if self.validate is not None and (epoch % self.validate_every == 0 or epoch == self.epochs):
            clients = self.simulation.clients if epoch == self.epochs else []
            sites = {client.name: partial(self._load_site, index) for index, client in enumerate(clients)}
            self.simulation.load_consensus()
            with evaluating(self.net):
                scores = self.validate(self.net, sites)
            require("dice" in scores, "validate", got=sorted(scores), expected="scores that include 'dice'")
        self.simulation.load_consensus()
        return scores

    def _load_site(self, index: int) -> nn.Module:
        self.simulation.load_client(index)
        return self.net

    def _make_row(self, record: RoundRecord, scores: dict[str, Any], *, seconds: float) -> Row:
        progress, method = self.progress, self.simulation.method
        factor = 1.0 if method.lr_factor is None else method.lr_factor(record.round)
        return {
            "epoch": progress.epochs_done,
            "loss": progress.loss_sum / progress.loss_count if progress.loss_count else None,
            **scores,
            "lr_factor": factor,
            "skipped_steps": progress.skipped_steps,
            "rounds": record.round + 1,
            "consensus_distance": record.consensus_distance,
            "sent_megabytes": self.sent_bytes / 1e6,
            "isolated": list(record.isolated),
            "seconds": round(seconds, 3),
        }

    def _close_epoch(self, row: Row) -> None:
        """Write the epoch's row and checkpoint, and count the epoch."""
        progress, run = self.progress, self.observers.run
        progress.epochs_done, progress.steps_in_epoch = row["epoch"] + 1, 0
        progress.seconds = progress.loss_sum = progress.loss_count = 0.0
        dice = row.get("dice")
        is_best = dice is not None and (progress.best_dice is None or dice > progress.best_dice)
        progress.best_dice = dice if is_best else progress.best_dice
        if self.folder is not None:
            self.folder.log.append(row)
            self._save(best=is_best)
        run.rows.append(replace_infinite(row))
        run.epochs_done = progress.epochs_done

    def _save_if_due(self) -> None:
        """Save inside an epoch after some minutes or on a stop request."""
        if self.folder is None or self.progress.steps_in_epoch == self.rounds_per_epoch:
            return
        minutes = self.folder.save_every_minutes
        is_due = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        if is_due or self._stop.signal_name is not None:
            self._save()
        self._stop_if_requested()

    def _save(self, *, best: bool = False) -> None:
        assert self.folder is not None  # the callers' condition
        self.simulation.load_consensus()
        checkpoint = Checkpoint(
            net=self.net.state_dict(),
            ema=None,
            objective=self.objective.state_dict(),
            optimizer={},
            scheduler=None,
            random=get_random_state(torch.device("cpu")),
            progress=asdict(self.progress),
            config=self.folder.config,
            method={"simulation": self.simulation.state_dict(), "sent_bytes": self.sent_bytes},
            observers=self.observers.state_dict(),
        )
        self.folder.save(checkpoint, best=best)
        self._saved_at = time.monotonic()

    def _stop_if_requested(self) -> None:
        if self.folder is not None and self.progress.epochs_done < self.epochs:
            self._stop.raise_if_requested(
                f"in epoch {self.progress.epochs_done + 1} after {self.progress.steps_in_epoch} rounds, with a "
                f"checkpoint; continue with {RESUME}"
            )
