"""A toy network, loss and optimizer, each added by its class and one registry line."""

from functools import partial
from pathlib import Path
from typing import Any, Unpack

import pytest
import torch
import yaml
from torch import Tensor, nn

from tests.option_meanings import read_meanings
from tests.pipelines.run_files import MakeConfig
from uumamba.config import read_config
from uumamba.config.bind import bind
from uumamba.config.registry import KINDS
from uumamba.optim import EngineOptions, Rule, SharpnessAware
from uumamba.optim.sam import follow_gradient
from uumamba.pipelines import load_predictor
from uumamba.pipelines.train import train
from uumamba.runtime.options import NonNegative, Positive, PositiveInt, check_options
from uumamba.training.run_folder import RunLog


class ToyNet(nn.Module):
    """Two convolutions.

    Args:
        width: channels between them.
    """

    @check_options
    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, *, width: PositiveInt = 4) -> None:
        super().__init__()
        make = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.first, self.last = make(in_channels, width, 3, padding=1), make(width, out_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.last(self.first(image).relu())


class ToyLoss(nn.Module):
    """Cross entropy times a factor.

    Args:
        factor: of the cross entropy.
    """

    @check_options
    def __init__(self, *, factor: Positive = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        return self.factor * nn.functional.cross_entropy(logits, label[:, 0].long())


class ToySAM(SharpnessAware):
    """SAM with a factor of the second gradient.

    Args:
        rho: radius of the neighbourhood.
        factor: of the gradient to descend with.
    """

    @check_options
    def __init__(
        self,
        params: Any,
        base: Any,
        *,
        rho: NonNegative = 0.01,
        factor: Positive = 0.5,
        **engine: Unpack[EngineOptions],
    ) -> None:
        self.factor = factor
        rule = Rule(direction=follow_gradient, mix=lambda first, second: torch._foreach_mul(list(second), factor))
        super().__init__(params, base, rule=rule, group_defaults={"rho": rho}, **engine)


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the three registry lines."""
    monkeypatch.setitem(KINDS["net"].parts, "ToyNet", f"{__name__}:ToyNet")
    monkeypatch.setitem(KINDS["loss"].parts, "ToyLoss", f"{__name__}:ToyLoss")
    monkeypatch.setitem(KINDS["optim"].parts, "ToySAM", f"{__name__}:ToySAM")


OPTIM = {"name": "ToySAM", "factor": 0.25, "max_grad_norm": 12, "base": {"name": "SGD", "lr": 0.1}}
SECTIONS = {
    "net": {"name": "ToyNet", "spatial_dims": 2, "width": 3},
    "loss": {"name": "ToyLoss", "factor": 2},
    "optim": OPTIM,
}


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("section", SECTIONS)
def test_a_toy_reaches_a_run_from_yaml_and_predicts(
    section: str, tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tiny_config().as_json() | {section: SECTIONS[section]}))
    config = read_config(path)
    written = config.as_json()[section]
    assert all(written[key] == value for key, value in SECTIONS[section].items() if key != "base")
    (fold,) = train(config, data=tiny_prepared, out=tmp_path / "run", fold="all")
    assert RunLog(fold / "metrics.jsonl").rows()[-1]["skipped_steps"] == 0
    image = torch.rand(40, 44, 5).numpy()
    assert load_predictor(fold)(image, spacing_mm=(3.0, 3.0, 8.0)).label.shape == image.shape


@pytest.mark.usefixtures("toys")
def test_toys_train_from_python_by_their_classes_and_by_bind() -> None:
    base = partial(torch.optim.SGD, lr=0.1)
    image, label = torch.randn(2, 1, 8, 8), torch.randint(0, 2, (2, 1, 8, 8))

    def step(net: nn.Module, loss: nn.Module, make: Any) -> list[Tensor]:
        optimizer = make(net.parameters(), base=base, net=net)
        optimizer.step(lambda: loss(net(image), label))
        return [param.detach().clone() for param in net.parameters()]

    torch.manual_seed(0)
    by_class = step(ToyNet(2, 1, 2, width=3), ToyLoss(factor=2), partial(ToySAM, factor=0.25))
    torch.manual_seed(0)
    net = bind("net", "ToyNet", {"spatial_dims": 2, "width": 3})(in_channels=1, out_channels=2)
    by_bind = step(
        net, bind("loss", "ToyLoss", {"factor": 2})(), bind("optim", "ToySAM", OPTIM | {"max_grad_norm": None})
    )
    assert all(map(torch.equal, by_class, by_bind))


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("optim.factor=-1", "optim.factor", "a finite number above 0"),
        ("optim.factor=.nan", "optim.factor", "a finite number above 0"),
        ("optim.factor=true", "optim.factor", "a finite number above 0"),
        ("optim.fcator=1", "optim.fcator", "factor"),
        ("optim.name=ToySAMM", "optim.name", "ToySAM"),
    ],
)
def test_a_wrong_option_of_a_toy_is_refused_with_key_and_cure(
    refused: Any, tiny_config: MakeConfig, override: str, key: str, expected: str
) -> None:
    with refused(key) as error:
        tiny_config("optim={name: ToySAM, base: {name: SGD}}", override)
    assert "demo.yaml" in error.value.fix
    assert expected in error.value.expected


@pytest.mark.usefixtures("toys")
def test_the_meaning_of_a_toy_s_key_is_its_docstring() -> None:
    assert read_meanings("optim", "ToySAM")["factor"] == "of the gradient to descend with."
    assert "max_grad_norm" in read_meanings("optim", "ToySAM")
