"""Plan of the runs that decide the claims.

It measures the cost of steps, tunes numbers, and runs both budgets for every seed.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.claims.claim_table import find_best_value
from benchmarks.claims.digits import draw_split
from benchmarks.claims.equal_time import compute_ratios, compute_steps, time_in_rounds
from benchmarks.claims.members import MEMBERS
from benchmarks.claims.run_log import Measured, Run, RunLog, print_progress
from benchmarks.claims.settings import (
    SETTINGS,
    draw_digit_batches,
    draw_text_batches,
    make_digits_recipe,
    make_text_recipe,
    perform,
)
from benchmarks.claims.training import Recipe
from uumamba.runtime.files import write_json
from uumamba.types import Batch

EPOCHS, TIME = "equal epochs", "equal time"
SEEDS = {"digits": 10, "text": 5}
TUNING_SEEDS = {"digits": 2, "text": 1}
FIRST_TUNING_SEED = 1000
TRAMS = tuple(name for name in MEMBERS if name.startswith("TRAM"))
METHODS = {"digits": tuple(MEMBERS), "text": ("base", "SAM", "ASAM", *TRAMS)}
STEPS_A_ROUND = 10  # two periods of LookSAM(5)
ROUNDS = {"digits": 15, "text": 5}
LATE_EPOCH = 100
"""Epoch whose cost is measured; objectives with a history are then in full use."""

Cost = Mapping[str, Sequence[float]]
Trial = tuple[float, str, float | None]
"""Learning rate, method, and the method's number."""


class Plan:
    """Runs of every setting, in a folder that stores their results.

    Args:
        folder: gets ``runs.jsonl`` and a file of step times per setting.
        quick: use two seeds, an eighth of the steps, and published numbers.
        workers: number of processes.

    Attributes:
        lr: the tuned learning rate of the base optimizer, per setting.
        values: the tuned number of each method, per setting.
    """

    def __init__(self, folder: Path, *, quick: bool, workers: int) -> None:
        self.log = RunLog(folder)
        self.lr: dict[str, float] = {}
        self.values: dict[str, dict[str, float]] = {}
        self._folder, self._quick, self._workers = folder, quick, workers

    def count_steps(self, setting: str) -> int:
        """Return the number of steps of the base optimizer."""
        return SETTINGS[setting].steps // (8 if self._quick else 1)

    def measure_cost(self, setting: str) -> dict[str, list[float]]:
        """Return each method's relative time per step, one number per round.

        The times are measured once per folder; the base optimizer has 1.
        """
        path = self._folder / f"step_time_{setting}.json"
        if not path.is_file():
            print_progress(f"{setting}: measure the cost of a step")
            rounds = 3 if self._quick else ROUNDS[setting]
            write_json(path, time_in_rounds(dict(_make_step_work(setting)), rounds=rounds))
        return compute_ratios(json.loads(path.read_text(encoding="utf-8")), "base")

    def choose(self, setting: str, cost: Cost) -> None:
        """Tune the base's learning rate, then each method's number.

        Both are chosen by the validation data of the tuning seeds.
        """
        spec = SETTINGS[setting]
        self.lr[setting] = spec.lrs[1]
        self.values[setting] = {}
        if self._quick:
            return
        rates: dict[Trial, float] = {(rate, "base", None): rate for rate in spec.lrs}
        self.lr[setting] = find_best_value(self._evaluate_trials(setting, rates, cost), spec.better)
        grids = {name: MEMBERS[name].grid for name in METHODS[setting] if MEMBERS[name].grid}
        numbers: dict[Trial, tuple[str, float]] = {
            (self.lr[setting], name, value): (name, value) for name, grid in grids.items() for value in grid
        }
        found = self._evaluate_trials(setting, numbers, cost)
        for name, grid in grids.items():
            self.values[setting][name] = find_best_value({value: found[name, value] for value in grid}, spec.better)

    def measure(self, setting: str, cost: Cost) -> dict[str, dict[str, list[Measured]]]:
        """Return test results by budget and method, in order of seeds."""
        seeds = range(2 if self._quick else SEEDS[setting])
        steps = self.count_steps(setting)
        runs = {
            (budget, name): [self._make_final_run(setting, name, length, seed) for seed in seeds]
            for name in METHODS[setting]
            for budget, length in ((EPOCHS, steps), (TIME, compute_steps(steps, cost[name])))
        }
        by_seed = [runs[key][index] for index in range(len(seeds)) for key in runs]
        print_progress(f"{setting}: {len(set(by_seed))} runs to compare")
        self.log.complete(by_seed, perform, workers=self._workers)
        return {
            budget: {name: [self.log.measured[run] for run in runs[budget, name]] for name in METHODS[setting]}
            for budget in (EPOCHS, TIME)
        }

    def _make_final_run(self, setting: str, name: str, steps: int, seed: int) -> Run:
        """Make a run with the tuned numbers, or else the published ones."""
        value = self.values[setting].get(name, MEMBERS[name].published)
        return Run(setting, name, value, self.lr[setting], steps, seed, "test")

    def _evaluate_trials(self, setting: str, trials: Mapping[Trial, Any], cost: Cost) -> dict[Any, float]:
        """Return the mean validation measure of each trial, by label."""
        seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + TUNING_SEEDS[setting])
        runs = {
            label: [
                Run(setting, name, value, lr, compute_steps(self.count_steps(setting), cost[name]), seed, "validation")
                for seed in seeds
            ]
            for (lr, name, value), label in trials.items()
        }
        every = [run for each in runs.values() for run in each]
        print_progress(f"{setting}: {len(every)} runs to tune with")
        self.log.complete(every, perform, workers=self._workers)
        by = SETTINGS[setting].chosen_by
        return {label: fmean(self.log.measured[run][by] for run in each) for label, each in runs.items()}


def _make_step_work(setting: str) -> Iterator[tuple[str, partial[None]]]:
    """Yield ten steps of each method from the middle of a training.

    They run on one thread.
    """
    torch.set_num_threads(1)
    for name in METHODS[setting]:
        run = Run(setting, name, MEMBERS[name].published, SETTINGS[setting].lrs[0], 0, FIRST_TUNING_SEED, "time")
        if setting == "digits":
            recipe, batches = make_digits_recipe(run), draw_digit_batches(draw_split(run.seed), run.seed)
        else:
            recipe, batches = make_text_recipe(run), draw_text_batches(run.seed)
        recipe.begin_epoch(LATE_EPOCH)
        recipe.net.train()
        yield name, partial(_take_steps, recipe, [batch for _, batch in islice(batches, STEPS_A_ROUND)])


def _take_steps(recipe: Recipe, batches: Sequence[Batch]) -> None:
    for batch in batches:
        recipe.step(batch)
