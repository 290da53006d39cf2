"""The step benchmark measures steps that are right, counts passes, and names a claim that does not hold."""

from collections import Counter

import pytest
import torch
from torch import nn

from benchmarks import optim_step
from benchmarks.optim_step import (
    LIMIT,
    OURS,
    PEER,
    PER_TENSOR,
    Passes,
    PerTensorSAM,
    broken_claims,
    climb_rows,
    count_passes,
    pass_rows,
)
from uumamba.optim import MESA, SAM


def test_the_per_tensor_step_leaves_the_weights_and_sees_the_climbed_ones() -> None:
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    seen = []

    def closure() -> None:
        seen.append(weight.detach().clone())
        weight.grad = weight.detach().clone()

    optimizer = PerTensorSAM([weight], rho=0.5)
    closure()
    optimizer.step(closure)
    assert torch.allclose(seen[1], torch.tensor([3.3, 4.4]))  # 0.5 along (3, 4) / 5
    assert weight.tolist() == [3.0, 4.0]


def test_each_way_has_a_whole_step_and_its_climb_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim_step, "find_spec", lambda name: None)
    rows = list(climb_rows("few", [(2,)] * 3, rounds=3))
    assert [row["name"] for row in rows] == [
        f"{part}, {way}" for part in ("step", "climb + restore") for way in (OURS, PER_TENSOR, LIMIT)
    ]
    assert rows[0]["ratio"] == 1.0


def test_the_peer_is_measured_where_it_is_installed() -> None:
    pytest.importorskip("pytorch_optimizer")
    names = {row["name"] for row in climb_rows("few", [(2,)] * 3, rounds=3)}
    assert f"climb + restore, {PEER}" in names


def test_passes_are_counted_with_the_teacher_s_and_weighed_by_their_time() -> None:
    net = nn.Linear(2, 3)
    counts = count_passes(net)
    objective = MESA(nn.CrossEntropyLoss(), net)
    batch = {"image": torch.eye(2), "label": torch.tensor([0, 2])}
    optimizer = SAM(net.parameters(), lambda params: torch.optim.SGD(params, lr=0.1), net=net)
    optimizer.step(lambda: objective(net, batch))
    assert counts == Counter(forward=2, backward=2, look=2)
    # two forwards of 1, two backwards of 2 and two looks of 0.75, in passes of 3
    assert Passes(forward=1.0, look=0.75, backward=2.0).units(counts) == pytest.approx(2.5)


def test_passes_of_members_are_those_that_they_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    def small() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.InstanceNorm2d(1, affine=True), nn.Conv2d(1, 4, 3, padding=1))

    monkeypatch.setattr(optim_step, "umamba", small)
    passes = {row["name"].removeprefix("step, "): row["passes"] for row in pass_rows(1, 8, rounds=1)}
    whole = {"base": 1.0, "SAM": 2.0, "ASAM": 2.0, "GSAM": 2.0, "FriendlySAM": 2.0, "SAGM": 2.0, "OBF": 2.0}
    whole |= {"LookSAM(5)": 1.2, "MSAM": 1.0, "StaleSAM": 1.0, "TRAM, fisher": 2.0}
    assert {name: passes[name] for name in whole} == pytest.approx(whole)
    assert 1.0 < passes["MESA"] < 2.0 < passes["TRAM, previous"] < 3.0


def test_a_claim_that_the_rows_do_not_show_is_named() -> None:
    rows = [
        {"name": f"climb + restore, {PER_TENSOR}", "shape": "few", "passes": None, "ratio": 2.5},
        {"name": f"step, {PER_TENSOR}", "shape": "few", "passes": None, "ratio": 1.5},
        {"name": f"climb + restore, {PEER}", "shape": "few", "passes": None, "ratio": 1.2},
        {"name": "step, MESA", "shape": "few", "passes": 1.4, "ratio": 1.5},
    ]
    assert list(broken_claims(rows)) == []
    slow, slower, more = broken_claims([rows[0] | {"ratio": 1.9}, rows[2] | {"ratio": 0.9}, rows[3] | {"passes": 1.5}])
    assert slow == "few: per tensor takes 1.9 times ours, claimed at least 2"
    assert slower == "few: pytorch_optimizer takes 0.9 times ours, claimed at least 1"
    assert more == "MESA: 1.5 passes a step, claimed at most 1.45"
