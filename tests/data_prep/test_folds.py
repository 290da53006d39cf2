from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from data_prep import assign_folds

patients = st.dictionaries(
    st.text("abc019", min_size=1, max_size=6), st.sampled_from(["DCM", "HCM", "NOR"]), max_size=40
)


@given(patients, st.integers(2, 6))
def test_folds_differ_by_at_most_one_patient_in_all_and_in_each_group(groups, folds):
    split = assign_folds(groups, folds)

    assert set(split) == set(groups)
    for group in {None, *groups.values()}:
        members = [split[patient] for patient in groups if group in (None, groups[patient])]
        counts = [Counter(members)[fold] for fold in range(folds)]
        assert max(counts) - min(counts) <= 1


@given(patients, st.randoms(use_true_random=False))
def test_the_order_in_which_patients_are_found_does_not_matter(groups, random):
    shuffled = list(groups.items())
    random.shuffle(shuffled)

    assert list(assign_folds(dict(shuffled)).items()) == list(assign_folds(groups).items())


def test_folds_are_shuffled_and_another_seed_gives_another_split():
    groups = {f"patient{number:03d}": "NOR" for number in range(40)}
    split = assign_folds(groups, seed=0)
    first = sorted(patient for patient, fold in split.items() if fold == 0)

    assert split != assign_folds(groups, seed=1)
    assert first not in (sorted(groups)[::5], sorted(groups)[:8])


def test_one_fold_is_refused(refused):
    with refused("folds", got=1):
        assign_folds({"a": "NOR"}, folds=1)
