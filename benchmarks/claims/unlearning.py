r"""Claims of smoothed unlearning on memorised digits and passages of text.

    python -m benchmarks.claims.unlearning --out runs/unlearning --json benchmarks/results/unlearning.json

Protocol, fixed before the first full run.

Noisy digits: scikit-learn's digits with noise of standard deviation 0.4, so that a perceptron 64-128-128-10, trained
with Adam for 1000 steps on 240 of them, knows these by heart and is often wrong on others. Random 80 are to be
forgotten; the attacker has 20 of them. Unseen are the test set's 800 images.

Passages: a transformer for characters, pre-trained on docstrings and code of Python's standard library, learns 16
passages of 512 characters of the language reference by heart in 400 steps of Adam. Four passages are to be forgotten;
the attacker has the first quarter of each. Accuracy is that of the next character. Unseen are pieces of held-out
topics.

Arms: NPO; with SAM, randomised smoothing (RS), gradient penalty (GP), curvature regularisation (CR) or weight averaging
(WA); and gradient difference, alone and with SAM. Adam makes 50 steps on digits and 100 on passages, with batches of 32
and 16 of each set. References are the network before unlearning and one retrained from the same start without the
samples to forget.

Tuning: each arm has 16 trials on two other seeds, at the same evenly spread points for every arm (Sobol's), of learning
rate, beta of NPO, weight of the retain loss, and the arm's own number, on logarithmic scales; ranges come from pilots
on the tuning seeds. A trial is admitted if the samples to forget are answered no better than unseen ones, and accuracy
on retained samples falls by at most a point. Of these, the one with the highest accuracy on unseen samples is chosen;
without one, that with the smallest sum of excesses. No attack takes part in the choice.

Attack: Adam on all samples that the attacker has, for 5, 15 and 50 steps, stopped at the best of them. Its rates are
swept once per arm on the tuning seeds, and widened by factors of 3.16, at most three times, while the strongest is the
lowest or highest; the strongest rates of the three budgets then attack the test seeds. Forgetting is measured as the
accuracy on the samples to forget that the attacker lacks.

Verdicts: differences are paired by seed (five; that of samples, start and order), with Student's intervals at 95 %,
which are not corrected for their number. "Equal" retained accuracy in a row is an interval of the difference within one
point, "lower" or "higher" one without zero; where it is not equal, the claim's condition is not met.

Membership: area of the attack by loss of samples to forget against unseen ones; on digits also of the likelihood-ratio
attack with 16 shadow models on random halves of the training set and as many others. 0.5 is chance, and an area below
it also reveals who was forgotten. The second table has the numbers of each arm.

Runs stored in OUT are read, not run again. They are in a folder named by a hash of all numbers above.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.claims.claim_table import Claim, make_claim_row, round_digits
from benchmarks.claims.intervals import compute_interval
from benchmarks.claims.unlearning_plan import ALLOWED, Key, UnlearnedArm, UnlearningPlan, hash_protocol
from benchmarks.claims.unlearning_runs import (
    ARMS,
    BUDGETS,
    CHANCE,
    DIVERGENCE,
    FORGET,
    FORGET_LOSS,
    LIRA,
    MEMBERSHIP,
    RETAINED,
    RISE,
    TRIALS,
    UNSEEN,
    WEIGHTS,
    after,
    find_numbers,
)
from benchmarks.result_file import write_result
from benchmarks.scan import print_rows

TITLE = "Smoothed unlearning and relearning on digits and text"
PAIRS = (*(("NPO" + name, "NPO") for name in ("+SAM", "+RS", "+GP", "+CR", "+WA")), ("GradDiff+SAM", "GradDiff"))
NO_ATTACK = "no attack"
METRICS: Mapping[str, tuple[str, str]] = {
    FORGET: (FORGET, NO_ATTACK),
    **{after(FORGET, budget): (FORGET, f"attack of {budget} steps") for budget in BUDGETS},
    after(RISE, BUDGETS[-1]): (RISE, f"attack of {BUDGETS[-1]} steps"),
    DIVERGENCE: (DIVERGENCE, NO_ATTACK),
    CHANCE: (CHANCE, NO_ATTACK),
}
"""Each measure with a claim, its name in the table, and the budget; lower is claimed for all."""
ABOUT = (
    "Digits with noise (80 of 240 to forget, 20 of them known to the attacker) and passages of text (4 of 16, of each "
    "the first quarter known), learned by heart before. Forget accuracy and loss are those on the samples to forget "
    f"that the attacker lacks. Each arm has {TRIALS} trials on other seeds, chosen without an attack; the attacker's "
    "rate is swept once per arm."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Tune, sweep, run the missing runs, and write both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="gets a JSON line per run")
    parser.add_argument("--json", type=Path, help="file for the table; the arms get another, with _arms in its name")
    parser.add_argument("--workers", type=int, default=2, help="number of processes, with one thread each")
    parser.add_argument(
        "--quick", action="store_true", help="digits only, two seeds, an eighth of the steps, in OUT/quick"
    )
    options = parser.parse_args(arguments)
    out = options.out / "quick" if options.quick else options.out
    plan = UnlearningPlan(out, quick=options.quick, workers=options.workers)
    arms = plan.measure()
    rows, arm_rows = list(make_claim_rows(arms)), list(make_arm_rows(arms))
    print_rows(rows)
    print_rows(arm_rows)
    if options.json is not None:
        commits = ", ".join(sorted(plan.log.commits))
        write_result(options.json, rows, title=TITLE, about=describe_claims(), measured_at=commits)
        path = options.json.with_stem(f"{options.json.stem}_arms")
        write_result(path, arm_rows, title=f"{TITLE}: every arm", about=describe_arms(), measured_at=commits)


def make_claim_rows(arms: Mapping[Key, UnlearnedArm]) -> Iterator[dict[str, Any]]:
    """Yield a row per setting, comparison and measure."""
    for setting in dict.fromkeys(key[0] for key in arms):
        for method, control in PAIRS:
            own, other = arms[setting, method], arms[setting, control]
            retained = compare_retained(own.values(RETAINED), other.values(RETAINED))
            for metric, (name, budget) in METRICS.items():
                wording = f"lower than {control} at equal retained accuracy"
                claim = Claim(method, control, name, "lower", setting=setting, wording=wording)
                row = make_claim_row(claim, own.values(metric), other.values(metric), budget=budget)
                yield row | {"retained accuracy": retained}


def compare_retained(values: Sequence[float], control_values: Sequence[float]) -> str:
    """Compare retained accuracy, paired by seed, in a word.

    Example:
        >>> compare_retained([0.9, 0.91], [0.99, 1.0]), compare_retained([1.0, 0.99], [1.0, 0.99])
        ('lower', 'equal')
    """
    low, high = compute_interval([own - other for own, other in zip(values, control_values, strict=True)])
    if low >= -ALLOWED and high <= ALLOWED:
        return "equal"
    return "lower" if high < 0 else "higher" if low > 0 else "not distinguishable"


def make_arm_rows(arms: Mapping[Key, UnlearnedArm]) -> Iterator[dict[str, Any]]:
    """Yield a row per arm and reference, with its means over seeds."""
    last = BUDGETS[-1]
    names = [FORGET, *(after(FORGET, budget) for budget in BUDGETS), FORGET_LOSS, after(FORGET_LOSS, last), UNSEEN]
    names += [after(UNSEEN, last), RETAINED, MEMBERSHIP, LIRA, DIVERGENCE, WEIGHTS]
    for (setting, method), arm in arms.items():
        means = {name: arm.mean(name) for name in names}
        yield (
            {"setting": setting, "method": method}
            | {name: None if value is None else round_digits(value) for name, value in means.items()}
            | _describe_numbers(arm)
            | {"attacker's rates": list(arm.rates), "rate at an edge": arm.is_at_edge, "seeds": len(arm.runs)}
        )


def _describe_numbers(arm: UnlearnedArm) -> dict[str, Any]:
    run = arm.runs[0]
    if run.value is None:
        return dict.fromkeys(("learning rate", "beta", "retain weight", "own number", "admitted"))
    numbers, method = find_numbers(run.setting, run.method, int(run.value)), ARMS[run.method]
    return {
        "learning rate": round_digits(numbers.lr),
        "beta": round_digits(numbers.beta) if method.is_npo else None,
        "retain weight": round_digits(numbers.retain_weight),
        "own number": f"{method.number} {numbers.own:.3g}" if method.number else None,
        "admitted": arm.is_tuned,
    }


def describe_claims() -> str:
    """Describe data, tuning and verdicts."""
    return (
        f"{ABOUT} Differences are method minus control, paired by seed, as Student's intervals at 95 %, not corrected "
        "for their number; the last column compares the accuracy on retained samples: equal means within one point. "
        f"Protocol {hash_protocol()[:12]}."
    )


def describe_arms() -> str:
    """Describe the columns of the arms."""
    return (
        f"{ABOUT} Means over seeds. Areas of membership are those of samples to forget against unseen ones, 0.5 is "
        "chance; divergence is Jensen-Shannon's in bits on the samples to forget; admitted arms met both conditions of "
        f"tuning. Protocol {hash_protocol()[:12]}."
    )


if __name__ == "__main__":
    main()
