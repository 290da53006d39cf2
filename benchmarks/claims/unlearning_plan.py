"""Plan of the unlearning runs: trials, the attacker's sweeps, every arm."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.claims import unlearning_runs, unlearning_sets
from benchmarks.claims.claim_table import find_best_value
from benchmarks.claims.run_log import Measured, Run, RunLog, print_progress
from benchmarks.claims.unlearning_runs import (
    ALL_FORGET,
    ARMS,
    BUDGETS,
    PAST,
    REFERENCES,
    RETAINED,
    ROWS,
    SWEEP,
    TEST,
    TRIAL,
    TRIALS,
    UNSEEN,
    find_numbers,
    name_rates,
    perform,
)
from benchmarks.claims.unlearning_sets import DIGITS, FIRST_TUNING_SEED, UNLEARNING_SETTINGS
from benchmarks.result_file import hash_config
from uumamba.unlearning import RelearningResult, RelearningRow

SEEDS, TUNING_SEEDS, QUICK_SEEDS, QUICK_TRIALS, QUICK = 5, 2, 2, 2, 8
ALLOWED = 0.01
"""Allowed loss of accuracy on retained samples."""
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""First learning rates of the attacker's sweep."""
FACTOR, WIDENINGS = 10**0.5, 3
"""Factor to the next rate beyond an edge, and how often a sweep is widened at most."""

Key = tuple[str, str]
"""Setting and method."""


@dataclass(frozen=True)
class UnlearnedArm:
    """Final runs of a method, one per seed, with their results.

    Attributes:
        runs: the runs.
        measured: their results.
        rates: the attacker's learning rate for each budget.
        is_at_edge: whether one of these is the lowest or highest rate of the widened sweep.
        is_tuned: whether a trial met both conditions; True for references.
    """

    runs: Sequence[Run]
    measured: Sequence[Measured]
    rates: tuple[float, ...]
    is_at_edge: bool
    is_tuned: bool

    def values(self, metric: str) -> list[float]:
        """Return a number of each seed, in order."""
        return [float(each[metric]) for each in self.measured]

    def mean(self, metric: str) -> float | None:
        """Return the mean over seeds; None if not measured."""
        return None if self.measured[0][metric] is None else fmean(self.values(metric))


class UnlearningPlan:
    """Trials, sweeps and runs in a folder that stores their results.

    Args:
        out: folder; runs are stored in a folder of it named by the protocol's hash.
        quick: use digits only, two seeds, an eighth of the steps, two trials, and no wider sweep.
        workers: number of processes.
    """

    def __init__(self, out: Path, *, quick: bool, workers: int) -> None:
        self.log = RunLog(out / hash_protocol()[:12])
        self._quick, self._workers = quick, workers
        self._settings = (DIGITS,) if quick else tuple(UNLEARNING_SETTINGS)

    def measure(self) -> dict[Key, UnlearnedArm]:
        """Return every arm and reference of every setting."""
        trials = self.tune()
        keys = [(setting, name) for setting in self._settings for name in (*REFERENCES, *ARMS)]
        sweeps = self.sweep({key: trials.get(key, (None, True))[0] for key in keys})
        rates = {
            key: tuple(found.strongest(budget).rate or RATES[0] for budget in BUDGETS) for key, found in sweeps.items()
        }
        seeds = range(QUICK_SEEDS if self._quick else SEEDS)
        runs = {
            key: [
                self._make_run(key, trials.get(key, (None, True))[0], seed, name_rates(TEST, sorted({*rates[key]})))
                for seed in seeds
            ]
            for key in keys
        }
        self._complete("runs to compare", [run for each in runs.values() for run in each])
        return {
            key: UnlearnedArm(
                each,
                [self.log.measured[run] for run in each],
                rates[key],
                any(sweeps[key].needs_other_rates(budget) for budget in BUDGETS),
                trials.get(key, (None, True))[1],
            )
            for key, each in runs.items()
        }

    def tune(self) -> dict[Key, tuple[int, bool]]:
        """Choose each method's trial; return it, and whether it met both conditions."""
        count = QUICK_TRIALS if self._quick else TRIALS
        keys = [(setting, name) for setting in self._settings for name in ARMS]
        runs = {
            (key, trial): [self._make_run(key, trial, seed, TRIAL) for seed in self._tuning_seeds()]
            for key in keys
            for trial in range(count)
        }
        self._complete("trials", [run for each in runs.values() for run in each])
        measured = {name: _average([self.log.measured[run] for run in each]) for name, each in runs.items()}
        return {key: choose_trial([measured[key, trial] for trial in range(count)]) for key in keys}

    def sweep(self, trials: Mapping[Key, int | None]) -> dict[Key, RelearningResult]:
        """Attack each arm's chosen trial at rates widened beyond strongest edges.

        Qualities are means over the tuning seeds.
        """
        rates: dict[Key, tuple[float, ...]] = dict.fromkeys(trials, RATES)
        for widening in range(WIDENINGS + 1):
            runs = {
                key: [
                    self._make_run(key, trials[key], seed, name_rates(SWEEP, rates[key]))
                    for seed in self._tuning_seeds()
                ]
                for key in trials
            }
            self._complete(f"sweeps, {widening} times wider", [run for each in runs.values() for run in each])
            found = {key: average_rows([self.log.measured[run][ROWS] for run in each]) for key, each in runs.items()}
            wider = {key: widen(rates[key], result) for key, result in found.items()}
            if self._quick or wider == rates:
                break
            rates = wider
        return found

    def _tuning_seeds(self) -> range:
        return range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + (1 if self._quick else TUNING_SEEDS))

    def _make_run(self, key: Key, trial: int | None, seed: int, measures: str) -> Run:
        steps = UNLEARNING_SETTINGS[key[0]].steps // (QUICK if self._quick else 1)
        lr = 0.0 if trial is None else find_numbers(*key, trial).lr
        return Run(*key, None if trial is None else float(trial), lr, steps, seed, measures)

    def _complete(self, name: str, runs: Iterable[Run]) -> None:
        every = sorted(dict.fromkeys(runs), key=lambda run: (run.setting, run.seed))
        print_progress(f"{len(every)} {name}")
        self.log.complete(every, perform, workers=self._workers)


