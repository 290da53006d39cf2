"""Cross-validation folds of patients, stratified by group."""

from collections.abc import Mapping

from uumamba.runtime.options import AtLeastTwo, check_options
from uumamba.runtime.seeds import key_to_seed


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
