"""Training and validation cases of a fold, and of the domains of a configuration."""

from collections import Counter
from collections.abc import Iterable, Sequence

from uumamba.config.data import DomainsConfig
from uumamba.data.case import Case, Manifest
from uumamba.runtime.errors import UsageError, require

FOLDS = ("0", "1", "2", "3", "4")
ALL_CASES = "all"
EVERY_FOLD = "cv"


def folds_of(fold: str) -> tuple[str, ...]:
    """List the folds that ``--fold`` selects.

    Raises:
        UsageError: the fold is unknown.
    """
    check_fold_name(fold, (*FOLDS, ALL_CASES, EVERY_FOLD))
    return FOLDS if fold == EVERY_FOLD else (fold,)


def check_fold_name(fold: str, known: Sequence[str]) -> None:
    """Raise if a fold is not among the known ones."""
    require(fold in known, "--fold", got=fold, expected=", ".join(known))


def split_cases(manifest: Manifest, fold: str, domains: DomainsConfig | None = None) -> tuple[list[str], list[str]]:
    """List the ids of the training cases and of the validation cases; test cases are neither.

    Args:
        manifest: the data set.
        fold: ``"0"`` to ``"4"``, or ``"all"``, which validates on nothing.
        domains: a domain that only trains or only validates does so with all its cases. A domain that does both is
            divided by the fold, as every domain is without ``domains``.

    Example:
        >>> cases = [Case(f"{d}{n}", f"{d}{n}", d, image=None, fold=n) for d in "AB" for n in range(2)]
        >>> split_cases(Manifest("toy", "MR", {}, tuple(cases)), "0", DomainsConfig(leave_out="B"))
        (['A0', 'A1'], ['B0', 'B1'])
    """
    cases = manifest.select(split="training")
    train, validate = _sides(cases, domains)
    validation = [
        case.case_id
        for case in cases
        if fold != ALL_CASES and case.domain in validate and (case.domain not in train or case.fold == int(fold))
    ]
    return [case.case_id for case in cases if case.domain in train and case.case_id not in validation], validation


def unused_cases(manifest: Manifest, fold: str, domains: DomainsConfig | None) -> dict[str, int]:
    """Count by domain the cases that are used neither for training nor for validation.

    Example:
        >>> cases = [Case(f"{d}{n}", f"{d}{n}", d, image=None, fold=n) for d in "AB" for n in range(2)]
        >>> unused_cases(Manifest("toy", "MR", {}, tuple(cases)), "0", DomainsConfig(train=("A",), validate=("A",)))
        {'B': 2}
    """
    used = {case_id for side in split_cases(manifest, fold, domains) for case_id in side}
    unused = (case.domain for case in manifest.select(split="training") if case.case_id not in used)
    return dict(sorted(Counter(unused).items()))


def validate_split(manifest: Manifest, folds: Sequence[str], domains: DomainsConfig | None, *, where: str) -> None:
    """Validate a train/validation split.

    Args:
        manifest: the data set.
        folds: to train; several are a cross-validation.
        domains: of the configuration.
        where: name or path of the data set for the error.

    Raises:
        UsageError: no case is left for training or for validation; a domain is unknown, or the only one where several
            are needed; a patient is in a training and in a validation domain; or, in a cross-validation, every fold
            would validate on the same domain.
    """
    if domains is not None:
        _validate_domains(manifest, domains, where=where)
        if len(folds) > 1:
            _validate_cross_validation(manifest, domains)
    for fold in folds:
        training, validation = split_cases(manifest, fold, domains)
        require(
            training and (fold == ALL_CASES or validation),
            "--fold",
            got=f"{fold} with {len(training)} training and {len(validation)} validation cases of {where}",
            expected="at least one of both",
            fix="prepare more cases or choose another fold (all needs no validation cases)",
        )
        if domains is not None:
            _validate_patients(manifest, training, validation)


def _sides(cases: Iterable[Case], domains: DomainsConfig | None) -> tuple[set[str], set[str]]:
    known = {case.domain for case in cases}
    return (known, known) if domains is None else domains.split_domains(known)


def _validate_domains(manifest: Manifest, domains: DomainsConfig, *, where: str) -> None:
    known, unseen = ({case.domain for case in manifest.select(split=split)} for split in ("training", "test"))
    if unknown := domains.names() - known:
        tests = unknown & unseen
        fix = f"score the test cases of {_join(tests)} with `uumamba predict --split test`" if tests else ""
        raise UsageError("dataset.domains", got=_join(unknown), expected=f"domains of {where}: {_join(known)}", fix=fix)
    train, validate = domains.split_domains(known)
    if train and validate:
        return
    empty = "validate" if train else "train"
    raise UsageError(
        f"dataset.domains.{'train' if train else 'validate'}",
        got=f"{_join(known)} (all domains of {where})",
        expected=f"at least one domain left to {empty} on",
        fix=f"set dataset.domains.{empty}" + (" too, or leave dataset.domains null" if len(known) == 1 else ""),
    )


def _validate_cross_validation(manifest: Manifest, domains: DomainsConfig) -> None:
    train, validate = _sides(manifest.select(split="training"), domains)
    expected = f"one fold, since no fold trains on the domain {_join(validate - train)}"
    require(validate <= train, "--fold", got=EVERY_FOLD, expected=expected, fix="choose --fold 0, or several --seeds")


def _validate_patients(manifest: Manifest, training: Iterable[str], validation: Iterable[str]) -> None:
    patients = {case.case_id: case.patient_id for case in manifest.cases}
    both = {patients[name] for name in training} & {patients[name] for name in validation}
    require(
        not both,
        "dataset.domains",
        got=f"training and validation cases of {_join(both)}",
        expected="no patient in both",
        fix="list both domains in train and in validate, which divides them by the fold",
    )


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
