"""Tests of seeds by key and of the global random state."""

import itertools
import random

import numpy as np
import pytest
import torch

from uumamba.runtime.seeds import generator_for, key_to_seed, preserve_random_state, seed_everything


def test_ten_thousand_neighbouring_keys_give_ten_thousand_seeds() -> None:
    keys = list(itertools.product(range(10), range(10), range(100)))
    seeds = {key_to_seed(*key) for key in keys}
    assert seeds == {key_to_seed(*key) for key in keys}, "equal keys, equal seeds"
    assert len(seeds) == 10_000
    assert all(0 <= seed < 2**63 for seed in seeds)
    joined = {key_to_seed(*key) for key in ((1, 12), (11, 2), (112,), ("1", 1, 2))}
    assert len(joined) == 4, "parts of a key are separated"


def test_draws_of_neighbouring_keys_are_uniform_and_uncorrelated() -> None:
    first = torch.stack([torch.rand(1, generator=generator_for(0, index)) for index in range(4000)]).squeeze()
    # A uniform variable's mean has standard error 1 / sqrt(12 n); five of them are allowed.
    assert abs(first.mean() - 0.5) < 5 / (12 * 4000) ** 0.5
    assert abs(torch.corrcoef(torch.stack([first[:-1], first[1:]]))[0, 1]) < 5 / 4000**0.5


def test_draws_inside_the_block_change_no_later_draw_even_after_an_error() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002 the global one

    seed_everything(3)
    expected = draws()
    seed_everything(3)
    with pytest.raises(RuntimeError, match="midway"), preserve_random_state():
        draws()
        raise RuntimeError("midway")
    assert draws() == expected
