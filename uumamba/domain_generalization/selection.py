"""Model selection: three rules that choose a step and a setting from the records of a run."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from uumamba.domain_generalization.domains import require_domains
from uumamba.runtime.errors import require

Record = Mapping[str, Any]
"""A flat row: ``step``, ``test_envs`` (domains never trained on), ``env{i}_in_acc`` and ``env{i}_out_acc`` of every
domain, and, where there are several, ``setting`` and ``trial_seed``."""

TRAINING = "training-domain validation"
CROSS = "leave-one-domain-out cross-validation"
ORACLE = "oracle (test-domain validation)"


@dataclass(frozen=True)
class Selection:
    """Choice of a rule.

    Attributes:
        rule: its name; the oracle's begins with "oracle".
        oracle: labels of the test domain decided, so the accuracy is no estimate for a new domain.
        test_domain: the domain that was never trained on.
        setting: the chosen hyper-parameters.
        step: the chosen step.
        validation_accuracy: the number that the rule compared.
        test_accuracy: on the in split of the test domain, as DomainBed reports it.
    """

    rule: str
    oracle: bool
    test_domain: int
    setting: str
    step: int
    validation_accuracy: float
    test_accuracy: float

    def __str__(self) -> str:
        chosen = f"setting {self.setting!r}, step {self.step}" if self.setting else f"step {self.step}"
        return f"domain {self.test_domain}, {self.rule}: {self.test_accuracy:.3f} ({chosen})"


def training_domain_validation(records: Iterable[Record], *, test_domain: int) -> Selection:
    r"""Choose by the mean accuracy on the out splits of the training domains.

    .. math:: \arg\max_{\mathrm{setting},\, \mathrm{step}} \ \frac{1}{n - 1} \sum_{i \ne t} \mathrm{env}_i\,\mathrm{out}

    among records whose only test domain is t. A user without labels from the new domain can do this. Among equals the
    earliest record wins. A mean of NaN never wins, in this rule and the others.

    Args:
        records: of one trial, any settings; those of other test domains are ignored.
        test_domain: t.

    Raises:
        UsageError: no record has this test domain alone, one lacks an accuracy, all compared accuracies are NaN, or
            there are several trials.

    Example:
        >>> accuracies = {"env0_in_acc": 0.5, "env0_out_acc": 0.9, "env1_in_acc": 0.8, "env1_out_acc": 0.7}
        >>> records = [{"step": 100, "test_envs": [0], **accuracies}]
        >>> print(training_domain_validation(records, test_domain=0))
        domain 0, training-domain validation: 0.500 (step 100)

    References:
        Gulrajani & Lopez-Paz, *In Search of Lost Domain Generalization*, ICLR 2021, arXiv:2007.01434, section 3.
        Differs from the paper: none.
    """
    candidates = []
    for record in _select_trial(records, test_domain):
        others = _other_domains(record, test_domain)
        require_domains(len(others) + 1, "training-domain validation")
        candidates.append((record, fmean(_accuracy(record, domain, "out") for domain in others)))
    return _best(TRAINING, test_domain, candidates)


def leave_one_domain_out_validation(records: Iterable[Record], *, test_domain: int) -> Selection:
    r"""Choose by the mean accuracy on the other domains, each left out of training in turn.

    .. math:: \arg\max_{\mathrm{setting},\, \mathrm{step}} \
              \frac{1}{n - 1} \sum_{v \ne t} \mathrm{env}_v\,\mathrm{in} \ \text{of the run without}\ \{v, t\}

    The test accuracy is that of the run without t alone, at the same setting and step. A setting and step for which
    one of these runs has no record are ignored. Needs n runs a test domain; see :func:`held_out_domains`.

    Args:
        records: of one trial, any settings; those of other test domains are ignored.
        test_domain: t.

    Raises:
        UsageError: fewer than 3 domains, no setting and step has all runs, a record lacks an accuracy, all compared
            accuracies are NaN, or there are several trials.

    References:
        Gulrajani & Lopez-Paz, *In Search of Lost Domain Generalization*, ICLR 2021, arXiv:2007.01434, section 3.
        Differs from the paper: none.
    """
    held = [record for record in records if test_domain in record["test_envs"] and len(record["test_envs"]) <= 2]
    alone = _select_trial(held, test_domain)
    _require_one_trial(held)  # a pair of another trial would validate this one
    pairs = {(_place(record), frozenset(record["test_envs"])): record for record in held}
    candidates = []
    for record in alone:
        others = _other_domains(record, test_domain)
        require_domains(len(others) + 1, "leave-one-domain-out cross-validation", at_least=3)
        without = {domain: pairs.get((_place(record), frozenset({domain, test_domain}))) for domain in others}
        found = [_accuracy(other, domain, "in") for domain, other in without.items() if other is not None]
        if len(found) == len(others):
            candidates.append((record, fmean(found)))
    expected = f"one without domain {test_domain} alone and one without it and each other domain"
    fix = "run all that held_out_domains(n, cross_validation=True) names, and record at the same steps"
    require(candidates, "records", got="no setting and step with all runs", expected=expected, fix=fix)
    return _best(CROSS, test_domain, candidates)


def oracle(records: Iterable[Record], *, test_domain: int) -> Selection:
    """Choose the setting by accuracy on the out split of the test domain itself, at the last step.

    No user of a new domain can do this: ``rule`` and ``oracle`` of the result say so, and reports must, too.

    Args:
        records: of one trial, any settings; those of other test domains are ignored.
        test_domain: the domain that was never trained on.

    Raises:
        UsageError: no record has this test domain alone, one lacks an accuracy, all compared accuracies are NaN, or
            there are several trials.

    Example:
        >>> record = {"step": 100, "test_envs": [0], "env0_in_acc": 0.5, "env0_out_acc": 0.9}
        >>> oracle([record], test_domain=0).rule
        'oracle (test-domain validation)'

    References:
        Gulrajani & Lopez-Paz, *In Search of Lost Domain Generalization*, ICLR 2021, arXiv:2007.01434, section 3.
        Differs from the paper: none.
    """
    last: dict[str, Record] = {}
    for record in _select_trial(records, test_domain):
        setting = record.get("setting", "")
        if setting not in last or record["step"] > last[setting]["step"]:
            last[setting] = record
    return _best(ORACLE, test_domain, [(each, _accuracy(each, test_domain, "out")) for each in last.values()])


def _best(rule: str, test_domain: int, candidates: Sequence[tuple[Record, float]]) -> Selection:
    numbers = [candidate for candidate in candidates if not math.isnan(candidate[1])]
    require(numbers, "records", got=f"{len(candidates)} accuracies of NaN", expected="at least one number")
    record, accuracy = max(numbers, key=lambda candidate: candidate[1])
    return Selection(
        rule=rule,
        oracle=rule == ORACLE,
        test_domain=test_domain,
        setting=record.get("setting", ""),
        step=record["step"],
        validation_accuracy=accuracy,
        test_accuracy=_accuracy(record, test_domain, "in"),
    )


def _select_trial(records: Iterable[Record], test_domain: int) -> list[Record]:
    found = [record for record in records if tuple(record["test_envs"]) == (test_domain,)]
    require(found, "records", got="none", expected=f"at least one of a run without domain {test_domain} alone")
    _require_one_trial(found)
    return found


def _require_one_trial(records: Iterable[Record]) -> None:
    trials = [*dict.fromkeys(record.get("trial_seed") for record in records)]
    fix = "select within each trial, then average"
    require(len(trials) <= 1, "trial_seed", got=trials, expected="one trial", fix=fix)


def _other_domains(record: Record, test_domain: int) -> list[int]:
    named = [name.removeprefix("env").removesuffix("_in_acc") for name in record if name.endswith("_in_acc")]
    return sorted({int(name) for name in named if name.isdigit()} - {test_domain})


def _place(record: Record) -> tuple[str, int]:
    return record.get("setting", ""), record["step"]


def _accuracy(record: Record, domain: int, split: str) -> float:
    name = f"env{domain}_{split}_acc"
    expected = f"{name} at step {record['step']} without domains {record['test_envs']}"
    require(name in record, "records", got=f"no {name}", expected=expected)
    return float(record[name])
