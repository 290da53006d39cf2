"""Plan of the decentralized runs: trials that choose numbers, then every arm."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.claims.claim_table import find_best_value
from benchmarks.claims.federated_runs import MEAN, METHODS, SETTINGS, SLOPE, Numbers, name_setting, perform
from benchmarks.claims.run_log import Measured, Run, RunLog, print_progress
from uumamba.federated import torus

SEEDS, QUICK_SEEDS, QUICK = 5, 2, 80
TUNING_SEEDS = (1000, 1001)
TUNED_ON = name_setting(16, 0.3, torus)
ROUNDS, TRAFFIC = "equal rounds", "equal traffic"
BUDGETS = (ROUNDS, TRAFFIC)
FLAT = 0.005
"""Largest change of the clients' mean accuracy in the last fifth of the rounds that counts as none."""

Key = tuple[str, str, str]
"""Setting, method and budget."""


@dataclass(frozen=True)
class Arm:
    """Runs of a method, one per seed, with their results."""

    runs: Sequence[Run]
    measured: Sequence[Measured]

    @property
    def slope(self) -> float:
        """Change of the clients' mean accuracy in the last fifth."""
        return self.mean(SLOPE)

    @property
    def is_flat(self) -> bool:
        """Absence of a change in the last fifth."""
        return abs(self.slope) < FLAT

    def mean(self, metric: str) -> float:
        """Return the mean of a number over seeds."""
        return fmean(self.values(metric))

    def values(self, metric: str) -> list[float]:
        """Return a number of each seed, in order."""
        return [float(each[metric]) for each in self.measured]


class FederatedPlan:
    """Trials and runs in a folder that stores their results.

    Args:
        out: folder of the run log.
        quick: use two seeds, an eightieth of the rounds and no trials.
        workers: number of processes.
    """

    def __init__(self, out: Path, *, quick: bool, workers: int) -> None:
        self.log = RunLog(out)
        self._quick, self._workers = quick, workers

    def tune(self) -> dict[tuple[str, str], Numbers]:
        """Choose the numbers of each method and budget by validation images."""
        tuned = [(name, budget) for name, method in METHODS.items() for budget in BUDGETS if method.trials]
        if self._quick:
            chosen = {key: METHODS[key[0]].trials[2] for key in tuned}
        else:
            trials = {key: [make_trials(*key, each) for each in METHODS[key[0]].trials] for key in tuned}
            self._complete("trials", (run for each in trials.values() for runs in each for run in runs))
            chosen = {key: METHODS[key[0]].trials[self._find_best(each)] for key, each in trials.items()}
        borrowed = [(name, budget) for name, method in METHODS.items() for budget in BUDGETS if method.tuned_as]
        return chosen | {(name, budget): chosen[METHODS[name].tuned_as, budget] for name, budget in borrowed}

    def measure(self, keys: Iterable[Key]) -> dict[Key, Arm]:
        """Return the arms of settings, methods and budgets."""
        numbers = self.tune()
        runs = {key: self._make_runs(key, numbers[key[1:]]) for key in keys}
        every = [run for each in runs.values() for run in each]
        self._complete("runs to compare", sorted(every, key=lambda run: run.seed))
        return {key: Arm(each, [self.log.measured[run] for run in each]) for key, each in runs.items()}

    def _make_runs(self, key: Key, numbers: Numbers) -> list[Run]:
        setting, method, _ = key
        lr, rho = numbers
        rounds = count_rounds(*key, share=1 / QUICK if self._quick else 1.0)
        seeds = range(QUICK_SEEDS if self._quick else SEEDS)
        return [Run(setting, method, rho, lr, rounds, seed, "test") for seed in seeds]

    def _find_best(self, trials: Sequence[Sequence[Run]]) -> int:
        """Return the place of the trial with the highest mean accuracy."""
        scores: dict[float, float] = {
            place: fmean(self.log.measured[run][MEAN] for run in runs) for place, runs in enumerate(trials)
        }
        return int(find_best_value(scores, "higher"))

    def _complete(self, name: str, runs: Iterable[Run]) -> None:
        every = list(dict.fromkeys(runs))
        print_progress(f"{len(every)} {name}")
        self.log.complete(every, perform, workers=self._workers)


def count_rounds(setting: str, method: str, budget: str, *, share: float = 1.0) -> int:
    """Return the rounds of a method.

    With equal traffic they are 1 / Q of the setting's.

    Example:
        >>> [count_rounds(TUNED_ON, "DFedSAM-MGS, Q = 4", budget) for budget in BUDGETS]
        [160, 40]
    """
    gossip_steps = METHODS[method].gossip_steps if budget == TRAFFIC else 1
    return max(1, int(SETTINGS[setting].rounds * share) // gossip_steps)


def make_trials(method: str, budget: str, numbers: Numbers) -> list[Run]:
    """Make the runs of one trial."""
    lr, rho = numbers
    rounds = count_rounds(TUNED_ON, method, budget)
    return [Run(TUNED_ON, method, rho, lr, rounds, seed, "validation") for seed in TUNING_SEEDS]
