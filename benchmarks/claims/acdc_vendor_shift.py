r"""Heart models trained on ACDC, tested in the styles of other scanners.

    python -m benchmarks.claims.acdc_vendor_shift --acdc ACDC/database --out runs/acdc_vendor_shift \
        --json benchmarks/results/acdc_vendor_shift.json

24 patients are used for training and the 20 of fold 0 for scoring, all from the official training set. Their scans are
changed to five styles of other scanners (:mod:`uumamba.data.vendor_styles`) and then prepared. No training sees such a
style, and no style selects a setting. The cost of a step is measured first and stored in OUT. The plain optimizer makes
as many steps as fit into five minutes, the other methods as many as take the same time. Two runs work in parallel, with
one thread each; a run stored in OUT is read, not run again. Scoring six styles takes almost as long as training: each
method adds a quarter of an hour. A changed style or method needs another OUT. ``--equal-steps`` also runs UDIM and its
control for as many steps as SAM, which takes an hour more.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.claims.acdc import (
    CONFIG,
    FOLD,
    ROUNDS,
    SECONDS,
    SEEDS,
    SETTINGS,
    TRAINING_PATIENTS,
    WARMUP,
    Feed,
    make_feed,
    make_patient_row,
    make_start,
    measure_step_seconds,
    parse_acdc_options,
    prepare_patients,
    read_acdc_config,
    score_patients,
    split_fold,
)
from benchmarks.claims.claim_table import Claim
from benchmarks.claims.equal_time import compute_ratios, compute_steps
from benchmarks.claims.run_log import Measured, Run, RunLog
from benchmarks.claims.shift_methods import (
    LAMBDA1,
    LAMBDA2,
    METHODS,
    PLAIN,
    RANDOM_DIRECTION,
    STYLE_RADIUS,
    UDIM_NAME,
    UDIM_WARMUP,
)
from benchmarks.claims.shifted_patients import ORIGINAL, prepare_styles
from benchmarks.claims.training import Recipe, train
from benchmarks.result_file import write_result
from benchmarks.scan import print_rows
from uumamba.data.vendor_styles import STYLES

MEAN = "mean of the styles"
EQUAL_TIME, EQUAL_STEPS = "equal time", "equal steps"
NOT_WORSE = 0.01
"""Largest loss of Dice in the original style that still counts as no loss."""


@dataclass(frozen=True)
class ShiftClaim:
    """Claim about one style, or about the mean of the shifted styles.

    ``budget`` is the resource of which method and control get the same amount.
    """

    claim: Claim
    style: str
    budget: str = EQUAL_TIME


def list_claims() -> Iterator[ShiftClaim]:
    """Yield the claims of every method against the plain optimizer.

    Claimed are higher Dice in the mean of the styles and in each style, and no loss in the original style.
    """
    for name, method in METHODS.items():
        if name == PLAIN:
            continue
        for style in (MEAN, *STYLES):
            yield _make_claim(name, PLAIN, style)
        yield _make_claim(name, PLAIN, ORIGINAL, margin=NOT_WORSE)
        for control in method.controls:
            yield _make_claim(name, control, MEAN)


def list_equal_step_claims() -> Iterator[ShiftClaim]:
    """Yield UDIM's claims against SAM and its control at equal steps."""
    for style in (MEAN, *STYLES):
        yield _make_claim(UDIM_NAME, "SAM", style, budget=EQUAL_STEPS)
    yield _make_claim(UDIM_NAME, "SAM", ORIGINAL, margin=NOT_WORSE, budget=EQUAL_STEPS)
    yield _make_claim(UDIM_NAME, RANDOM_DIRECTION, MEAN, budget=EQUAL_STEPS)
    yield _make_claim(RANDOM_DIRECTION, "SAM", MEAN, budget=EQUAL_STEPS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare, measure the cost of steps, run missing runs, write."""
    switches = {"equal-steps": "also let UDIM and its control make SAM's steps"}
    options = parse_acdc_options(__doc__, arguments, switches=switches)
    out = options.out
    config = read_acdc_config()
    patients = (5, 3) if options.quick else (TRAINING_PATIENTS, None)
    prepared = prepare_patients(options.acdc, out / "prepared", config, training=patients[0], validation=patients[1])
    styles = prepare_styles(prepared, out / "styles", config)
    begin = {name: partial(make_training, _make_run(name, 0, 0), prepared) for name in METHODS}
    seconds = measure_step_seconds(out / "step_time.json", begin, rounds=1 if options.quick else ROUNDS)
    steps = 6 if options.quick else round(SECONDS / median(seconds[PLAIN]))
    runs = plan_runs(steps, compute_ratios(seconds, PLAIN), seeds=2 if options.quick else SEEDS)
    log = RunLog(out)
    budgets = {EQUAL_TIME: (runs, list_claims())}
    if options.equal_steps:
        budgets[EQUAL_STEPS] = (match_sam_steps(runs), list_equal_step_claims())
    rows = []
    for of_budget, claimed in budgets.values():
        by_seed = [each for of_seed in zip(*of_budget.values(), strict=True) for each in of_seed]
        log.complete(by_seed, partial(train_and_score, prepared=prepared, styles=styles), workers=options.workers)
        rows += [make_shift_row(each, of_budget, log.measured) for each in claimed]
    print_rows(rows)
    if options.json is not None:
        write_result(
            options.json,
            rows,
            title="Hearts in the style of another scanner",
            about=describe_table(prepared, runs, equal_steps=options.equal_steps),
            configs=[(CONFIG, (*SETTINGS, *each)) for each in {tuple(each.settings): 0 for each in METHODS.values()}],
            measured_at=", ".join(sorted(log.commits)),
        )


def plan_runs(steps: int, cost: Mapping[str, Sequence[float]], *, seeds: int) -> dict[str, list[Run]]:
    """Plan each method's runs at equal time.

    The number of steps is what the plain optimizer's time allows.
    """
    afforded = {
        name: max(1, round(method.share * compute_steps(steps, _average_cost(name, cost))))
        for name, method in METHODS.items()
    }
    return {name: [_make_run(name, afforded[name], seed) for seed in range(seeds)] for name in METHODS}


def match_sam_steps(runs: Mapping[str, Sequence[Run]]) -> dict[str, list[Run]]:
    """Plan UDIM and its control with SAM's number of steps.

    SAM's own runs are included unchanged.
    """
    return {name: [replace(each, method=name) for each in runs["SAM"]] for name in ("SAM", UDIM_NAME, RANDOM_DIRECTION)}


def make_training(run: Run, prepared: Path) -> tuple[Recipe, Feed]:
    """Return a method's recipe and its augmented training batches."""
    method = METHODS[run.method]
    config = read_acdc_config(method.settings)
    training, _ = split_fold(prepared)
    cases = training if method.cases is None or run.measures == "time" else method.cases(training, prepared, run)
    recipe = method.recipe(make_start(config, prepared, run.seed), run.steps)
    return recipe, make_feed(config, prepared, run.seed, cases=cases)


def train_and_score(run: Run, *, prepared: Path, styles: Mapping[str, Path]) -> Measured:
    """Train, then score each validation patient in every style."""
    recipe, feed = make_training(run, prepared)
    train(recipe, feed, steps=run.steps, warmup_steps=min(WARMUP, run.steps // 2))
    return {style: score_patients(recipe.net, folder) for style, folder in styles.items()}


def make_shift_row(
    each: ShiftClaim, runs: Mapping[str, Sequence[Run]], measured: Mapping[Run, Measured]
) -> dict[str, Any]:
    """Make a row whose pairs are patients, averaged over seeds.

    A claim about the mean of the styles is also averaged over styles.
    """
    of_style = {
        run: _select_scores(measured[run], each.style)
        for name in (each.claim.method, each.claim.control)
        for run in runs[name]
    }
    return make_patient_row(each.claim, runs, of_style, budget=each.budget)


def describe_table(prepared: Path, runs: Mapping[str, Sequence[Run]], *, equal_steps: bool) -> str:
    """Describe training data, test data and settings."""
    training, validation = split_fold(prepared)
    steps = ", ".join(f"{name} {each[0].steps}" for name, each in runs.items())
    with_more = f" At equal steps UDIM and its control make SAM's {runs['SAM'][0].steps}." if equal_steps else ""
    return (
        f"Mean Dice of RV, MYO and LV over a patient's ED and ES frame, on the prepared grid, mean over "
        f"{len(runs[PLAIN])} seeds, in the style that is named; differences are paired by patient, intervals are "
        f"Student's over the {len(validation) // 2} validation patients of fold {FOLD} at 95 %, and the verdict "
        f"follows from the interval. Trained in the original style on {len(training) // 2} patients of the other "
        f"folds for the time of {runs[PLAIN][0].steps} steps of the plain optimizer ({SECONDS // 60} minutes on one "
        f"core with augmentation), in steps: {steps}.{with_more} Every method has nnU-Net's augmentation; strong "
        f"augmentation has more frequent and stronger intensity transforms, and a bias field. UDIM perturbs the style "
        f"by {STYLE_RADIUS:g}, on SAM, after {UDIM_WARMUP:.0%} of the steps with SAM only (at SAM's cost); lambda is "
        f"{LAMBDA1:g} and {LAMBDA2:g}. USEFUL's probe takes a tenth of its time; its slow cases are repeated once. No "
        f"method was tuned on a shifted style, and the styles are generated, not those of real vendors."
    )


def _average_cost(name: str, cost: Mapping[str, Sequence[float]]) -> list[float]:
    """Average the relative cost of a step over a run, per round.

    Measured costs are those of late steps; a method may begin with cheaper steps.
    """
    begins_as = METHODS[name].begins_as
    if begins_as is None:
        return list(cost[name])
    first, share = begins_as
    return [share * early + (1 - share) * late for early, late in zip(cost[first], cost[name], strict=True)]


def _make_claim(method: str, control: str, style: str, *, margin: float = 0.0, budget: str = EQUAL_TIME) -> ShiftClaim:
    return ShiftClaim(Claim(method, control, f"Dice, {style}", "higher", margin=margin, setting="ACDC"), style, budget)


def _select_scores(measured: Measured, style: str) -> dict[str, float]:
    """Return each patient's Dice in a style, or its mean over styles.

    The mean excludes the original style.
    """
    if style != MEAN:
        return measured[style]
    return {patient: fmean(measured[each][patient] for each in STYLES) for patient in measured[ORIGINAL]}


def _make_run(name: str, steps: int, seed: int) -> Run:
    measures = "test" if steps else "time"
    return Run("acdc, shifted", name, None, read_acdc_config().optim.base.lr, steps, seed, measures)


if __name__ == "__main__":
    main()
