"""Tests of the benchmark of optimizer steps."""

from collections import Counter

import pytest
import torch
from torch import nn

from benchmarks import optim_step
from benchmarks.optim_step import LIMIT, OURS, PEER, PER_TENSOR, Passes, PerTensorSAM, count_passes
from uumamba.optim import MESA, SAM


def test_the_per_tensor_step_uses_perturbed_gradients_and_restores_the_weights() -> None:
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    seen = []

    def closure() -> None:
        seen.append(weight.detach().clone())
        weight.grad = weight.detach().clone()

    closure()
    PerTensorSAM([weight], rho=0.5).step(closure)
    assert torch.allclose(seen[1], torch.tensor([3.3, 4.4]))  # 0.5 along (3, 4) / 5
    assert weight.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("peers", [[], [PEER]])
def test_each_implementation_has_a_step_and_its_perturbation(peers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if peers:
        pytest.importorskip("pytorch_optimizer")
    else:
        monkeypatch.setattr(optim_step, "find_spec", lambda name: None)
    rows = list(optim_step.measure_perturbation("few", [(2,)] * 3, rounds=3))
    ways = (OURS, PER_TENSOR, *peers, LIMIT)
    assert {row["name"] for row in rows} == {f"{part}, {way}" for part in ("step", "climb + restore") for way in ways}
    assert rows[0]["ratio"] == 1.0


def test_passes_include_the_teacher_s_and_are_weighted_by_their_time() -> None:
    net = nn.Linear(2, 3)
    counts = count_passes(net)
    objective = MESA(nn.CrossEntropyLoss(), net)
    batch = {"image": torch.eye(2), "label": torch.tensor([0, 2])}
    optimizer = SAM(net.parameters(), lambda params: torch.optim.SGD(params, lr=0.1), net=net)
    optimizer.step(lambda: objective(net, batch))
    assert counts == Counter(forward=2, backward=2, no_grad=2)
    # two forwards of 1, two backwards of 2 and two forwards without graph of 0.75, in units of 3
    assert Passes(forward=1.0, no_grad=0.75, backward=2.0).convert(counts) == pytest.approx(2.5)


def test_every_member_makes_the_claimed_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def build_small() -> nn.Module:
        return nn.Sequential(nn.InstanceNorm2d(1, affine=True), nn.Conv2d(1, 4, 3, padding=1))

    monkeypatch.setattr(optim_step, "build_umamba", build_small)
    rows = optim_step.measure_passes(1, 8, rounds=1)
    passes = {row["name"].removeprefix("step, "): row["passes"] for row in rows}
    exact = dict.fromkeys(("SAM", "ASAM", "GSAM", "FriendlySAM", "SAGM", "OBF", "TRAM, fisher"), 2.0)
    exact |= {"base": 1.0, "LookSAM(5)": 1.2, "MSAM": 1.0, "StaleSAM": 1.0}
    assert {name: passes[name] for name in exact} == pytest.approx(exact)
    assert 1.0 < passes["MESA"] < 2.0 < passes["TRAM, previous"] < 3.0
