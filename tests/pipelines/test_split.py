"""Dividing a data set by fold and by domain: nobody on both sides, and one sentence for what cannot be meant."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from uumamba.config.data import DomainsConfig
from uumamba.data.case import Case, Manifest
from uumamba.pipelines.split import check_split, split_cases, unused_cases
from uumamba.runtime.errors import UsageError

FOLDS = ("0", "1", "2", "3", "4")


def manifest_of(domains: str, *, test: str = "", patients: int = 5) -> Manifest:
    """Of each domain a patient a fold, each with two cases; of each test domain one patient."""
    cases = [
        Case(f"{domain}{fold}_{phase}", f"{domain}{fold}", domain, Path("x"), fold=fold, phase=phase)
        for domain, fold, phase in product(domains, range(patients), ("ED", "ES"))
    ]
    cases += [Case(f"{domain}9_ED", f"{domain}9", domain, Path("x"), split="test") for domain in test]
    return Manifest("M&Ms", "cine MRI", {"LV": 1}, tuple(cases))


def domains_of(manifest: Manifest, case_ids: Sequence[str]) -> dict[str, int]:
    found = [manifest.by_id(case_id).domain for case_id in case_ids]
    return {domain: found.count(domain) for domain in sorted(set(found))}


def divided(given: dict[str, Any], fold: str = "0") -> tuple[dict[str, int], dict[str, int]]:
    manifest = manifest_of("ABC", test="ABCD")
    domains = DomainsConfig(**given)
    check_split(manifest, [fold], domains, where="M&Ms")
    training, validation = split_cases(manifest, fold, domains)
    return domains_of(manifest, training), domains_of(manifest, validation)


def test_without_domains_every_training_case_stands_on_one_side_by_its_fold() -> None:
    manifest = manifest_of("AB", test="AB")
    for fold in FOLDS:
        training, validation = split_cases(manifest, fold)
        assert validation == [case.case_id for case in manifest.select(split="training", fold=int(fold))]
        assert training == [case.case_id for case in manifest.select(split="training", without_fold=int(fold))]
    assert split_cases(manifest, "all") == ([case.case_id for case in manifest.select(split="training")], [])


def test_a_domain_left_out_is_validated_on_with_all_its_cases_and_the_others_train_with_all_of_theirs() -> None:
    assert divided({"leave_out": "B"}) == ({"A": 10, "C": 10}, {"B": 10})
    assert divided({"leave_out": "B"}, fold="3") == ({"A": 10, "C": 10}, {"B": 10})


def test_one_side_named_leaves_the_other_domains_to_the_other() -> None:
    assert divided({"train": ["A"]}) == ({"A": 10}, {"B": 10, "C": 10})
    assert divided({"validate": ["A"]}) == ({"B": 10, "C": 10}, {"A": 10})


def test_both_sides_named_leave_the_rest_out() -> None:
    assert divided({"train": ["A"], "validate": ["C"]}) == ({"A": 10}, {"C": 10})


@pytest.mark.parametrize(
    ("given", "fold", "unused"),
    [
        ({"train": ["A"], "validate": ["A"]}, "0", {"B": 10, "C": 10}),
        ({"train": ["A"], "validate": ["C"]}, "3", {"B": 10}),
        ({"train": ["A"]}, "0", {}),
        ({"leave_out": "B"}, "0", {}),
        ({"leave_out": "B"}, "all", {"B": 10}),
    ],
)
def test_training_cases_on_neither_side_are_counted_by_domain(
    given: dict[str, Any], fold: str, unused: dict[str, int]
) -> None:
    assert unused_cases(manifest_of("ABC", test="ABCD"), fold, DomainsConfig(**given)) == unused
    assert unused_cases(manifest_of("ABC", test="ABCD"), fold, None) == {}


def test_a_domain_on_both_sides_is_divided_by_the_fold() -> None:
    assert divided({"train": ["A", "B"], "validate": ["B", "C"]}, fold="2") == ({"A": 10, "B": 8}, {"B": 2, "C": 10})


def test_all_domains_on_both_sides_are_the_division_by_fold_alone() -> None:
    manifest = manifest_of("AB")
    both = DomainsConfig(train=("A", "B"), validate=("A", "B"))
    for fold in (*FOLDS, "all"):
        assert split_cases(manifest, fold, both) == split_cases(manifest, fold)


def test_fold_all_trains_on_every_case_of_the_domains_to_train_on() -> None:
    assert divided({"leave_out": "B"}, fold="all") == ({"A": 10, "C": 10}, {})


@pytest.mark.parametrize("given", [{"leave_out": "B"}, {"train": ["A", "B"], "validate": ["B"]}, {"validate": ["C"]}])
def test_no_patient_and_no_test_case_stands_on_both_sides(given: dict[str, Any]) -> None:
    manifest = manifest_of("ABC", test="ABCD")
    for fold in FOLDS:
        sides = split_cases(manifest, fold, DomainsConfig(**given))
        training, validation = ({manifest.by_id(case_id).patient_id for case_id in side} for side in sides)
        assert training
        assert validation
        assert training.isdisjoint(validation)
        assert all(manifest.by_id(case_id).split == "training" for side in sides for case_id in side)


@pytest.mark.parametrize(
    ("there", "given", "sentence"),
    [
        (
            "AB",
            {"leave_out": "E"},
            r"^dataset\.domains names E, but the training cases of M&Ms are of A, B; name some of them\.$",
        ),
        (
            "AB",
            {"train": ["A"], "validate": ["C", "D", "b"]},
            r"names C, D, b, but the training cases of M&Ms are of A, B; name some of them, and score the test cases "
            r"of C, D with `uumamba predict --split test`\.$",
        ),
        (
            "A",
            {"leave_out": "A"},
            r"^dataset\.domains divides several domains, but the training cases of M&Ms are all of A; leave it null, "
            r"or name that domain as train and as validate\.$",
        ),
        ("A", {"train": ["A"]}, "divides several domains, but the training cases of M&Ms are all of A; leave it null"),
        (
            "AB",
            {"train": ["A", "B"]},
            r"^dataset\.domains names every domain of M&Ms, A, B, so none is left to validate on; name those to "
            r"validate on, too\.$",
        ),
        ("AB", {"validate": ["B", "A"]}, "so none is left to train on; name those to train on, too"),
    ],
)
def test_domains_that_cannot_be_divided_are_refused_with_those_there(
    there: str, given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        check_split(manifest_of(there, test="ABCD"), ["0"], DomainsConfig(**given), where="M&Ms")


def test_one_domain_may_be_named_on_both_sides() -> None:
    check_split(manifest_of("A"), FOLDS, DomainsConfig(train=("A",), validate=("A",)), where="M&Ms")


def test_a_patient_in_two_domains_is_never_trained_and_validated_on() -> None:
    manifest = manifest_of("AB")
    twice = Case("A0_again", "A0", "B", Path("x"), fold=0)
    manifest = Manifest("M&Ms", "cine MRI", {"LV": 1}, (*manifest.cases, twice))
    with pytest.raises(UsageError, match=r"The patient A0 has cases in a domain to train on .* \(1 such patients\)"):
        check_split(manifest, ["0"], DomainsConfig(leave_out="B"), where="M&Ms")
    check_split(manifest, FOLDS, DomainsConfig(train=("A", "B"), validate=("A", "B")), where="M&Ms")


def test_a_cross_validation_whose_folds_would_score_the_same_cases_is_refused() -> None:
    for given in ({"leave_out": "B"}, {"train": ("A",), "validate": ("A", "B")}):
        with pytest.raises(
            UsageError, match=r"No fold trains on the domain B, so each of the five .* such as --fold 0"
        ):
            check_split(manifest_of("AB"), FOLDS, DomainsConfig.model_validate(given), where="M&Ms")
        check_split(manifest_of("AB"), ["1"], DomainsConfig.model_validate(given), where="M&Ms")


def test_a_fold_without_cases_is_refused_as_without_domains() -> None:
    both = DomainsConfig(train=("A", "B"), validate=("A", "B"))
    for domains in (None, both):
        with pytest.raises(UsageError, match="Fold 4 of M&Ms has 4 cases to train on and 0 to validate on; prepare"):
            check_split(manifest_of("AB", patients=1), ["4"], domains, where="M&Ms")
