"""Claims of the sharpness-aware papers, tested on digits and text.

    python -m benchmarks.claims.sharpness --out runs/sharpness --json benchmarks/results/sharpness.json

The data ship with scikit-learn and Python. Every method trains from the same initialisation on the same batches as its
control, seed by seed: once for as many steps as the base optimizer (equal epochs), once for as many as fit into the
base's time (equal time). The cost of a step is measured first, in alternating rounds, and stored in OUT, so a run is a
number of steps and other work of the machine does not bias it. The base's learning rate, and one number per method, are
chosen from a grid on validation data of other seeds, at equal time; test data select nothing. Runs stored in OUT are
read, not run again.
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.claims.claim_table import Claim, make_claim_row
from benchmarks.claims.members import MEMBERS
from benchmarks.claims.plan import TRAMS, Plan
from benchmarks.claims.settings import GAP_RHO, SETTINGS
from benchmarks.result_file import write_result
from benchmarks.scan import print_rows

ACCURACY, CORRUPTED, EIGENVALUE = "test accuracy", "corruption accuracy", "largest eigenvalue"
GAP, OTHERS, TIME_A_STEP = "surrogate gap", "other domains' perplexity", "time of a step, in that of the base"
AS_GOOD = 0.005  # allowed loss of accuracy


def _list_claims() -> Iterator[Claim]:
    """Yield one or more claims per method, from its paper."""
    yield Claim("SAM", "base", EIGENVALUE, "lower")
    yield Claim("SAM", "base", ACCURACY, "higher")
    yield Claim("ASAM", "SAM", ACCURACY, "higher")
    yield Claim("GSAM", "SAM", GAP, "lower")
    yield Claim("GSAM", "SAM", ACCURACY, "higher")
    yield Claim("FriendlySAM", "SAM", ACCURACY, "higher")
    for name in ("LookSAM(5)", "MSAM", "StaleSAM"):
        yield Claim(name, "SAM", ACCURACY, "higher", margin=AS_GOOD)
    yield Claim("SAGM", "SAM", CORRUPTED, "higher")
    for name in TRAMS:
        yield Claim(name, "ASAM", CORRUPTED, "higher")
    yield Claim("OBF", "SAM", ACCURACY, "higher")
    yield Claim("OBF", "SAM", CORRUPTED, "higher")
    yield Claim("OBF", "SAM", EIGENVALUE, "higher", wording="at times sharper than SAM")
    yield Claim("SAM, norms alone", "SAM", ACCURACY, "higher")
    for name in ("SAF", "MESA"):
        yield Claim(name, "base", ACCURACY, "higher")
        yield Claim(name, "base", EIGENVALUE, "lower")
    for name, control in (("SAM", "base"), ("ASAM", "base"), *((name, "ASAM") for name in TRAMS)):
        yield Claim(name, control, OTHERS, "lower", setting="text")


CLAIMS = tuple(_list_claims())
COSTS = {"LookSAM(5)": 1.25, "MSAM": 1.05, "StaleSAM": 1.05, "SAF": 1.1, "MESA": 1.45}
"""Largest claimed time of a step, relative to the base optimizer."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure costs, tune numbers, run missing runs, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="gets a JSON line per run")
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--workers", type=int, default=2, help="number of processes, with one thread each")
    parser.add_argument("--quick", action="store_true", help="two seeds, few steps, published numbers, in OUT/quick")
    options = parser.parse_args(arguments)
    plan = Plan(options.out / "quick" if options.quick else options.out, quick=options.quick, workers=options.workers)
    rows = [row for setting in SETTINGS for row in make_claim_rows(plan, setting)]
    print_rows(rows)
    if options.json is not None:
        commits = ", ".join(sorted(plan.log.commits))
        title = "What sharpness-aware methods claim, on digits and text"
        write_result(options.json, rows, title=title, about=describe_table(plan), measured_at=commits)


def make_claim_rows(plan: Plan, setting: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a setting's claims, for each budget."""
    cost = plan.measure_cost(setting)
    plan.choose(setting, cost)
    measured = plan.measure(setting, cost)
    for claim in CLAIMS:
        for budget, found in measured.items():
            if claim.setting == setting:
                values = [[each[claim.metric] for each in found[name]] for name in (claim.method, claim.control)]
                yield make_claim_row(claim, *values, budget=budget)
    if setting == "digits":
        yield from make_cost_rows(cost)


def make_cost_rows(cost: Mapping[str, Sequence[float]]) -> Iterator[dict[str, Any]]:
    """Yield the claims about the cost of a step.

    A pair is a round of timing.
    """
    for name, most in COSTS.items():
        sentence = f"at most {most:g} times the base's"
        claim = Claim(name, "base", TIME_A_STEP, "lower", margin=most - 1, wording=sentence)
        yield make_claim_row(claim, cost[name], cost["base"], budget="a step")


def describe_table(plan: Plan) -> str:
    """Describe data, training and settings."""
    numbers = "; ".join(f"{setting}: {', '.join(_list_choices(plan, setting))}" for setting in plan.lr)
    steps = {setting: plan.count_steps(setting) for setting in SETTINGS}
    return (
        "Differences are paired by seed (that of training set, initialisation and order; for the time of a step by "
        "round of timing), intervals are Student's at 95 %, and the verdict follows from the interval. Digits: "
        "scikit-learn's, 200 to train on and 800 to test on, a small convolutional network with batch norms from "
        f"scratch, {steps['digits']} steps of SGD; corruption accuracy is the mean over noise, blur, contrast, "
        "shift and occlusion at three severities; eigenvalue (of the Hessian, by power iteration) and "
        f"surrogate gap (rho {GAP_RHO}) on the training set. Text: characters of what ships with Python, a small "
        "transformer pre-trained on docstrings and code of the standard library, fine-tuned on the language reference "
        f"of pydoc for {steps['text']} steps of AdamW and tested on held-out docstrings and code. With equal time "
        "a method makes as many steps as fit into the base's time, by medians of alternating rounds. Numbers chosen on "
        f"validation data of other seeds: {numbers}."
    )


def _list_choices(plan: Plan, setting: str) -> Iterable[str]:
    yield f"learning rate {plan.lr[setting]:g}"
    for name, value in plan.values.get(setting, {}).items():
        yield f"{name} {MEMBERS[name].number} {value:g}"


if __name__ == "__main__":
    main()
