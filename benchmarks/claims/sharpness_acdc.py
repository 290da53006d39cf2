r"""Sharpness-aware methods and the plain optimizer on ACDC at equal time.

    python -m benchmarks.claims.sharpness_acdc --acdc ACDC/database --out runs/sharpness_acdc \
        --json benchmarks/results/sharpness_acdc.json

Network and augmentation are those of ``acdc_uu_mamba`` on a coarser grid, trainable in five minutes on one core.
The cost of a step is measured first, in alternating rounds, and stored in OUT. The plain optimizer makes as many steps
as fit into five minutes, the other methods as many as take the same time. Two runs work in parallel, with one thread
each; a run stored in OUT is read, not run again. The 24 runs take about an hour and a half. 24 patients are used for
training and the 20 validation patients of fold 0 for scoring, all from the official training set.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

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
from benchmarks.claims.members import MEMBERS
from benchmarks.claims.run_log import Measured, Run, RunLog
from benchmarks.claims.training import Recipe, train
from benchmarks.result_file import write_result
from benchmarks.scan import print_rows

VALUES: Mapping[str, float | None] = {
    "base": None,
    "SAM": None,
    "ASAM": None,
    "GSAM": None,
    "LookSAM(5)": None,
    "TRAM, previous": None,
    "OBF": None,
    "MESA": 0.99,  # the published average covers 5000 steps, ten times a run
}
CLAIMS = tuple(Claim(name, "base", "Dice of a patient", "higher", setting="ACDC") for name in VALUES if name != "base")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare, measure the cost of steps, run missing runs, write."""
    options = parse_acdc_options(__doc__, arguments)
    out = options.out
    config = read_acdc_config()
    patients = (5, 3) if options.quick else (TRAINING_PATIENTS, None)
    prepared = prepare_patients(options.acdc, out / "prepared", config, training=patients[0], validation=patients[1])
    begin = {
        name: partial(make_training, Run("acdc", name, value, 0.0, 0, 0, "time"), prepared)
        for name, value in VALUES.items()
    }
    seconds = measure_step_seconds(out / "step_time.json", begin, rounds=1 if options.quick else ROUNDS)
    steps = 6 if options.quick else round(SECONDS / median(seconds["base"]))
    cost = compute_ratios(seconds, "base")
    runs = {
        name: [
            Run("acdc", name, value, config.optim.base.lr, compute_steps(steps, cost[name]), seed, "test")
            for seed in range(2 if options.quick else SEEDS)
        ]
        for name, value in VALUES.items()
    }
    log = RunLog(out)
    by_seed = [runs[name][seed] for seed in range(len(runs["base"])) for name in runs]
    log.complete(by_seed, partial(train_and_score, prepared=prepared), workers=options.workers)
    rows = [make_patient_row(claim, runs, log.measured) for claim in CLAIMS]
    print_rows(rows)
    if options.json is not None:
        write_result(
            options.json,
            rows,
            title="Sharpness-aware methods on ACDC at equal time",
            about=describe_table(prepared, runs),
            configs=[(CONFIG, SETTINGS)],
            measured_at=", ".join(sorted(log.commits)),
        )


def describe_table(prepared: Path, runs: Mapping[str, Sequence[Run]]) -> str:
    """Describe training data, test data and settings."""
    training, validation = split_fold(prepared)
    steps = ", ".join(f"{name} {each[0].steps}" for name, each in runs.items())
    return (
        f"Mean Dice of RV, MYO and LV over a patient's ED and ES frame, on the prepared grid, mean over "
        f"{len(runs['base'])} seeds; differences are paired by patient, intervals are Student's over the "
        f"{len(validation) // 2} validation patients of fold {FOLD} at 95 %, the verdict follows from the interval. "
        f"Trained on {len(training) // 2} patients of the other folds for the time of {runs['base'][0].steps} "
        f"steps of the plain optimizer ({SECONDS // 60} minutes on one core with augmentation), in steps: {steps}. "
        f"Numbers are the published ones, except MESA's decay of {VALUES['MESA']}. No moving average of weights."
    )


def train_and_score(run: Run, *, prepared: Path) -> Measured:
    """Train, then score each validation patient."""
    recipe, feed = make_training(run, prepared)
    train(recipe, feed, steps=run.steps, warmup_steps=min(WARMUP, run.steps // 2))
    return score_patients(recipe.net, prepared)


def make_training(run: Run, prepared: Path) -> tuple[Recipe, Feed]:
    """Return a method's recipe and its augmented training batches."""
    config = read_acdc_config()
    start = make_start(config, prepared, run.seed)
    recipe = MEMBERS[run.method].build(start.net, start.loss, start.base, run.value, engine=start.engine)
    return recipe, make_feed(config, prepared, run.seed)


if __name__ == "__main__":
    main()
