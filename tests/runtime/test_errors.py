"""Tests of the error classes and guards."""

import pickle
from typing import Any

import pytest

from uumamba.runtime.errors import CaseError, InputError, UsageError, require, require_case

ERRORS = [
    UsageError("rho", got=-1, expected="a number of at least 0"),
    CaseError("patient001", "label", got=(7, "value"), expected="0-3", fix="correct the label"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_a_value_error_and_keeps_its_parts_when_pickled(error: InputError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, ValueError)
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
    assert (again.exit_code, again.got) == (error.exit_code, error.got)


def test_guards_raise_only_if_the_condition_is_false(refused: Any) -> None:
    require(True, "rho", got=1, expected="a number")
    require_case([0], "a", "label", got=1, expected="a number", fix="correct it")
    with refused("rho", got=""):
        require("", "rho", got="", expected="a name")
    with refused("label", got=1, case_id="a"):
        require_case(None, "a", "label", got=1, expected="a number", fix="correct it")


def test_a_section_is_prefixed_to_a_key_once() -> None:
    assert ERRORS[0].within("optim").within("optim").key == "optim.rho"
    assert UsageError("", got=1, expected="a range").within("augment.scale").key == "augment.scale"
