"""Which cases are trained on and which are validated on: by fold, and by domain where a configuration says so."""

from collections import Counter
from collections.abc import Iterable, Sequence

from uumamba.config.data import DomainsConfig
from uumamba.data.case import Case, Manifest
from uumamba.pipelines.run_layout import ALL_CASES
from uumamba.runtime.errors import UsageError


def split_cases(manifest: Manifest, fold: str, domains: DomainsConfig | None = None) -> tuple[list[str], list[str]]:
    """Case ids to train on and to validate on; test cases are neither.

    Args:
        manifest: the data set.
        fold: ``"0"`` to ``"4"``, or ``"all"``, which validates on nothing.
        domains: of a domain on one side, all cases stand there; one on both sides, as every domain without this, is
            divided by the fold.

    Example:
        >>> cases = [Case(f"{d}{n}", f"{d}{n}", d, image=None, fold=n) for d in "AB" for n in range(2)]
        >>> split_cases(Manifest("toy", "MR", {}, tuple(cases)), "0", DomainsConfig(leave_out="B"))
        (['A0', 'A1'], ['B0', 'B1'])
    """
    cases = manifest.select(split="training")
    trained, validated = _sides(cases, domains)
    held_out = [
        case
        for case in cases
        if fold != ALL_CASES and case.domain in validated and (case.domain not in trained or case.fold == int(fold))
    ]
    validation = [case.case_id for case in held_out]
    return [case.case_id for case in cases if case.domain in trained and case.case_id not in validation], validation


def unused_cases(manifest: Manifest, fold: str, domains: DomainsConfig | None) -> dict[str, int]:
    """How many training cases of each domain are on neither side, which only ``domains`` makes of any.

    Example:
        >>> cases = [Case(f"{d}{n}", f"{d}{n}", d, image=None, fold=n) for d in "AB" for n in range(2)]
        >>> unused_cases(Manifest("toy", "MR", {}, tuple(cases)), "0", DomainsConfig(train=("A",), validate=("A",)))
        {'B': 2}
    """
    used = {case_id for side in split_cases(manifest, fold, domains) for case_id in side}
    unused = (case.domain for case in manifest.select(split="training") if case.case_id not in used)
    return dict(sorted(Counter(unused).items()))


def check_split(manifest: Manifest, folds: Sequence[str], domains: DomainsConfig | None, *, where: str) -> None:
    """Refuse a division of a data set that leaves a side without cases, or that says something else than it does.

    Args:
        manifest: the data set.
        folds: to train; several are a cross-validation.
        domains: of the configuration.
        where: what the data set is called in the refusal.

    Raises:
        UsageError: a side has no case; a domain is not there, or is the only one where several are needed; a patient
            stands on both sides; or, in a cross-validation, a domain would be validated on by every fold.
    """
    if domains is not None:
        _check_domains(manifest, domains, where=where)
        if len(folds) > 1:
            _check_cross_validation(manifest, domains)
    for fold in folds:
        training, validation = split_cases(manifest, fold, domains)
        if not training or (fold != ALL_CASES and not validation):
            raise UsageError(
                f"Fold {fold} of {where} has {len(training)} cases to train on and {len(validation)} to validate on; "
                "prepare more cases or choose another fold (`--fold all` needs no validation cases)."
            )
        if domains is not None:
            _check_patients(manifest, training, validation)


def _sides(cases: Iterable[Case], domains: DomainsConfig | None) -> tuple[set[str], set[str]]:
    known = {case.domain for case in cases}
    return (known, known) if domains is None else domains.sides(known)


def _check_domains(manifest: Manifest, domains: DomainsConfig, *, where: str) -> None:
    known = {case.domain for case in manifest.select(split="training")}
    if unknown := domains.named() - known:
        in_test = unknown & {case.domain for case in manifest.select(split="test")}
        cure = "name some of them"
        if in_test:
            cure += f", and score the test cases of {_listed(in_test)} with `uumamba predict --split test`"
        raise UsageError(
            f"dataset.domains names {_listed(unknown)}, but the training cases of {where} are of {_listed(known)}; "
            f"{cure}."
        )
    trained, validated = domains.sides(known)
    if trained and validated:
        return
    if len(known) == 1:
        raise UsageError(
            f"dataset.domains divides several domains, but the training cases of {where} are all of {_listed(known)}; "
            "leave it null, or name that domain as train and as validate."
        )
    what = "validate" if trained else "train"
    raise UsageError(
        f"dataset.domains names every domain of {where}, {_listed(known)}, so none is left to {what} on; name those to "
        f"{what} on, too."
    )


def _check_cross_validation(manifest: Manifest, domains: DomainsConfig) -> None:
    trained, validated = _sides(manifest.select(split="training"), domains)
    if alone := validated - trained:
        raise UsageError(
            f"No fold trains on the domain {_listed(alone)}, so each of the five would be validated on the same cases "
            "of it; choose one, such as --fold 0, or several seeds."
        )


def _check_patients(manifest: Manifest, training: Iterable[str], validation: Iterable[str]) -> None:
    patients = {case.case_id: case.patient_id for case in manifest.cases}
    both = {patients[name] for name in training} & {patients[name] for name in validation}
    if both:
        raise UsageError(
            f"The patient {min(both)} has cases in a domain to train on and in another to validate on "
            f"({len(both)} such patients); name both domains as train and as validate, which divides them by the fold."
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
