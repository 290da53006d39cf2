"""Through torch.compile where that works; else without it and with a sentence; never in a checkpoint."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uumamba.losses import CrossEntropyLoss, DeepSupervisionLoss
from uumamba.nets import UMambaBot
from uumamba.optim import SAM
from uumamba.runtime.memory_shortage import OutOfMemoryError
from uumamba.training import SupervisedObjective, Trainer, read_checkpoint
from uumamba.training.compiled import MayCompile
from uumamba.training.step_start import StepStart


def broken_backend(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Any:
    raise OSError("g++ was not found\nhere is a page of its reasons")


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are captured, and run by torch itself, which takes no compiler and no minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken_backend))


def nothing_changes() -> StepStart:
    weight = nn.Parameter(torch.zeros(1))
    return StepStart([], SAM([weight], partial(torch.optim.SGD, lr=0.1)), torch.device("cpu"))


class FailsInPass:
    """A compiled network that fails in one pass, after running statistics have moved and numbers were drawn."""

    def __init__(self, net: nn.Module, number: int) -> None:
        self.net, self.left = net, number

    def __call__(self, image: Tensor) -> Tensor:
        self.left -= 1
        found: Tensor = self.net(image)
        if self.left == 0:
            raise RuntimeError("a graph too many")
        return found


def trainer(run_dir: Path | None = None, **options: Any) -> Trainer:
    torch.manual_seed(0)
    net = UMambaBot(2, 1, 3, features=(4, 8), strides=(1, 2))
    image = torch.randn(2, 1, 16, 16)
    batch = {"image": image, "label": (image > 0).long() + (image > 1)}
    defaults: dict[str, Any] = {"epochs": 2, "ema_decay": 0.5, "progress": False, "log": [].append}
    return Trainer(
        net,
        SupervisedObjective(DeepSupervisionLoss(CrossEntropyLoss())),
        SAM(net.parameters(), partial(torch.optim.SGD, lr=0.1), rho=0.05, net=net),
        batches=lambda epoch: [batch] * 2,
        validate=lambda net: {"dice": float(net(image).mean() > -99)},
        run_dir=run_dir,
        **defaults | options,
    )


@pytest.mark.usefixtures("eager")
def test_resumed_through_the_compiler_it_learns_the_same_with_average_climb_and_deep_supervision(
    tmp_path: Path,
) -> None:
    lines: list[str] = []
    trainer(tmp_path / "compiled", epochs=1).fit()
    compiled = trainer(tmp_path / "compiled", compiles=True, log=lines.append)
    compiled.fit(resume=True)
    assert compiled._called.net is not compiled.net, "it was compiled to the end"
    assert not [line for line in lines if "torch.compile" in line]
    trainer(tmp_path / "plain").fit()
    one, other = (read_checkpoint(tmp_path / name / "last.safetensors") for name in ("compiled", "plain"))
    assert one.ema is not None
    assert other.ema is not None
    for found, expected in ((one.net, other.net), (one.ema, other.ema)):
        assert found.keys() == expected.keys(), "no _orig_mod."
        for name, value in expected.items():
            assert torch.allclose(found[name], value, atol=1e-5), name


@pytest.mark.usefixtures("broken")
def test_where_compiling_fails_training_goes_on_without_it_and_says_so_once(tmp_path: Path) -> None:
    lines: list[str] = []
    trainer(tmp_path / "broken", compiles=True, log=lines.append).fit()
    said = [line for line in lines if "torch.compile" in line]
    assert len(said) == 1
    assert said[0].startswith("torch.compile failed (BackendCompilerFailed: ")
    assert said[0].endswith("; training goes on without it.")
    assert "\n" not in said[0]
    trainer(tmp_path / "plain").fit()
    one, other = (read_checkpoint(tmp_path / name / "last.safetensors").net for name in ("broken", "plain"))
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_what_is_repeated_without_the_compiler_starts_where_the_step_did(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Batch norm's statistics, dropout's numbers, and the weights after both passes of a step."""

    def fitted(**options: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))
        image = torch.randn(4, 1, 6, 6)
        batch = {"image": image, "label": (image[..., 1:-1, 1:-1] > 0).long()}
        optimizer = SAM(net.parameters(), partial(torch.optim.SGD, lr=0.1, momentum=0.9), rho=0.3, net=net)
        objective = SupervisedObjective(CrossEntropyLoss())
        given: dict[str, Any] = {"epochs": 1, "batches": lambda epoch: [batch] * 2, "log": [].append}
        Trainer(net, objective, optimizer, **given | options).fit()
        return net.state_dict()

    expected = fitted()
    monkeypatch.setattr(torch, "compile", partial(FailsInPass, number=number))
    for name, value in fitted(compiles=True).items():
        assert torch.equal(value, expected[name]), name


def test_a_fault_of_the_step_itself_comes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda net: nn.Sequential(net))
    said: list[str] = []
    called = MayCompile(nn.Identity(), enabled=True, say=said.append)

    def step() -> None:
        raise ValueError("the label has a class too many")

    with pytest.raises(ValueError, match="the label has a class too many"):
        called.attempt(step, start=nothing_changes)
    assert said == []


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, OutOfMemoryError])
def test_too_little_memory_is_not_taken_for_a_compiler_s_fault(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    monkeypatch.setattr(torch, "compile", lambda net: nn.Sequential(net))
    called = MayCompile(nn.Identity(), enabled=True, say=print)
    steps: list[int] = []

    def step() -> None:
        steps.append(1)
        raise error("no room")

    with pytest.raises(error, match="no room"):
        called.attempt(step, start=nothing_changes)
    assert len(steps) == 1


def test_not_asked_for_it_is_the_network_itself() -> None:
    net = nn.Identity()
    called = MayCompile(net, enabled=False, say=print)
    assert called.net is net
    assert called.attempt(lambda: 3, start=nothing_changes) == 3


@pytest.mark.slow
def test_the_default_compiler_compiles_or_is_left_with_a_sentence() -> None:
    lines: list[str] = []
    compiled = trainer(compiles=True, log=lines.append)
    compiled.fit()
    assert (compiled._called.net is not compiled.net) != any("torch.compile failed" in line for line in lines)
