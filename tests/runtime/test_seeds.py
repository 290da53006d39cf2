"""Seeds depend on their key alone."""

import itertools
import random

import numpy as np
import pytest
import torch

from uumamba.runtime.seeds import draws_put_back, generator_for, key_to_seed, seed_everything


def test_equal_keys_draw_equal_numbers() -> None:
    assert torch.equal(
        torch.rand(4, generator=generator_for(0, "x", 3)), torch.rand(4, generator=generator_for(0, "x", 3))
    )


def test_ten_thousand_neighbouring_keys_give_ten_thousand_seeds() -> None:
    seeds = {
        key_to_seed(seed, epoch, index) for seed, epoch, index in itertools.product(range(10), range(10), range(100))
    }
    assert len(seeds) == 10_000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_draws_of_neighbouring_keys_are_uniform_and_uncorrelated() -> None:
    first = torch.stack([torch.rand(1, generator=generator_for(0, index)) for index in range(4000)]).squeeze()
    # A uniform variable's mean has standard error 1 / sqrt(12 n); five of them are allowed.
    assert abs(first.mean() - 0.5) < 5 / (12 * 4000) ** 0.5
    lagged = torch.corrcoef(torch.stack([first[:-1], first[1:]]))[0, 1]
    assert abs(lagged) < 5 / 4000**0.5


def test_what_is_drawn_aside_changes_no_global_draw_also_where_it_fails() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002 the global one

    seed_everything(3)
    expected = draws()
    seed_everything(3)
    with pytest.raises(RuntimeError, match="on the way"), draws_put_back():
        draws()
        raise RuntimeError("on the way")
    assert draws() == expected
