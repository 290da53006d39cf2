"""Cross-validation folds of patients, stratified by group."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from uumamba.data.case import Case
from uumamba.runtime.errors import require
from uumamba.runtime.options import AtLeastTwo, check_options
from uumamba.runtime.seeds import key_to_seed

MOST_FOLDS = 5


@check_options
def assign_folds(groups: Mapping[str, str], folds: AtLeastTwo = 5, *, seed: int = 0) -> dict[str, int]:
    """Assign each patient a validation fold, stratified by group.

    Folds are numbered from 0 to ``folds - 1``. Patients are sorted by group, then by a hash of ``(seed, patient_id)``,
    and dealt to the folds in turn. The sizes of two folds therefore differ by at most one patient, in each group and
    in total. The order of the input does not matter: equal input gives equal folds on every machine.

    Args:
        groups: diagnosis, or another group, of each patient id.
        folds: number of folds; with fewer patients than folds, some folds stay empty.
        seed: another seed gives another split.

    Raises:
        UsageError: ``folds`` is smaller than 2.

    Example:
        >>> split = assign_folds({"a": "DCM", "b": "DCM", "c": "NOR", "d": "NOR"}, folds=2)
        >>> sorted(split), {split["a"], split["b"]}, {split["c"], split["d"]}
        (['a', 'b', 'c', 'd'], {0, 1}, {0, 1})
    """
    shuffled = sorted(groups, key=lambda patient: (groups[patient], key_to_seed(seed, "fold", patient), patient))
    return dict(sorted((patient, turn % folds) for turn, patient in enumerate(shuffled)))


def complete_folds(cases: Sequence[Case], *, folds: int = MOST_FOLDS) -> list[Case]:
    """Check the folds of training cases, or assign them.

    Folds are assigned if no training case has one. Otherwise a case without a fold is in the training set of every
    fold. Assigned folds are grouped by patient and stratified by group, or by domain where a patient has no group;
    there are at most as many as patients.

    Args:
        cases: the cases of a data set.
        folds: the largest number of folds.

    Raises:
        UsageError: a fold is not from 0 to ``folds - 1``, or cases of one patient are in two folds.

    Example:
        >>> from pathlib import Path
        >>> cases = [Case(f"p{n}_{visit}", f"p{n}", "x", Path("image")) for n in range(3) for visit in "ab"]
        >>> [case.fold for case in complete_folds(cases)]
        [1, 1, 2, 2, 0, 0]
    """
    training = sorted((case for case in cases if case.split == "training"), key=lambda case: case.case_id)
    if any(case.fold is not None for case in training):
        _check_folds(training, folds)
        return list(cases)
    groups: dict[str, str] = {}
    for case in training:
        groups.setdefault(case.patient_id, case.group or case.domain)
    found = assign_folds(groups, min(folds, len(groups))) if len(groups) > 1 else dict.fromkeys(groups, 0)
    return [replace(case, fold=found[case.patient_id]) if case.split == "training" else case for case in cases]


def _check_folds(training: Sequence[Case], folds: int) -> None:
    found: dict[str, int | None] = {}
    for case in training:
        valid = f"a fold from 0 to {folds - 1}"
        is_valid = case.fold is None or 0 <= case.fold < folds
        require(is_valid, f"{case.case_id}: fold", got=case.fold, expected=valid, fix="number the folds from 0 on")
        fold = found.setdefault(case.patient_id, case.fold)
        got = f"{' and '.join(sorted({str(fold), str(case.fold)}))} for patient {case.patient_id}"
        fix = "give all cases of a patient one fold"
        require(fold == case.fold, f"{case.case_id}: fold", got=got, expected="one fold", fix=fix)
