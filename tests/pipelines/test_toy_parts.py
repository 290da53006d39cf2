"""Toy network, loss, optimizer, observer and data set, each of one class or object and one registry line."""

import re
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from benchmarks.reference.option_meanings import read_meanings
from data_prep import assign_folds
from data_prep.reader import Read, Reader
from tests.pipelines.run_files import MakeConfig, save_nifti, train_arguments
from uumamba.cli import main
from uumamba.config import read_config
from uumamba.config.bind import bind
from uumamba.config.registry import KINDS
from uumamba.data.case import Case, Manifest
from uumamba.evaluation.scores import read_scores
from uumamba.optim import EngineOptions, Rule, SharpnessAware
from uumamba.optim.sam import follow_gradient
from uumamba.pipelines import load_predictor
from uumamba.pipelines.prepare import prepare, prepare_dataset
from uumamba.pipelines.train import train
from uumamba.runtime.observer import Observer, Row, RunView
from uumamba.runtime.options import NonNegative, Positive, PositiveInt, check_options
from uumamba.training import SupervisedObjective, Trainer
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


class ToyObserver(Observer):
    """Number of steps in every row.

    Args:
        folder: created when training begins.
    """

    key = "toy"

    def __init__(self, folder: Path) -> None:
        self.folder, self.steps = folder, 0

    def on_start(self, run: RunView) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def on_step(self, run: RunView) -> None:
        self.steps += 1

    def on_epoch_end(self, run: RunView, row: Row) -> None:
        row["toy_steps"] = self.steps


def read_toy(raw: Path) -> Read:
    """List ``a.scan.nii.gz`` with ``a.mask.nii.gz``, and so on."""
    images = {path.name.partition(".")[0]: path for path in sorted(Path(raw).glob("*.scan.nii.gz"))}
    folds = assign_folds(dict.fromkeys(images, ""))
    cases = [Case(name, name, "toy", image, raw / f"{name}.mask.nii.gz", folds[name]) for name, image in images.items()]
    return Manifest("Toys", "MRI", {"ball": 1}, tuple(cases)), []


TOY = Reader(read_toy, "Toys", re.compile(r"\w+\.(?P<kind>scan|mask)\.nii\.gz"), vessels=("ball",))


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the five registry lines."""
    monkeypatch.setitem(KINDS["net"].parts, "ToyNet", f"{__name__}:ToyNet")
    monkeypatch.setitem(KINDS["loss"].parts, "ToyLoss", f"{__name__}:ToyLoss")
    monkeypatch.setitem(KINDS["optim"].parts, "ToySAM", f"{__name__}:ToySAM")
    monkeypatch.setitem(KINDS["tracker"].parts, "toy", f"{__name__}:ToyObserver")
    monkeypatch.setitem(KINDS["dataset"].parts, "toy", f"{__name__}:TOY")


@pytest.fixture(scope="module")
def toy_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans of a ball in five patients."""
    raw = tmp_path_factory.mktemp("toys")
    for number, name in enumerate("abcde"):
        _, y, x = np.mgrid[:3, :40, :40]
        ball = np.hypot(y - 16 - number, x - 20) < 9
        noise = np.random.default_rng(number).normal(0, 5, ball.shape)
        save_nifti(raw / f"{name}.scan.nii.gz", (60 * ball + noise).T.astype(np.int16), (3.0, 3.0, 8.0))
        save_nifti(raw / f"{name}.mask.nii.gz", ball.T.astype(np.uint8), (3.0, 3.0, 8.0))
    return raw


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
def test_a_toy_observer_follows_a_run_from_yaml(
    tiny_prepared: Path, tiny_overrides: tuple[str, ...], tmp_path: Path
) -> None:
    fold = tmp_path / "run" / "fold_0"
    with pytest.raises(SystemExit, match="0"):
        main(train_arguments(tiny_prepared, tmp_path / "run", (*tiny_overrides, "track=[toy]")))
    assert [row["toy_steps"] for row in RunLog(fold / "metrics.jsonl").rows()] == [3, 6]
    assert (fold / "toy").is_dir()


def test_a_toy_observer_follows_a_trainer(tmp_path: Path) -> None:
    net, observer = ToyNet(2, 1, 2), ToyObserver(tmp_path / "toy")
    batch = {"image": torch.randn(2, 1, 8, 8), "label": torch.zeros(2, 1, 8, 8)}
    optimizer = ToySAM(net.parameters(), partial(torch.optim.SGD, lr=0.1), net=net)
    objective = SupervisedObjective(ToyLoss())
    Trainer(net, objective, optimizer, batches=lambda epoch: [batch], epochs=2, observers=[observer]).fit()
    assert observer.steps == 2


@pytest.mark.usefixtures("toys")
def test_a_toy_data_set_is_run_from_yaml_and_scored_by_its_raw_folder(
    toy_raw: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    path, out, device = tmp_path / "mine.yaml", tmp_path / "out", ["--device", "cpu"]
    stored = tiny_config("training.patch_size=[32,32]", "augment.mirror_axes=[]").as_json()
    path.write_text(yaml.safe_dump(stored | {"dataset": {"name": "toy"}}))
    with pytest.raises(SystemExit, match="0"):
        main(["run", str(path), "--raw", str(toy_raw), "--out", str(out), "--workers", "0", *device])
    [row] = read_scores(out / "scores.csv")
    assert (row.structure, row.domain) == ("ball", "toy")
    assert row.cl_dice is not None
    again = ["--labels", str(toy_raw), "--fold", "0", "--out", str(tmp_path / "again")]
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", "--predictions", str(out / "predictions"), *again])
    assert read_scores(tmp_path / "again" / "scores.csv") == (row,)


@pytest.mark.usefixtures("toys")
def test_a_toy_data_set_is_prepared_and_trained_from_python(
    toy_raw: Path, tiny_config: MakeConfig, tmp_path: Path, refused: Any
) -> None:
    config = tiny_config("dataset.name=toy", "training.patch_size=[32,32]", "augment.mirror_axes=[]")
    prepared = prepare(*TOY(toy_raw), recipe=config.preprocess.build(), out=tmp_path / "prepared")
    assert prepared.prepared == tuple("abcde")
    assert prepare_dataset(config, raw=toy_raw, out=tmp_path / "prepared").reused == tuple("abcde")
    [fold] = train(config, data=tmp_path / "prepared", out=tmp_path / "run")
    assert len(RunLog(fold / "metrics.jsonl").rows()) == 2
    with refused("dataset.name", got="acdc"):
        train(tiny_config("dataset.name=acdc"), data=tmp_path / "prepared", out=tmp_path / "other")
    with refused("dataset.name", got="toyy") as error:
        tiny_config("dataset.name=toyy")
    assert error.value.expected == "toy"


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
    assert f"--set {override}" in error.value.fix
    assert expected in error.value.expected


@pytest.mark.usefixtures("toys")
def test_the_meaning_of_a_toy_s_key_is_its_docstring() -> None:
    assert read_meanings("optim", "ToySAM")["factor"] == "of the gradient to descend with."
    assert "max_grad_norm" in read_meanings("optim", "ToySAM")
