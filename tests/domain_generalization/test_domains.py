import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from uumamba.domain_generalization import domain_batches, held_out_domains, require_domains, split_domain
from uumamba.runtime.errors import UsageError

PRINT_DRAWS = """
import json, torch
from torch.utils.data import TensorDataset
from uumamba.domain_generalization import domain_batches, split_domain
data = TensorDataset(torch.arange(50), torch.arange(50))
inside = {domain: split_domain(data, domain=domain, trial_seed=4)[0] for domain in (1, 0)}
drawn = [x.tolist() for x, _ in next(domain_batches(inside, batch_size=6, trial_seed=4))]
print(json.dumps([inside[1].indices, inside[0].indices, *drawn]))
"""


def numbered(samples: int) -> TensorDataset:
    return TensorDataset(torch.arange(samples), torch.arange(samples))


@pytest.mark.parametrize(("samples", "held"), [(10, 2), (14, 2), (15, 3), (1000, 200)])
def test_every_sample_is_on_one_side_of_the_split_and_a_fifth_is_held_out(samples: int, held: int) -> None:
    inside, outside = split_domain(numbered(samples), domain=3)
    assert sorted([*inside.indices, *outside.indices]) == list(range(samples))
    assert len(outside) == held


def test_splits_and_batches_are_the_same_in_every_process(repository: Path) -> None:
    torch.manual_seed(5)
    inside = {domain: split_domain(numbered(50), domain=domain, trial_seed=4)[0] for domain in (0, 1)}
    first, second = (x.tolist() for x, _ in next(domain_batches(inside, batch_size=6, trial_seed=4)))
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PRINT_DRAWS]  # where the other domain is split first
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [inside[1].indices, inside[0].indices, second, first]


def test_domains_and_trials_split_differently_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    splits = {
        (domain, trial): tuple(split_domain(numbered(40), domain=domain, trial_seed=trial)[1].indices)
        for domain in range(3)
        for trial in range(3)
    }
    assert len(set(splits.values())) == 9
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("holdout", [0.0, 1.0, -0.2, float("nan")])
def test_a_holdout_out_of_range_is_refused(holdout: float) -> None:
    with pytest.raises(UsageError, match="share above 0 and below 1"):
        split_domain(numbered(10), domain=0, holdout=holdout)


def test_a_domain_too_small_to_split_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Domain 7 has 4 samples, of which a holdout of 0.2 takes 0"):
        split_domain(numbered(4), domain=7)


@pytest.mark.parametrize("domains", [2, 5])
def test_each_domain_is_left_out_once(domains: int) -> None:
    assert held_out_domains(domains) == [(domain,) for domain in range(domains)]


def test_cross_validation_leaves_every_pair_out_too() -> None:
    runs = held_out_domains(5, cross_validation=True)
    assert len(runs) == len(set(runs)) == 5 + 5 * 4 // 2
    for test in range(5):
        assert sum(test in run for run in runs) == 5  # the runs that one test domain needs


def test_too_few_domains_are_refused_with_the_sentence() -> None:
    with pytest.raises(UsageError, match="Leaving one domain out needs at least 2 domains, got 1; add data of other"):
        held_out_domains(1)
    with pytest.raises(UsageError, match="cross-validation needs at least 3 domains, got 2"):
        held_out_domains(2, cross_validation=True)
    require_domains(2, "Comparing")