def choose_trial(measured: Sequence[Measured]) -> tuple[int, bool]:
    """Return the chosen trial, and whether it met both conditions.

    The conditions: the samples to forget are answered no better than unseen samples, and accuracy on retained samples
    falls by at most a point. Of the trials that meet both, the one with the highest accuracy on unseen samples is
    chosen, otherwise the one with the smallest sum of excesses.

    Example:
        >>> retained = {"retained accuracy": 1.0, "retained accuracy before unlearning": 1.0}
        >>> trials = [(0.5, 0.51), (0.5, 0.52), (0.9, 0.6)]
        >>> choose_trial([retained | {ALL_FORGET: forget, "unseen accuracy": unseen} for forget, unseen in trials])
        (1, True)
    """
    excess: dict[float, float] = {place: _find_excess(each) for place, each in enumerate(measured)}
    met: dict[float, float] = {place: measured[int(place)][UNSEEN] for place, value in excess.items() if value == 0}
    return (int(find_best_value(met, "higher")), True) if met else (int(find_best_value(excess, "lower")), False)


def _find_excess(each: Measured) -> float:
    remembered = max(0.0, each[ALL_FORGET] - each[UNSEEN])
    lost = max(0.0, each[PAST] - ALLOWED - each[RETAINED])
    return float(remembered + lost)


def average_rows(found: Sequence[Sequence[Sequence[float]]]) -> RelearningResult:
    """Average the rows of attacks with the same rates over seeds."""
    rows = zip(*found, strict=True)
    return RelearningResult(
        tuple(RelearningRow(int(each[0][0]), each[0][1], fmean(row[2] for row in each)) for each in rows)
    )


def widen(rates: tuple[float, ...], result: RelearningResult) -> tuple[float, ...]:
    """Add a rate beyond each edge at which an attack is strongest.

    Example:
        >>> rows = RelearningRow(0, 0.0, 0.1), RelearningRow(5, 0.01, 0.5), RelearningRow(5, 0.1, 0.9)
        >>> widen((0.01, 0.1), RelearningResult(rows))
        (0.01, 0.1, 0.316)
    """
    edges = {result.strongest(budget).rate for budget in BUDGETS if result.needs_other_rates(budget)}
    added = {rates[0] / FACTOR if edge == rates[0] else rates[-1] * FACTOR for edge in edges}
    return tuple(sorted({*rates, *(float(f"{rate:.3g}") for rate in added)}))


def hash_protocol() -> str:
    """Hash every number of the protocol, for a log of its own."""
    return hash_config(describe_protocol())


def describe_protocol() -> dict[str, Any]:
    """Return every number of the protocol."""
    modules = {"sets": unlearning_sets, "runs": unlearning_runs, "plan": globals()}
    numbers = {
        f"{module}.{name}": value
        for module, found in modules.items()
        for name, value in (found if isinstance(found, dict) else vars(found)).items()
        if name.isupper() and isinstance(value, int | float | tuple)
    }
    trials = {
        f"{setting}, {name}": [asdict(find_numbers(setting, name, trial)) for trial in range(TRIALS)]
        for setting in UNLEARNING_SETTINGS
        for name in ARMS
    }
    lengths = {name: [each.lr, each.batch, each.training, each.steps] for name, each in UNLEARNING_SETTINGS.items()}
    return numbers | {"trials": trials, "lengths": lengths}


def _average(found: Sequence[Measured]) -> Measured:
    return {name: fmean(float(each[name]) for each in found) for name in found[0]}
