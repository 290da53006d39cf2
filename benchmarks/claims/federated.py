r"""Claims of DFedSAM and DFedSAM-MGS on digits split over clients.

    python -m benchmarks.claims.federated --out runs/federated --json benchmarks/results/federated.json

Protocol, fixed before the first full run.

Data: scikit-learn's digits; a seed draws 640 training images, split by Dirichlet shares of each class (alpha 0.3 or
0.6), at least two images a client. All models are scored on the same 800 test images. The network is a perceptron
64-32-10; batches have 16 images, a round 5 local steps (D-PSGD: 1), SGD has weight decay 0.01 and no momentum, and its
rate is multiplied by 0.998 after each round, as in public code for DFedSAM. The weight decay was raised from 0.0005
after a pilot with other seeds: with little decay every client soon fits all its images, the clients' drift vanishes
slowly, and no run of an affordable length ended flat. A rate that falls to 0 by a cosine ends no flatter: in a pilot
of seven arms with seeds 100 and 101 the accuracy rose by 0.2 to 1.4 points in the last fifth, because the clients'
distance shrinks with the rate until all are the mean model. Arms of D-PSGD would need several times the rounds, and the
hour that this benchmark may take is used.

Settings: 16 clients with alpha 0.3 and 0.6 on a ring, torus and directed exponential graph, 160 rounds; 64 clients with
alpha 0.3 on the exponential graph, 120 rounds.

Budgets: with equal rounds a method with Q gossip steps sends Q times as many bytes; with equal traffic it gets 1/Q of
the rounds. Methods with Q = 1 have the same run in both.

Tuning: each method has four trials on validation images, in the setting of 16 clients, alpha 0.3, torus, with two other
seeds, and separately for each budget: rates 0.2, 0.4, 0.8 and 1.6 of D-PSGD, 0.1, 0.2, 0.4 and 0.8 of DFedAvg; rates
0.2 and 0.4 with rho 0.1 and 0.3 of the methods with SAM; rates 0.05 and 0.1 with rho 0.1 and 0.3 of those with SAM and
momentum 0.9. The clients' mean accuracy chooses. FedAvg, FedSAM and local training have the numbers of DFedAvg, DFedSAM
and DFedAvg.

Scores: of the last fifth of the rounds, the mean over ten rounds (fewer if there are fewer) of the accuracy of the
clients' own models (mean and worst) and of the mean model, and of the consensus distance. An arm is flat if the slope
of the clients' mean accuracy over the last fifth, times its length, is between -0.005 and 0.005 on average over seeds.

Verdicts: differences are paired by seed (five; that of images, split, initialisation and batches), with Student's
intervals at 95 %, which are not corrected for their number. Momentum that is kept, against momentum that is reset each
round, is compared once.

The second table has the numbers of each arm, with the factor by which its gossip steps shrank the consensus distance,
next to its bound lambda^Q. Each finished run is a line of ``runs.jsonl`` in OUT and, after the last, of a file beside
the JSON table. A run in either file is not repeated, so the queue continues on any machine.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.claims.claim_table import Claim, make_claim_row, round_digits
from benchmarks.claims.federated_plan import BUDGETS, ROUNDS, TRAFFIC, TUNED_ON, Arm, FederatedPlan, Key
from benchmarks.claims.federated_runs import (
    CONSENSUS,
    CONTRACTION,
    DFEDAVG,
    DFEDSAM,
    DISTANCE,
    DPSGD,
    FEDAVG,
    FEDSAM,
    FOUR,
    KEPT,
    LOCAL,
    MEAN,
    METHODS,
    RESET,
    SENT,
    SETTINGS,
    TWO,
    WORST,
)
from benchmarks.claims.intervals import Direction
from benchmarks.claims.run_log import copy_lines, find_kept_log
from benchmarks.result_file import write_result
from benchmarks.scan import print_rows

BOTH = "equal rounds and traffic"
METRICS: Mapping[str, Direction] = {MEAN: "higher", WORST: "higher", CONSENSUS: "higher", DISTANCE: "lower"}
TITLE = "DFedSAM and DFedSAM-MGS on digits split over clients"
ABOUT = (
    "scikit-learn's digits, 640 to train on, split by Dirichlet shares of each class, and the same 800 to test every "
    "model on; a perceptron 64-32-10, 5 local steps a round (D-PSGD: 1); learning rate and rho chosen by four trials "
    "of each method and budget on validation images of other seeds, in one setting. Scores are means over the last "
    "fifth of the rounds, which is flat if the clients' mean accuracy changes by less than half a point in it."
)
Comparison = tuple[str, str, str, str]
"""Setting, method, control and budget."""


def _list_comparisons() -> Iterator[Comparison]:
    for setting in SETTINGS:
        for control in (DPSGD, DFEDAVG):
            yield setting, DFEDSAM, control, BOTH
        for method in (TWO, FOUR):
            for control in (DPSGD, DFEDAVG, DFEDSAM):
                yield from ((setting, method, control, budget) for budget in BUDGETS)
    yield TUNED_ON, KEPT, RESET, BOTH
    for method, control in ((DFEDAVG, LOCAL), (DFEDSAM, LOCAL), (DFEDAVG, FEDAVG), (DFEDSAM, FEDSAM), (FOUR, FEDSAM)):
        yield TUNED_ON, method, control, ROUNDS


COMPARISONS = tuple(_list_comparisons())


def main(arguments: Sequence[str] | None = None) -> None:
    """Tune, run the missing runs, and write both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="gets a JSON line per run")
    parser.add_argument("--json", type=Path, help="file for the table; the arms get another, with _arms in its name")
    parser.add_argument("--workers", type=int, default=2, help="number of processes, with one thread each")
    parser.add_argument("--quick", action="store_true", help="two seeds, one or two rounds, no trials, in OUT/quick")
    options = parser.parse_args(arguments)
    out = options.out / "quick" if options.quick else options.out
    kept = None if options.quick else find_kept_log(options.json)
    copy_lines(kept, out / "runs.jsonl")
    plan = FederatedPlan(out, quick=options.quick, workers=options.workers)
    arms = plan.measure(list_arms())
    copy_lines(out / "runs.jsonl", kept)
    rows, arm_rows = make_comparison_rows(arms), make_arm_rows(arms)
    print_rows(rows)
    print_rows(arm_rows)
    if options.json is not None:
        commits = ", ".join(sorted(plan.log.commits))
        write_result(options.json, rows, title=TITLE, about=describe_comparisons(arms), measured_at=commits)
        path = options.json.with_stem(f"{options.json.stem}_arms")
        write_result(path, arm_rows, title=f"{TITLE}: every arm", about=describe_arms(), measured_at=commits)


