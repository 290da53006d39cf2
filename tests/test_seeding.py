"""Seeds depend on their key alone."""

import itertools

import torch

from uumamba.seeding import generator_for, key_to_seed


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
