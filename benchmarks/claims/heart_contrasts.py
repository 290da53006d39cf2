"""Contrasts on hearts: the runs to compare, stage by stage."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks.claims.acdc import average_over_seeds
from benchmarks.claims.claim_table import Claim
from benchmarks.claims.heart_methods import (
    FOUR_BITS,
    METHODS,
    PLAIN,
    RANDOM_COPIES,
    ROUNDED,
    SAM,
    TRAINED_PLAIN,
    TRAINED_TRAM,
    UDIM_RANDOM,
    UDIM_STYLE,
    USEFUL,
)
from benchmarks.claims.heart_queue import BASE, LONGER, STYLED, Queue
from benchmarks.claims.heart_runs import DICE_CE, LEARNED, Cell
from benchmarks.claims.intervals import Direction
from benchmarks.claims.run_log import Measured, Run
from benchmarks.claims.shifted_patients import ORIGINAL
from uumamba.data.vendor_styles import STYLES

EQUAL_STEPS, EQUAL_TIME = "equal steps", "equal time"
PLATEAU, PRIMARY = "plateau", "primary"
PLATEAU_MARGIN = 0.005
NETS, LOSSES, PATIENTS = ("UMambaBot", "ResEncUNet"), (LEARNED, DICE_CE), (40, 10)
FAMILY = ("ASAM", "GSAM", "FriendlySAM", "LookSAM(5)", "MSAM", "SAGM", "OBF", "MESA")
DICE, MEAN_STYLE = "dice", "mean of the styles"


@dataclass(frozen=True)
class Side:
    """One side of a contrast.

    Attributes:
        runs: runs that differ only in their seeds.
        score: key of the scores of patients in a run's measures, or a style's name.
    """

    runs: tuple[Run, ...]
    score: str = DICE

    def average(self, measured: Mapping[Run, Measured]) -> dict[str, float]:
        """Average each patient's score over seeds."""
        return average_over_seeds([select_scores(measured[run], self.score) for run in self.runs])


@dataclass(frozen=True)
class Contrast:
    """Two sides, and the claim that their difference decides.

    Attributes:
        claim: the claim, with its direction.
        own: the method.
        control: the control.
        budget: the resource of which both got the same amount.
        kind: ``"plateau"``, ``"primary"``, or empty for a secondary contrast.
    """

    claim: Claim
    own: Side
    control: Side
    budget: str
    kind: str = ""

    def list_runs(self) -> tuple[Run, ...]:
        """List the runs of both sides."""
        return (*self.own.runs, *self.control.runs)

    def pair(self, measured: Mapping[Run, Measured]) -> tuple[list[float], list[float]]:
        """Return the scores of both sides, patient by patient."""
        own, control = self.own.average(measured), self.control.average(measured)
        return [own[patient] for patient in sorted(own)], [control[patient] for patient in sorted(own)]


def select_scores(measured: Measured, score: str) -> dict[str, float]:
    """Select the scores of patients, in the original or another style."""
    if score in measured:
        return dict(measured[score])
    names = tuple(STYLES) if score == MEAN_STYLE else (score,)
    styles = measured["styles"]
    return {patient: fmean(styles[name][patient] for name in names) for patient in styles[ORIGINAL]}


def list_contrasts(queue: Queue, stage: str) -> list[Contrast]:
    """List the contrasts of a stage; numbers are tuned first."""
    return list(STAGES[stage](queue))


def _list_plateau(queue: Queue) -> Iterator[Contrast]:
    longer, usual = Side(queue.list_plateau_runs(longer=LONGER)), Side(queue.list_plateau_runs())
    claims: tuple[tuple[str, Direction], ...] = (
        ("no gain of 0.005 or more", "lower"),
        ("no loss of 0.005 or more", "higher"),
    )
    for wording, better in claims:
        claim = Claim(
            f"{PLAIN}, {LONGER:g} times the steps",
            PLAIN,
            "Dice of fold 1",
            better,
            margin=PLATEAU_MARGIN,
            setting=str(BASE),
            wording=wording,
        )
        yield Contrast(claim, longer, usual, "equal rate", PLATEAU)


