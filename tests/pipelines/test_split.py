"""Train/validation splits by fold and by domain."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.run_files import Refused
from uumamba.config.case_split import FOLDS, split_cases
from uumamba.config.data import DomainsConfig
from uumamba.data.case import Case, Manifest

BOTH = DomainsConfig(train=("A", "B"), validate=("A", "B"))


def manifest_of(domains: str, *, test: str = "", patients: int = 5) -> Manifest:
    """Make a patient per fold of each domain and per test domain."""
    cases = [
        Case(f"{domain}{fold}_{phase}", f"{domain}{fold}", domain, Path("x"), fold=fold, phase=phase)
        for domain, fold, phase in product(domains, range(patients), ("ED", "ES"))
    ]
    cases += [Case(f"{domain}9_ED", f"{domain}9", domain, Path("x"), split="test") for domain in test]
    return Manifest("M&Ms", "cine MRI", {"LV": 1}, tuple(cases))


def split_one(
    manifest: Manifest, fold: str, domains: DomainsConfig | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return split_cases(manifest, [fold], domains, where="M&Ms")[fold]


def domains_of(manifest: Manifest, case_ids: Sequence[str]) -> dict[str, int]:
    found = [manifest.by_id(case_id).domain for case_id in case_ids]
    return {domain: found.count(domain) for domain in sorted(set(found))}


def test_without_domains_training_cases_are_split_by_fold() -> None:
    manifest = manifest_of("AB", test="AB")
    splits = split_cases(manifest, FOLDS, where="M&Ms")
    for fold, (training, validation) in splits.items():
        assert list(validation) == [case.case_id for case in manifest.select(split="training", fold=int(fold))]
        assert list(training) == [case.case_id for case in manifest.select(split="training", without_fold=int(fold))]
    assert split_one(manifest, "all") == (tuple(case.case_id for case in manifest.select(split="training")), ())
    assert split_cases(manifest, FOLDS, BOTH, where="M&Ms") == splits, "all domains for both"
    assert split_one(manifest, "all", BOTH) == split_one(manifest, "all")


@pytest.mark.parametrize(
    ("given", "fold", "training", "validation", "unused"),
    [
        ({"leave_out": "B"}, "0", {"A": 10, "C": 10}, {"B": 10}, {}),
        ({"leave_out": "B"}, "3", {"A": 10, "C": 10}, {"B": 10}, {}),
        ({"leave_out": "B"}, "all", {"A": 10, "C": 10}, {}, {"B": 10}),
        ({"train": ["A"]}, "0", {"A": 10}, {"B": 10, "C": 10}, {}),
        ({"validate": ["A"]}, "0", {"B": 10, "C": 10}, {"A": 10}, {}),
        ({"train": ["A"], "validate": ["C"]}, "3", {"A": 10}, {"C": 10}, {"B": 10}),
        ({"train": ["A"], "validate": ["A"]}, "0", {"A": 8}, {"A": 2}, {"B": 10, "C": 10}),
        ({"train": ["A", "B"], "validate": ["B", "C"]}, "2", {"A": 10, "B": 8}, {"B": 2, "C": 10}, {}),
    ],
)
def test_domains_train_or_validate_with_all_cases_and_those_for_both_are_split_by_fold(
    given: dict[str, Any], fold: str, training: dict[str, int], validation: dict[str, int], unused: dict[str, int]
) -> None:
    manifest, domains = manifest_of("ABC", test="ABCD"), DomainsConfig(**given)
    sides = split_one(manifest, fold, domains)
    assert tuple(domains_of(manifest, side) for side in sides) == (training, validation)
    patients = [{manifest.by_id(case_id).patient_id for case_id in side} for side in sides]
    assert patients[0].isdisjoint(patients[1])
    assert all(manifest.by_id(case_id).split == "training" for side in sides for case_id in side)
    left = {case.case_id for case in manifest.select(split="training")}.difference(*sides)
    assert domains_of(manifest, sorted(left)) == unused


@pytest.mark.parametrize(
    ("there", "given", "key", "got"),
    [
        ("AB", {"leave_out": "E"}, "dataset.domains", "E"),
        ("AB", {"train": ["A"], "validate": ["C", "D", "b"]}, "dataset.domains", "C, D, b"),
        ("A", {"leave_out": "A"}, "dataset.domains.leave_out", "A (all domains of M&Ms)"),
        ("A", {"train": ["A"]}, "dataset.domains.train", "A (all domains of M&Ms)"),
        ("AB", {"train": ["A", "B"]}, "dataset.domains.train", "A, B (all domains of M&Ms)"),
        ("AB", {"validate": ["B", "A"]}, "dataset.domains.validate", "A, B (all domains of M&Ms)"),
    ],
)
def test_unknown_domains_and_a_split_without_one_side_are_refused(
    there: str, given: dict[str, Any], key: str, got: str, refused: Refused
) -> None:
    with refused(key, got=got) as error:
        split_one(manifest_of(there, test="ABCD"), "0", DomainsConfig(**given))
    assert ("test cases of C, D" in error.value.fix) is (got == "C, D, b")


def test_a_patient_in_two_domains_is_never_trained_and_validated_on(refused: Refused) -> None:
    twice = Case("A0_again", "A0", "B", Path("x"), fold=0)
    manifest = Manifest("M&Ms", "cine MRI", {"LV": 1}, (*manifest_of("AB").cases, twice))
    with refused("dataset.domains", got="training and validation cases of A0"):
        split_one(manifest, "0", DomainsConfig(leave_out="B"))
    split_cases(manifest, FOLDS, BOTH, where="M&Ms")


@pytest.mark.parametrize("given", [{"leave_out": "B"}, {"train": ("A",), "validate": ("A", "B")}])
def test_a_cross_validation_with_the_same_validation_cases_in_every_fold_is_refused(
    given: dict[str, Any], refused: Refused
) -> None:
    domains = DomainsConfig.model_validate(given)
    with refused("--fold", got="cv"):
        split_cases(manifest_of("AB"), FOLDS, domains, where="M&Ms")
    split_one(manifest_of("AB"), "1", domains)


@pytest.mark.parametrize("domains", [None, BOTH])
def test_a_fold_without_cases_is_refused(domains: DomainsConfig | None, refused: Refused) -> None:
    with refused("--fold", got="4 with 4 training and 0 validation cases of M&Ms"):
        split_one(manifest_of("AB", patients=1), "4", domains)
    sides = split_cases(manifest_of("AB", patients=1), ["4"], domains, where="M&Ms", may_be_empty=True)["4"]
    assert len(sides[0]) == 4, "failed cases are reported when the others are prepared"
