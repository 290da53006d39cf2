"""Runs on hearts, with numbers tuned on the inner fold."""

from collections.abc import Callable, Sequence
from statistics import fmean

from benchmarks.claims.claim_table import find_best_value
from benchmarks.claims.heart_methods import METHODS, PLAIN, RANDOM_COPIES, SAM, UDIM_RANDOM, UDIM_STYLE, USEFUL
from benchmarks.claims.heart_runs import Cell
from benchmarks.claims.run_log import Measured, Run, RunLog, print_progress

RATES = (1e-3, 2e-3, 4e-3, 8e-3)
TUNING_SEED, PLATEAU_SEEDS, LONGER, TUNING_SHARE = 1000, (1000, 1001, 1002), 1.5, 1 / 3
FEW_SHARE = 0.5
"""Share of the steps with fewer patients, of which each is then still seen twice as often."""
BASE = Cell()
STYLED = (PLAIN, SAM, "strong augmentation", "MixStyle", "RandConv", UDIM_STYLE, UDIM_RANDOM, USEFUL, RANDOM_COPIES)
"""Methods whose runs in the base cell are scored in every style."""


class Queue:
    """Runs of the protocol; numbers are tuned on first use.

    Args:
        log: finished runs.
        work: function that trains and measures one run.
        workers: number of parallel runs.
        steps: number of steps of every method, before it is doubled for equal time.
        seeds: seeds of the published runs.

    Attributes:
        rate: the tuned learning rate.
        values: the tuned number of each method, None if it has none.
    """

    def __init__(
        self, log: RunLog, work: Callable[[Run], Measured], *, workers: int, steps: int, seeds: Sequence[int]
    ) -> None:
        self.log, self._work, self._workers, self.steps, self.seeds = log, work, workers, steps, seeds
        self.rate = RATES[1]
        self.values: dict[str, float | None] = {}

    def complete(self, runs: Sequence[Run]) -> None:
        """Run what is missing, in this order."""
        self.log.complete(runs, self._work, workers=self._workers)

    def tune_rate(self) -> None:
        """Choose the learning rate of the plain optimizer."""
        self.rate = self._choose({rate: self._make_tuning_run(PLAIN, None, rate) for rate in RATES})

    def tune(self, name: str) -> float | None:
        """Return a method's number; UDIM's control gets UDIM's."""
        name = UDIM_STYLE if name == UDIM_RANDOM else name
        if name not in self.values:
            runs = {value: self._make_tuning_run(name, value, self.rate, TUNING_SHARE) for value in METHODS[name].grid}
            self.values[name] = self._choose(runs) if runs else None
            print_progress(f"hearts: {name} gets {self.values[name]}")
        return self.values[name]

    def list_runs(self, name: str, cell: Cell = BASE, *, longer: float = 1.0) -> tuple[Run, ...]:
        """List the published runs of a method, one per seed."""
        measures = "styles" if cell == BASE and longer == 1.0 and name in STYLED else "test"
        share = FEW_SHARE if cell.patients < BASE.patients else 1.0
        value, steps = self.tune(name), round(self.steps * longer * share)
        return tuple(Run(str(cell), name, value, self.rate, steps, seed, measures) for seed in self.seeds)

    def list_plateau_runs(self, *, longer: float = 1.0) -> tuple[Run, ...]:
        """List the plain runs on the inner fold that show the plateau."""
        steps, seeds = round(self.steps * longer), PLATEAU_SEEDS[: len(self.seeds)]
        return tuple(Run(str(BASE), PLAIN, None, self.rate, steps, seed, "validation") for seed in seeds)

    def _make_tuning_run(self, name: str, value: float | None, rate: float, share: float = 1.0) -> Run:
        return Run(str(BASE), name, value, rate, round(self.steps * share), TUNING_SEED, "validation")

    def _choose(self, runs: dict[float, Run]) -> float:
        self.complete(list(runs.values()))
        return find_best_value(
            {value: fmean(self.log.measured[run]["dice"].values()) for value, run in runs.items()}, "higher"
        )