def _list_primary(queue: Queue) -> Iterator[Contrast]:
    control = Cell(loss=DICE_CE)
    claim = Claim("UU-Mamba", "U-Mamba", "Dice", "higher", setting=f"{control.patients} patients")
    for longer, budget, kind in ((2.0, EQUAL_TIME, PRIMARY), (1.0, EQUAL_STEPS, "")):
        other = queue.list_runs(PLAIN, control, longer=longer)
        yield Contrast(claim, Side(queue.list_runs(SAM)), Side(other), budget, kind)


def _list_factors(queue: Queue) -> Iterator[Contrast]:
    """Compare optimizers, losses and networks, with the others equal."""
    for cell in (Cell(patients, net, loss) for patients in PATIENTS for net in NETS for loss in LOSSES):
        own = queue.list_runs(SAM, cell)
        yield _compare(SAM, PLAIN, cell, own, queue.list_runs(PLAIN, cell))
        yield _compare(SAM, PLAIN, cell, own, queue.list_runs(PLAIN, cell, longer=2.0), budget=EQUAL_TIME)
    for patients in PATIENTS:
        for name in (PLAIN, SAM):
            for net in NETS:
                runs = [queue.list_runs(name, Cell(patients, net, loss)) for loss in LOSSES]
                yield _compare(*LOSSES, f"{patients} patients, {net}, {name}", *runs)
            for loss in LOSSES:
                runs = [queue.list_runs(name, Cell(patients, net, loss)) for net in NETS]
                yield _compare(*NETS, f"{patients} patients, {loss}, {name}", *runs)


def _list_family(queue: Queue) -> Iterator[Contrast]:
    """Compare other members, and averages of plain runs, with the plain optimizer."""
    for name in FAMILY:
        yield _compare(name, PLAIN, BASE, queue.list_runs(name), queue.list_runs(PLAIN))
        if METHODS[name].passes == 2:
            longer = queue.list_runs(PLAIN, longer=2.0)
            yield _compare(name, PLAIN, BASE, queue.list_runs(name), longer, budget=EQUAL_TIME)
    start, control = queue.list_runs(TRAINED_TRAM), queue.list_runs(TRAINED_PLAIN)
    yield _compare(TRAINED_TRAM, TRAINED_PLAIN, BASE, start, control)
    plain = queue.list_runs(PLAIN)
    for name, score in (("moving average", "ema"), ("SWAD", "swad")):
        claim = Claim(name, PLAIN, "Dice", "higher", setting=str(BASE))
        yield Contrast(claim, Side(plain, score), Side(plain), EQUAL_STEPS)


def _list_styles(queue: Queue) -> Iterator[Contrast]:
    """Compare methods in other scanners' styles with plain and their own controls."""
    for name in STYLED[1:]:
        for score in (MEAN_STYLE, ORIGINAL):
            yield _compare(name, PLAIN, BASE, queue.list_runs(name), queue.list_runs(PLAIN), score=score)
    for name, control in ((UDIM_STYLE, UDIM_RANDOM), (UDIM_STYLE, SAM), (USEFUL, RANDOM_COPIES)):
        yield _compare(name, control, BASE, queue.list_runs(name), queue.list_runs(control), score=MEAN_STYLE)


def _list_bits(queue: Queue) -> Iterator[Contrast]:
    for control in (ROUNDED, PLAIN):
        yield _compare(FOUR_BITS, control, BASE, queue.list_runs(FOUR_BITS), queue.list_runs(control))


STAGES: Mapping[str, Callable[[Queue], Iterator[Contrast]]] = {
    PLATEAU: _list_plateau,
    PRIMARY: _list_primary,
    "factors": _list_factors,
    "family": _list_family,
    "styles": _list_styles,
    "bits": _list_bits,
}


def _compare(
    name: str,
    control: str,
    setting: Cell | str,
    own: Sequence[Run],
    other: Sequence[Run],
    *,
    score: str = DICE,
    budget: str = EQUAL_STEPS,
) -> Contrast:
    metric = "Dice" if score == DICE else f"Dice, {score} style" if score == ORIGINAL else f"Dice, {score}"
    claim = Claim(name, control, metric, "higher", setting=str(setting))
    return Contrast(claim, Side(tuple(own), score), Side(tuple(other), score), budget)
