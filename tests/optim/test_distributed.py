"""Two gloo ranks equal one process on both ranks' batches."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.optim.ranks import SCENARIOS

pytestmark = pytest.mark.slow
RANKS = range(2)
EQUAL = [name for name, (_, accumulation, _, _) in SCENARIOS.items() if accumulation]


@pytest.fixture(scope="module")
def stored(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the weights of both ranks and of one process."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(repository / "tests" / "optim" / "ranks.py"), str(folder)]
    environment = {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=240)
    assert done.returncode == 0, done.stderr
    return folder


def load(stored: Path, name: str) -> list[dict[str, Tensor]]:
    return [load_file(stored / f"{name}-{rank}.safetensors") for rank in RANKS]


def weights_of(content: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in content.items() if name.endswith(("weight", "bias"))}


@pytest.mark.parametrize("views", ["", ", views"])
@pytest.mark.parametrize("name", EQUAL)
def test_two_ranks_equal_one_process(stored: Path, name: str, views: str) -> None:
    both = load_file(stored / f"{name}-both.safetensors")
    for content in load(stored, name + views):
        torch.testing.assert_close(weights_of(content), weights_of(both), rtol=1e-8, atol=1e-10)
        assert 2 * content["1.num_batches_tracked"] == both["1.num_batches_tracked"], "each batch counts once"


@pytest.mark.parametrize("views", ["", ", views"])
@pytest.mark.parametrize(("name", "passes", "noisy"), [("TRAM noise", 3, 1), ("TRAM fisher", 2, 0)])
def test_each_rank_has_noise_of_its_own_and_the_same_weights(
    stored: Path, name: str, views: str, passes: int, noisy: int
) -> None:
    first, second = load(stored, name + views)
    assert all(torch.equal(value, second[key]) for key, value in weights_of(first).items())
    noises = [
        (content["inputs"][step * passes + noisy] - content["inputs"][step * passes + passes - 1]).flatten()
        for content in (first, second)
        for step in range(4)
    ]
    assert torch.corrcoef(torch.stack(noises)).triu(1).abs().max() < 0.8, "20 numbers each, none drawn twice"
    assert min(noise.abs().max() for noise in noises) > 0.05


def test_one_rank_that_is_not_finite_makes_both_skip(stored: Path) -> None:
    for content in load(stored, "broken"):
        before = {name.removeprefix("before."): value for name, value in content.items() if name.startswith("before")}
        assert all(torch.equal(content[name], value) for name, value in before.items())
        assert content["skipped"] == 1
        assert content["scale"] == 8, "both scalers back off from 16"


def test_saf_ranks_that_exchange_samples_have_the_table_and_weights_of_one_process(stored: Path) -> None:
    both, ranks = load_file(stored / "SAF-both.safetensors"), load(stored, "SAF")
    torch.testing.assert_close(torch.stack([rank["losses"] for rank in ranks]).mean(0), both["losses"])
    for content in ranks:
        torch.testing.assert_close(weights_of(content), weights_of(both))
        assert torch.equal(content["marks"], both["marks"])
        torch.testing.assert_close(content["logits"], both["logits"], rtol=2e-3, atol=1e-5)  # a neighbour in float16
    assert (both["marks"] > 0).sum() > 11
    assert (stored / "saf.rank0.npy").read_bytes() == (stored / "saf.rank1.npy").read_bytes()


def test_saf_ranks_with_batches_of_different_sizes_gather_all(stored: Path) -> None:
    for content in load(stored, "uneven"):
        known = content["marks"].sum(1)
        assert known.tolist() == [1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
        assert content["logits"][:5, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_closures_that_ran_backward_and_a_saf_made_before_the_ranks_met_are_refused(stored: Path) -> None:
    for rank in RANKS:
        assert (stored / f"refused-{rank}.txt").read_text(encoding="utf-8") == "closure ranks"
