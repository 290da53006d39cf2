"""Tests of nested state as flat tensors and JSON."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uumamba.runtime.tree import flatten, join_keys, unflatten

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
KEYS = st.text() | st.integers(0, 9)
TREES = st.recursive(
    LEAVES,
    lambda part: (
        st.lists(part, max_size=3) | st.lists(part, max_size=3).map(tuple) | st.dictionaries(KEYS, part, max_size=3)
    ),
)


@given(TREES)
def test_any_tree_of_plain_values_comes_back_through_json(tree: Any) -> None:
    tensors, rest = flatten(tree)
    assert tensors == {}
    assert unflatten(tensors, json.loads(json.dumps(rest))) == tree


@pytest.mark.parametrize(
    ("tree", "key", "got"),
    [
        ({"config": [{1, 2}]}, "state/config/0", "set"),
        ({0: torch.ones(1), "0": torch.ones(1)}, "state/0", "two tensors"),
    ],
)
def test_a_value_that_cannot_be_stored_is_refused_with_its_path(tree: Any, key: str, got: str, refused: Any) -> None:
    with refused(key, got=got):
        flatten(tree)


def test_an_empty_dictionary_is_a_leaf_and_a_bare_value_has_no_key() -> None:
    assert join_keys({"a": {"b": {}, "c": [1]}}, separator="/") == {"a/b": {}, "a/c": [1]}
    assert join_keys(3) == {"": 3}
