"""The three rules that choose a step and a setting from what was recorded, and so decide what is reported."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from uumamba.domain_generalization.domains import require_domains
from uumamba.runtime.errors import UsageError

Record = Mapping[str, Any]
"""A flat row: ``step``, ``test_envs`` (domains never trained on), ``env{i}_in_acc`` and ``env{i}_out_acc`` of every
domain, and, where there are several, ``setting`` and ``trial_seed``."""

TRAINING = "training-domain validation"
CROSS = "leave-one-domain-out cross-validation"
ORACLE = "oracle (test-domain validation)"


@dataclass(frozen=True)
class Selection:
    """What a rule chose.

    Attributes:
        rule: its name; that of the oracle begins with the word.
        oracle: whether labels of the test domain decided, so that the accuracy is no estimate of what a user gets.
        test_domain: the domain that was never trained on.
        setting: the hyper-parameters chosen.
        step: the step chosen.
        validation_accuracy: what the rule compared.
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

    among records whose only test domain is t. What a user without labels from the new domain can do. Among equals the
    earliest record wins. A mean that is not a number never does, in this rule and the others.

    Args:
        records: of one trial, any settings; those of other test domains are passed over.
        test_domain: t.

    Raises:
        UsageError: no record has this test domain alone, one lacks an accuracy, none of those compared is a number, or
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
    for record in _of_one_trial(records, (test_domain,)):
        others = _other_domains(record, test_domain)
        require_domains(len(others) + 1, "Training-domain validation")
        candidates.append((record, fmean(_accuracy(record, domain, "out") for domain in others)))
    return _best(TRAINING, test_domain, candidates)


def leave_one_domain_out_validation(records: Iterable[Record], *, test_domain: int) -> Selection:
    r"""Choose by the mean accuracy on domains that were left out of training in turn, beside the test domain.

    .. math:: \arg\max_{\mathrm{setting},\, \mathrm{step}} \
              \frac{1}{n - 1} \sum_{v \ne t} \mathrm{env}_v\,\mathrm{in} \ \text{of the run without}\ \{v, t\}

    The test accuracy is that of the run without t alone, at the same setting and step. A setting and step for which
    any of these runs has no record are passed over. Needs n runs a test domain; see :func:`held_out_domains`.

    Args:
        records: of one trial, any settings; those of other test domains are passed over.
        test_domain: t.

    Raises:
        UsageError: fewer than 3 domains, no setting and step has all runs, a record lacks an accuracy, none of those
            compared is a number, or there are several trials.

    References:
        Gulrajani & Lopez-Paz, *In Search of Lost Domain Generalization*, ICLR 2021, arXiv:2007.01434, section 3.
        Differs from the paper: none.
    """
    held = [record for record in records if test_domain in record["test_envs"] and len(record["test_envs"]) <= 2]
    alone = _of_one_trial(held, (test_domain,))
    _refuse_several_trials(held)  # a pair of another trial would validate this one
    pairs = {(_place(record), frozenset(record["test_envs"])): record for record in held}
    candidates = []
    for record in alone:
        others = _other_domains(record, test_domain)
        require_domains(len(others) + 1, "Leave-one-domain-out cross-validation", at_least=3)
        without = {domain: pairs.get((_place(record), frozenset({domain, test_domain}))) for domain in others}
        found = [_accuracy(other, domain, "in") for domain, other in without.items() if other is not None]
        if len(found) == len(others):
            candidates.append((record, fmean(found)))
    if not candidates:
        raise UsageError(
            f"No setting and step has a record without domain {test_domain} alone and one without it and each other "
            "domain; run all that held_out_domains(n, cross_validation=True) names, and record at the same steps."
        )
    return _best(CROSS, test_domain, candidates)


def oracle(records: Iterable[Record], *, test_domain: int) -> Selection:
    """Choose the setting by accuracy on the out split of the test domain itself, always at the last step.

    No user of a new domain can do this: the result says so in ``rule`` and ``oracle``, and must be reported with it.

    Args:
        records: of one trial, any settings; those of other test domains are passed over.
        test_domain: the domain that was never trained on.

    Raises:
        UsageError: no record has this test domain alone, one lacks an accuracy, none of those compared is a number, or
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
    for record in _of_one_trial(records, (test_domain,)):
        setting = record.get("setting", "")
        if setting not in last or record["step"] > last[setting]["step"]:
            last[setting] = record
    return _best(ORACLE, test_domain, [(each, _accuracy(each, test_domain, "out")) for each in last.values()])


def _best(rule: str, test_domain: int, candidates: Sequence[tuple[Record, float]]) -> Selection:
    numbers = [candidate for candidate in candidates if not math.isnan(candidate[1])]
    if not numbers:
        raise UsageError(
            f"By {rule} nothing can be chosen for test domain {test_domain}: none of the {len(candidates)} accuracies "
            "that it compares is a number; correct the records, or what scored them."
        )
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


def _of_one_trial(records: Iterable[Record], test_domains: tuple[int, ...]) -> list[Record]:
    found = [record for record in records if tuple(record["test_envs"]) == test_domains]
    if not found:
        raise UsageError(f"No record was written by a run that held out domain {test_domains[0]} alone.")
    _refuse_several_trials(found)
    return found


def _refuse_several_trials(records: Iterable[Record]) -> None:
    trials = dict.fromkeys(record.get("trial_seed") for record in records)
    if len(trials) > 1:
        raise UsageError(
            f"Records of several trials ({', '.join(map(str, trials))}); select within each, then average."
        )


def _other_domains(record: Record, test_domain: int) -> list[int]:
    named = [name.removeprefix("env").removesuffix("_in_acc") for name in record if name.endswith("_in_acc")]
    return sorted({int(name) for name in named if name.isdigit()} - {test_domain})


def _place(record: Record) -> tuple[str, int]:
    return record.get("setting", ""), record["step"]


def _accuracy(record: Record, domain: int, split: str) -> float:
    name = f"env{domain}_{split}_acc"
    if name not in record:
        raise UsageError(f"The record of step {record['step']} without domains {record['test_envs']} lacks {name}.")
    return float(record[name])
