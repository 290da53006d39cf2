"""Model selection: three rules to choose a step and a setting."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from uumamba.domain_generalization.domains import require_domains
from uumamba.runtime.errors import require
from uumamba.runtime.options import check_options

Record = Mapping[str, Any]
"""Flat row: ``step``, ``test_envs`` (held-out domains), ``env{i}_in_acc`` and ``env{i}_out_acc`` of every domain, and
optionally ``setting`` and ``trial_seed``."""

TRAINING = "training-domain validation"
CROSS = "leave-one-domain-out cross-validation"
ORACLE = "oracle (test-domain validation)"


@dataclass(frozen=True)
class Selection:
    """Step and setting chosen by a rule.

    Attributes:
        rule: name of the rule.
        oracle: True if labels of the test domain were used; the accuracy is then no estimate for a new domain.
        test_domain: the held-out domain.
        setting: name of the chosen hyper-parameters.
        step: the chosen step.
        validation_accuracy: accuracy compared by the rule.
        test_accuracy: accuracy on the in split of the test domain, as in DomainBed.
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


@check_options
def training_domain_validation(records: Iterable[Record], *, test_domain: int) -> Selection:
    r"""Choose by the mean out-split accuracy of the training domains.

    .. math:: \arg\max_{\mathrm{setting},\, \mathrm{step}} \ \frac{1}{n - 1} \sum_{i \ne t} \mathrm{env}_i\,\mathrm{out}

    over records with t as the only test domain. The rule needs no labels from the new domain. Of equal accuracies the
    earliest record wins. In every rule, a mean of NaN never wins.

    Args:
        records: records of one trial with any settings; records of other test domains are ignored.
        test_domain: t.

    Raises:
        UsageError: no record has t as its only test domain, an accuracy is missing, all compared accuracies are NaN, or
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


@check_options
def leave_one_domain_out_validation(records: Iterable[Record], *, test_domain: int) -> Selection:
    r"""Choose by the mean accuracy on other domains held out in turn.

    .. math:: \arg\max_{\mathrm{setting},\, \mathrm{step}} \
              \frac{1}{n - 1} \sum_{v \ne t} \mathrm{env}_v\,\mathrm{in} \ \text{of the run without}\ \{v, t\}

    The test accuracy comes from the run that holds out t only, at the same setting and step. A setting and step are
    ignored if a run has no record of them. Needs n runs per test domain; see :func:`held_out_domains`.

    Args:
        records: records of one trial with any settings; records of other test domains are ignored.
        test_domain: t.

    Raises:
        UsageError: there are fewer than 3 domains, no setting and step has all runs, an accuracy is missing, all
            compared accuracies are NaN, or there are several trials.

    References:
        Gulrajani & Lopez-Paz, *In Search of Lost Domain Generalization*, ICLR 2021, arXiv:2007.01434, section 3.
        Differs from the paper: none.
    """
    held = [record for record in records if test_domain in record["test_envs"] and len(record["test_envs"]) <= 2]
    single_runs = _select_trial(held, test_domain)
    _require_one_trial(held)  # also the pairs: another trial must not validate this one
    pairs = {(_setting_and_step(record), frozenset(record["test_envs"])): record for record in held}
    candidates = []
    for record in single_runs:
        others = _other_domains(record, test_domain)
        require_domains(len(others) + 1, "leave-one-domain-out cross-validation", at_least=3)
        key = _setting_and_step(record)
        runs = {domain: pairs.get((key, frozenset({domain, test_domain}))) for domain in others}
        accuracies = [_accuracy(run, domain, "in") for domain, run in runs.items() if run is not None]
        if len(accuracies) == len(others):
            candidates.append((record, fmean(accuracies)))
    require(
        candidates,
        "records",
        got="no setting and step with all runs",
        expected=f"a run with test_envs [{test_domain}], and one with each other domain, at the same steps",
        fix="train all runs of held_out_domains(n, cross_validation=True)",
    )
    return _best(CROSS, test_domain, candidates)


@check_options
def oracle(records: Iterable[Record], *, test_domain: int) -> Selection:
    """Choose the setting by the test domain's own accuracy.

    The rule compares accuracies on the out split of the test domain at the last step.

    The rule needs labels of the test domain, which a new domain lacks. ``rule`` and ``oracle`` of the result mark the
    choice, and reports must mark it also.

    Args:
        records: records of one trial with any settings; records of other test domains are ignored.
        test_domain: the held-out domain.

    Raises:
        UsageError: no record has this test domain as its only one, an accuracy is missing, all compared accuracies are
            NaN, or there are several trials.

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
    require(numbers, "records", got=f"{len(candidates)} accuracies of NaN", expected="at least one finite accuracy")
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
    selected = [record for record in records if tuple(record["test_envs"]) == (test_domain,)]
    require(
        selected,
        "records",
        got="no record of the test domain",
        expected=f"records of a run with test_envs [{test_domain}]",
        fix=f"train a run with test_envs [{test_domain}], or choose a test domain that has records",
    )
    _require_one_trial(selected)
    return selected


def _require_one_trial(records: Iterable[Record]) -> None:
    trials = [*dict.fromkeys(record.get("trial_seed") for record in records)]
    require(
        len(trials) <= 1,
        "trial_seed",
        got=trials,
        expected="one trial",
        fix="select within each trial, then average the accuracies",
    )


def _other_domains(record: Record, test_domain: int) -> list[int]:
    numbers = [name.removeprefix("env").removesuffix("_in_acc") for name in record if name.endswith("_in_acc")]
    return sorted({int(number) for number in numbers if number.isdigit()} - {test_domain})


def _setting_and_step(record: Record) -> tuple[str, int]:
    return record.get("setting", ""), record["step"]


def _accuracy(record: Record, domain: int, split: str) -> float:
    name = f"env{domain}_{split}_acc"
    require(
        name in record,
        "records",
        got=f"no {name}",
        expected=f"{name} at step {record['step']} with test_envs {record['test_envs']}",
        fix=f"compute the accuracies of domain {domain} in every evaluated step",
    )
    return float(record[name])
