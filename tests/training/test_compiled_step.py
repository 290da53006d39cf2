"""Steps through torch.compile, and the fallback without it."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uumamba.losses import CrossEntropyLoss
from uumamba.optim import SAM
from uumamba.runtime.memory_shortage import OutOfMemoryError
from uumamba.training import SupervisedObjective, Trainer, read_checkpoint
from uumamba.training.compiled_step import CompiledStep
from uumamba.training.snapshot import Snapshot

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def empty_snapshot() -> Snapshot:
    return Snapshot([], SAM([nn.Parameter(torch.zeros(1))], SGD), torch.device("cpu"))


class FailsInPass:
    """Compiled network that fails at the end of its ``number``-th pass."""

    def __init__(self, net: nn.Module, number: int) -> None:
        self.net, self.left = net, number

    def __call__(self, image: Tensor) -> Tensor:
        self.left -= 1
        found: Tensor = self.net(image)
        if self.left == 0:
            raise RuntimeError("a graph too many\nand a page of details")
        return found


def build(run_dir: Path | None = None, **options: Any) -> Trainer:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    image = torch.randn(2, 1, 16, 16)
    batch = {"image": image, "label": (image > 0).long() + (image > 1)}
    defaults: dict[str, Any] = {"epochs": 2, "ema_decay": 0.5, "log": [].append}
    return Trainer(
        net,
        SupervisedObjective(CrossEntropyLoss()),
        SAM(net.parameters(), SGD, rho=0.05, net=net),
        batches=lambda epoch: [batch] * 2,
        run_dir=run_dir,
        **defaults | options,
    )


def test_a_run_resumed_with_compiling_equals_one_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # This backend captures graphs and runs them with torch itself, which needs no compiler.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    lines: list[str] = []
    build(tmp_path / "compiled", epochs=1).fit()
    build(tmp_path / "compiled", compiles=True, log=lines.append).fit(resume=True)
    assert not [line for line in lines if "torch.compile" in line], "compiling did not fail"
    build(tmp_path / "plain").fit()
    one, other = (read_checkpoint(tmp_path / name / "last.safetensors") for name in ("compiled", "plain"))
    assert one.ema is not None
    assert other.ema is not None
    for found, expected in ((one.net, other.net), (one.ema, other.ema)):
        assert found.keys() == expected.keys(), "no name starts with _orig_mod."
        for name, value in expected.items():
            assert torch.allclose(found[name], value, atol=1e-5), name


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_step_that_fails_in_the_compiler_is_repeated_without_it_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:

    def fitted(**options: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))
        image = torch.randn(4, 1, 6, 6)
        batch = {"image": image, "label": (image[..., 1:-1, 1:-1] > 0).long()}
        optimizer = SAM(net.parameters(), SGD, rho=0.3, net=net)
        given: dict[str, Any] = {"epochs": 1, "batches": lambda epoch: [batch] * 2, "log": said.append}
        Trainer(net, SupervisedObjective(CrossEntropyLoss()), optimizer, **given | options).fit()
        return net.state_dict()

    said: list[str] = []
    expected = fitted()
    monkeypatch.setattr(torch, "compile", partial(FailsInPass, number=number))
    for name, value in fitted(compiles=True).items():
        assert torch.equal(value, expected[name]), name
    (line,) = (line for line in said if "torch.compile failed" in line)
    assert "RuntimeError: a graph too many" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("error", "steps"), [(ValueError, 2), (torch.OutOfMemoryError, 1), (OutOfMemoryError, 1)], ids=str
)
def test_an_error_of_the_plain_network_is_raised_and_a_lack_of_memory_not_repeated(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], steps: int
) -> None:
    monkeypatch.setattr(torch, "compile", lambda net: nn.Sequential(net))
    compiled = CompiledStep(nn.Identity(), enabled=True, say=pytest.fail)
    tried: list[int] = []

    def step() -> Tensor:
        tried.append(1)
        raise error("the label has a class too many")

    with pytest.raises(error, match="a class too many"):
        compiled.attempt(step, snapshot=empty_snapshot)
    assert len(tried) == steps


def test_without_compiling_the_plain_network_is_used() -> None:
    net = nn.Identity()
    compiled = CompiledStep(net, enabled=False, say=print)
    assert compiled.net is net
    assert compiled.attempt(lambda: torch.tensor(3), snapshot=empty_snapshot) == 3