def list_arms() -> list[Key]:
    """List the arms that comparisons need.

    Methods with one gossip step have the same runs in both budgets, so they are listed with equal rounds.
    """
    sides = [(setting, name, budget) for setting, method, control, budget in COMPARISONS for name in (method, control)]
    return list(dict.fromkeys(find_arm(*side) for side in sides))


def find_arm(setting: str, method: str, budget: str) -> Key:
    """Return the key of the arm of one side of a comparison."""
    is_shorter = budget == TRAFFIC and METHODS[method].gossip_steps > 1
    return setting, method, TRAFFIC if is_shorter else ROUNDS


def make_comparison_rows(arms: Mapping[Key, Arm]) -> list[dict[str, Any]]:
    """Return a row per comparison: interval and verdict of each metric."""
    rows = []
    for setting, method, control, budget in COMPARISONS:
        own, other = (arms[find_arm(setting, name, budget)] for name in (method, control))
        row: dict[str, Any] = {"setting": setting, "method": method, "control": control, "budget": budget}
        for metric, better in METRICS.items():
            claim = Claim(method, control, metric, better, setting=setting)
            found = make_claim_row(claim, own.values(metric), other.values(metric), budget=budget)
            row |= {f"{metric}: interval": found["interval"], f"{metric}: {better}": found["verdict"]}
        rows.append(row | {"seeds": len(own.runs), "both flat": own.is_flat and other.is_flat})
    return rows


def make_arm_rows(arms: Mapping[Key, Arm]) -> list[dict[str, Any]]:
    """Return a row per arm, with its means over seeds."""
    return [
        {"setting": setting, "method": method}
        | {"budget": budget if METHODS[method].gossip_steps > 1 else BOTH, "rounds": arm.runs[0].steps}
        | {"learning rate": arm.runs[0].lr, "rho": arm.runs[0].value}
        | {metric: round_digits(arm.mean(metric)) for metric in (*METRICS, SENT)}
        | {"change in the last fifth": round_digits(arm.slope), "flat": arm.is_flat}
        | {CONTRACTION: round_digits(arm.mean(CONTRACTION)), "lambda^Q": find_bound(setting, method)}
        for (setting, method, budget), arm in arms.items()
    ]


def find_bound(setting: str, method: str) -> float | None:
    """Return the bound of the contraction, lambda^Q; None without a graph."""
    spec, steps = SETTINGS[setting], METHODS[method].gossip_steps
    return None if METHODS[method].mixing else round_digits(spec.topology(spec.clients).contraction ** steps)


def describe_comparisons(arms: Mapping[Key, Arm]) -> str:
    """Describe data, training, verdicts, and the arms that still change."""
    moving = sum(not arm.is_flat for arm in arms.values())
    return (
        f"{ABOUT} Differences are method minus control, paired by seed (that of images, split, initialisation and "
        "batches), as Student's intervals at 95 %, not corrected for their number; verdicts are on the metric being "
        "higher, or lower for the consensus distance. With equal traffic a method with Q gossip steps has 1/Q of the "
        "rounds. "
        f"{moving} of {len(arms)} arms are not flat."
    )


def describe_arms() -> str:
    """Describe the columns of the arms."""
    return (
        f"{ABOUT} Means over seeds. Contraction is the factor by which a round's gossip steps shrink the consensus "
        "distance that a further round of local steps leaves; lambda^Q is its bound on the graph. FedAvg and FedSAM "
        "exchange weights with a server."
    )


if __name__ == "__main__":
    main()
