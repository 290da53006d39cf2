"""Training and validation cases, split by fold and by domain."""

from collections import Counter
from collections.abc import Iterable, Sequence

from uumamba.config.data import DomainsConfig
from uumamba.data.case import Case, Manifest
from uumamba.runtime.errors import UsageError, require

FOLDS = ("0", "1", "2", "3", "4")
ALL_CASES = "all"
EVERY_FOLD = "cv"


def select_folds(fold: str) -> tuple[str, ...]:
    """List the folds that ``--fold`` selects.

    Raises:
        UsageError: the fold is unknown.
    """
    known = (*FOLDS, ALL_CASES, EVERY_FOLD)
    require(fold in known, "--fold", got=fold, expected=f"one of {', '.join(known)}")
    return FOLDS if fold == EVERY_FOLD else (fold,)


def split_cases(manifest: Manifest, fold: str, domains: DomainsConfig | None = None) -> tuple[list[str], list[str]]:
    """List the ids of the training cases and of the validation cases.

    Test cases are in neither list.

    Args:
        manifest: the data set.
        fold: ``"0"`` to ``"4"``, or ``"all"``, which has no validation cases.
        domains: a domain only for training or only for validation is used with all its cases. A domain for both is
            split by the fold. Without ``domains`` every domain is for both.

    Example:
        >>> cases = [Case(f"{d}{n}", f"{d}{n}", d, image=None, fold=n) for d in "AB" for n in range(2)]
        >>> split_cases(Manifest("toy", "MR", {}, tuple(cases)), "0", DomainsConfig(leave_out="B"))
        (['A0', 'A1'], ['B0', 'B1'])
    """
    cases = manifest.select(split="training")
    train, validate = _used_domains(cases, domains)
    validation = [
        case.case_id
        for case in cases
        if fold != ALL_CASES and case.domain in validate and (case.domain not in train or case.fold == int(fold))
    ]
    return [case.case_id for case in cases if case.domain in train and case.case_id not in validation], validation


def unused_cases(manifest: Manifest, fold: str, domains: DomainsConfig | None) -> dict[str, int]:
    """Count each domain's cases without training or validation use.

    Example:
        >>> cases = [Case(f"{d}{n}", f"{d}{n}", d, image=None, fold=n) for d in "AB" for n in range(2)]
        >>> unused_cases(Manifest("toy", "MR", {}, tuple(cases)), "0", DomainsConfig(train=("A",), validate=("A",)))
        {'B': 2}
    """
    used = {case_id for case_ids in split_cases(manifest, fold, domains) for case_id in case_ids}
    unused = (case.domain for case in manifest.select(split="training") if case.case_id not in used)
    return dict(sorted(Counter(unused).items()))


def validate_split(manifest: Manifest, folds: Sequence[str], domains: DomainsConfig | None, *, where: str) -> None:
    """Validate a train/validation split.

    Args:
        manifest: the data set.
        folds: folds to train; several are a cross-validation.
        domains: of the configuration.
        where: name or path of the data set, for the message.

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
            expected="at least one training and one validation case",
            fix="prepare more cases or choose another fold (all needs no validation cases)",
        )
        if domains is not None:
            _validate_patients(manifest, training, validation)


def _used_domains(cases: Iterable[Case], domains: DomainsConfig | None) -> tuple[set[str], set[str]]:
    """Return the domains for training and those for validation."""
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
        expected=f"at least one domain left for {'validation' if train else 'training'}",
        fix=f"set dataset.domains.{empty}" + (" also, or dataset.domains=null" if len(known) == 1 else ""),
    )


def _validate_cross_validation(manifest: Manifest, domains: DomainsConfig) -> None:
    train, validate = _used_domains(manifest.select(split="training"), domains)
    expected = f"one fold, since every fold would validate on all cases of {_join(validate - train)}"
    require(validate <= train, "--fold", got=EVERY_FOLD, expected=expected, fix="choose --fold 0 or several --seeds")


def _validate_patients(manifest: Manifest, training: Iterable[str], validation: Iterable[str]) -> None:
    patients = {case.case_id: case.patient_id for case in manifest.cases}
    both = {patients[name] for name in training} & {patients[name] for name in validation}
    require(
        not both,
        "dataset.domains",
        got=f"training and validation cases of {_join(both)}",
        expected="patients in only one of the two",
        fix="list both domains in train and in validate, so that the fold splits them",
    )


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
