"""Tests of the benchmarks of optimizer and training steps."""

from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import optim_step, train_step
from benchmarks.optim_step import LIMIT, OURS, PEER, PER_TENSOR, Passes, PerTensorSAM, count_passes
from benchmarks.train_step import BARE, load_first_batch
from uumamba.config import RunConfig
from uumamba.data.prepared import PreparedFolder
from uumamba.optim import MESA, SAM
from uumamba.pipelines.build import build_trainer
from uumamba.pipelines.jobs import list_jobs
from uumamba.training import Trainer


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


Config = Callable[..., RunConfig]


def build(config: RunConfig, folder: PreparedFolder) -> Trainer:
    [job] = list_jobs(config, folder, fold="0", out=folder.path / "run")
    return build_trainer(job, folder, run_dir=None)


@pytest.mark.parametrize(("optim", "passes"), [("SAM", 2), ("Plain", 1)])
def test_passes_are_those_of_the_optimizer(
    phantom: PreparedFolder, tiny_config: Config, optim: str, passes: int
) -> None:
    trainer = build(tiny_config(f"optim={{name: {optim}, base: {{name: AdamW}}}}"), phantom)
    batch = load_first_batch(trainer)
    assert batch["image"].shape == (2, 1, 32, 32)
    assert train_step.count_step_passes(trainer, batch) == passes


def test_every_data_pipeline_has_a_row_and_trains_silently(
    phantom: PreparedFolder, tiny_config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built: list[Any] = []

    def record(*arguments: Any, **options: Any) -> Any:
        built.append(build_trainer(*arguments, **options))
        return built[-1]

    monkeypatch.setattr(train_step, "find_spec", lambda name: None)
    monkeypatch.setattr(train_step, "build_trainer", record)
    bare, ours, ahead = train_step.measure(tiny_config("training.epochs=100"), phantom, device="cpu", steps=2, rounds=2)
    assert [row["name"] for row in (bare, ours, ahead)] == [BARE, "uumamba", "uumamba, reads ahead"]
    assert (bare["ratio"], bare["waited_s"]) == (1.0, None)
    assert ours["waited_s"] < ours["median_s"] * 2
    assert built[0].state.progress.steps_done == 6, "two rounds and a warm-up"
    assert capsys.readouterr().err == ""


def test_ratios_are_computed_in_each_round() -> None:
    seconds = {BARE: [1.0, 2.0, 4.0], "uumamba": [1.1, 2.0, 4.8]}
    _, row = train_step.make_rows(seconds, {"uumamba": 0.01}, passes=2)
    assert (row["ratio"], row["median_s"]) == (1.1, 2.0)


def test_nnunet_s_batches_have_the_form_of_ours(phantom: PreparedFolder, tiny_config: Config) -> None:
    if find_spec("nnunetv2") is None:
        return
    fed = train_step.feed_from_nnunet(build(tiny_config(), phantom), tiny_config(), phantom, workers=0)
    batch = load_first_batch(fed)
    assert (batch["image"].shape, batch["image"].dtype) == ((2, 1, 32, 32), torch.float32)
    assert batch["label"].dtype == torch.int64
