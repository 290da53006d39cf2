"""Split of the cases of each fold into training and validation."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from uumamba.config.data import DomainsConfig
from uumamba.data.case import Case, Manifest
from uumamba.runtime.errors import UsageError, require

FOLDS = ("0", "1", "2", "3", "4")
ALL_CASES = "all"
EVERY_FOLD = "cv"
Splits = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
"""Ids of the training cases and of the validation cases, by fold."""


def split_cases(
    manifest: Manifest,
    folds: Sequence[str],
    domains: DomainsConfig | None = None,
    *,
    exclude_patients: Collection[str] = (),
    where: str,
    may_be_empty: bool = False,
) -> Splits:
    """Split the cases of each fold into training and validation.

    Test cases are on neither side. Only :func:`uumamba.pipelines.jobs.list_jobs` calls this function.

    Args:
        manifest: the data set.
        folds: ``"0"`` to ``"4"``, or ``"all"``, which has no validation cases; several are a cross-validation.
        domains: a domain only for training or only for validation is used with all its cases. A domain for both is
            split by the fold. Without ``domains`` every domain is for both.
        exclude_patients: patients on neither side.
        where: name or path of the data set, for messages.
        may_be_empty: the reader reported failed cases, so sides and domains may lack them.

    Raises:
        UsageError: no case is left for training or for validation; a domain or excluded patient is unknown; a domain is
            the only one where several are needed; a patient is in a training and in a validation domain; or, in a
            cross-validation, every fold would validate on the same domain.

    Example:
        >>> cases = [Case(f"{d}{n}", f"{d}{n}", d, image=None, fold=n) for d in "AB" for n in range(2)]
        >>> split_cases(Manifest("toy", "MR", {}, tuple(cases)), ["0"], DomainsConfig(leave_out="B"), where="toy")
        {'0': (('A0', 'A1'), ('B0', 'B1'))}
    """
    cases = _exclude_patients(manifest, exclude_patients, where=where, may_be_empty=may_be_empty)
    known = {case.domain for case in cases}
    train, validate = (known, known) if domains is None else domains.split_domains(known)
    splits = {fold: _split_fold(cases, fold, train, validate) for fold in folds}
    if may_be_empty:
        return splits
    if domains is not None:
        _check_domains(manifest, domains, train, validate, where=where)
        expected = f"one fold, since every fold would validate on all cases of {_join(validate - train)}"
        fix = "choose --fold 0 or several --seeds"
        require(len(folds) == 1 or validate <= train, "--fold", got=EVERY_FOLD, expected=expected, fix=fix)
    for fold, (training, validation) in splits.items():
        require(
            training and (fold == ALL_CASES or validation),
            "--fold",
            got=f"{fold} with {len(training)} training and {len(validation)} validation cases of {where}",
            expected="at least one training and one validation case",
            fix="prepare more cases or choose another fold (all needs no validation cases)",
        )
        if domains is not None:
            _check_patients({case.case_id: case.patient_id for case in cases}, training, validation)
    return splits


def _exclude_patients(
    manifest: Manifest, patients: Collection[str], *, where: str, may_be_empty: bool
) -> tuple[Case, ...]:
    """Select the training cases of all other patients."""
    cases = tuple(manifest.select(split="training"))
    known = {case.patient_id for case in cases}
    for patient in patients:
        require(
            patient in known or may_be_empty,
            "dataset.exclude_patients",
            got=patient,
            expected=f"patients of {where} for training, such as {', '.join(sorted(known)[:3])}",
        )
    return tuple(case for case in cases if case.patient_id not in patients)


def _split_fold(
    cases: Iterable[Case], fold: str, train: set[str], validate: set[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    training, validation = [], []
    for case in cases:
        is_held_out = case.domain not in train or (fold != ALL_CASES and case.fold == int(fold))
        if fold != ALL_CASES and case.domain in validate and is_held_out:
            validation.append(case.case_id)
        elif case.domain in train:
            training.append(case.case_id)
    return tuple(training), tuple(validation)


def _check_domains(
    manifest: Manifest, domains: DomainsConfig, train: set[str], validate: set[str], *, where: str
) -> None:
    known, unseen = ({case.domain for case in manifest.select(split=split)} for split in ("training", "test"))
    if unknown := domains.names() - known:
        tests = unknown & unseen
        fix = f"score the test cases of {_join(tests)} with `uumamba predict --split test`" if tests else ""
        raise UsageError("dataset.domains", got=_join(unknown), expected=f"domains of {where}: {_join(known)}", fix=fix)
    if train and validate:
        return
    empty, taken = ("validate", "train") if train else ("train", "validate")
    taken = taken if domains.leave_out is None else "leave_out"
    raise UsageError(
        f"dataset.domains.{taken}",
        got=f"{_join(known)} (all domains of {where})",
        expected=f"at least one domain left for {'validation' if train else 'training'}",
        fix="set dataset.domains=null" if len(known) == 1 else f"set dataset.domains.{empty}",
    )


def _check_patients(patients: Mapping[str, str], training: Iterable[str], validation: Iterable[str]) -> None:
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
