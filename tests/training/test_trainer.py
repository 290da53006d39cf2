"""Training loop: any task and any optimizer of the family."""

from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.flat_trainer import make_trainer
from tests.training.tiny_run import build_trainer, rows_of
from uumamba.losses import CrossEntropyLoss, DeepSupervisionLoss, SoftDiceLoss, UncertaintyWeightedLoss
from uumamba.nets import UMambaBot
from uumamba.optim import SAM, Plain
from uumamba.runtime.observer import Observer, RunView
from uumamba.runtime.seeds import generator_for
from uumamba.training import (
    Execution,
    MovingAverage,
    Prefetcher,
    RunFolder,
    StepOptions,
    SupervisedObjective,
    Trainer,
    TrainingDivergedError,
    Validation,
    poly,
    read_checkpoint,
)

DIGITS = 10
SGD = partial(torch.optim.SGD, lr=0.1)
NAN, INF = float("nan"), float("inf")
READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default}


def digits(*key: int | str, count: int = 64) -> dict[str, Tensor]:
    """Draw noisy images of ten random 8 x 8 patterns."""
    patterns = torch.randn(DIGITS, 1, 8, 8, generator=generator_for("patterns"))
    label = torch.randint(DIGITS, (count,), generator=generator_for("label", *key))
    noise = torch.randn(count, 1, 8, 8, generator=generator_for("noise", *key))
    return {"image": patterns[label] + noise, "label": label}


def digit_batches(epoch: int) -> Iterator[dict[str, Tensor]]:
    return (digits(epoch, index) for index in range(10))


def classify(make: Callable[..., Any] = Plain, **options: Any) -> Trainer:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, DIGITS))
    optimizer = make(net.parameters(), SGD)
    defaults: dict[str, Any] = {"objective": SupervisedObjective(nn.CrossEntropyLoss()), "epochs": 1}
    defaults |= {"optimizer": optimizer, "batches": digit_batches, "log": [].append}
    return make_trainer(net, **defaults | options)


def multiply(values: list[float], run_dir: Path | None = None, **options: Any) -> Trainer:
    """Build a run of one weight with the loss weight times value."""
    net = nn.Linear(1, 1, bias=False)
    batches = [{"factor": torch.tensor(value)} for value in values]
    defaults: dict[str, Any] = {"epochs": 1, "batches": lambda epoch: batches, "run_dir": run_dir, "log": [].append}
    optimizer = Plain(net.parameters(), SGD)
    return make_trainer(net, lambda net, batch: net.weight.sum() * batch["factor"], optimizer, **defaults | options)


@pytest.mark.parametrize("make", [Plain, partial(SAM, rho=0.05)], ids=["Plain", "SAM"])
def test_a_digit_classifier_learns_with_plain_and_sam(make: Any) -> None:
    trainer = classify(make, epochs=5)
    trainer.fit()
    batch = digits("validation", count=200)
    assert (trainer.net(batch["image"]).argmax(dim=1) == batch["label"]).float().mean() > 0.95, "chance is 0.1"


def test_plain_training_equals_a_handwritten_loop(tmp_path: Path) -> None:
    trainer, by_hand = classify(epochs=2, run_dir=tmp_path), classify().net
    by_hand.load_state_dict(trainer.net.state_dict())
    trainer.state.scheduler = poly(trainer.optimizer, total_steps=20)
    trainer.prefetcher.augment = lambda batch: batch | {"image": batch["image"] * 2}
    trainer.fit()
    reference = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    losses = []
    for epoch in range(2):
        for index, batch in enumerate(digit_batches(epoch)):
            reference.param_groups[0]["lr"] = 0.1 * (1 - (10 * epoch + index) / 20) ** 0.9
            reference.zero_grad()
            losses.append(nn.functional.cross_entropy(by_hand(batch["image"] * 2), batch["label"]))
            losses[-1].backward()
            reference.step()
    for found, expected in zip(trainer.net.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(found, expected)
    row = rows_of(tmp_path)[1]
    assert row["loss"] == pytest.approx(torch.stack(losses[10:]).mean().item(), rel=1e-6)
    assert row["lr"] == pytest.approx(0.1 * (1 / 20) ** 0.9), "of the last step"


def test_autocast_is_entered_for_every_pass_and_left_after_it() -> None:
    inside: list[tuple[bool, torch.dtype]] = []

    def objective(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        output = net(batch["image"])
        inside.append((torch.is_autocast_enabled("cpu"), output.dtype))
        return output.float().square().mean()

    batches = [digits(0, count=2)] * 3
    classify(SAM, objective=objective, batches=lambda epoch: batches, precision="bfloat16").fit()
    assert inside == [(True, torch.bfloat16)] * 6, "two passes a step"
    assert not torch.is_autocast_enabled("cpu")


def test_float16_trains_with_a_scaler_whose_state_is_stored(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=10)
    classify(partial(Plain, scaler=scaler), epochs=2, precision="float16", run_dir=tmp_path).fit()
    kept = read_checkpoint(tmp_path / "last.safetensors").optimizer["scaler"]
    assert kept["scale"] == 32.0, "doubled after each ten of the twenty steps"


@pytest.mark.parametrize(
    ("key", "got"),
    [
        ("precision", "float16"),
        ("precision", "int8"),
        *((name, 0) for name in ("epochs", "every", "max_skipped_in_a_row", "samples_at_once")),
        ("save_every_minutes", -1.0),
    ],
)
def test_an_option_out_of_range_is_refused(key: str, got: Any, refused: Any) -> None:
    with refused(key, got=got):
        classify(**{"validate": lambda net: {}} | {key: got})


def test_a_parameter_without_an_optimizer_and_a_foreign_optimizer_are_refused(refused: Any) -> None:
    objective = SupervisedObjective(nn.Linear(1, 1))
    with refused("optimizer", got="no objective.loss.weight (2 parameters are missing)"):
        classify(objective=objective)
    classify(objective=objective.requires_grad_(False))
    with refused("optimizer", got="SGD"):
        classify(lambda params, base: base(params))


def test_a_configuration_that_is_not_json_is_refused() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        classify(config={"net": nn.Identity()})


def test_an_epoch_without_batches_and_a_validation_without_dice_are_errors(refused: Any) -> None:
    with refused("batches"):
        classify(batches=lambda epoch: []).fit()
    with refused("validation", got=["iou"]):
        multiply([1.0], validate=lambda net: {"iou": 1.0}).fit()


def test_a_step_that_is_not_finite_is_skipped_counted_and_excluded_from_the_mean(tmp_path: Path) -> None:
    trainer = multiply([1.0, NAN, 2.0, INF, NAN, 3.0], tmp_path, max_skipped_in_a_row=3)
    start = trainer.net.weight.item()
    trainer.fit()
    assert trainer.optimizer.skipped_steps == 3
    assert trainer.net.weight.item() == pytest.approx(start - 0.1 * (1 + 2 + 3), rel=1e-5)
    (row,) = rows_of(tmp_path)
    assert row["loss"] == pytest.approx((start + (start - 0.1) * 2 + (start - 0.3) * 3) / 3, rel=1e-5)
    assert row["skipped_steps"] == 3


def test_too_many_consecutive_skipped_steps_end_the_run_also_across_resumes(tmp_path: Path) -> None:
    trainer = multiply([1.0, NAN, NAN], max_skipped_in_a_row=2, epochs=9)
    with pytest.raises(TrainingDivergedError, match="step 3 of epoch 1"):
        trainer.fit()
    assert torch.isfinite(trainer.net.weight).all()
    multiply([NAN], tmp_path, max_skipped_in_a_row=3, epochs=2).fit()
    with pytest.raises(TrainingDivergedError, match="3 steps in a row"):
        multiply([NAN], tmp_path, max_skipped_in_a_row=3, epochs=3).fit(resume=True)


def test_the_moving_average_follows_its_recurrence_and_is_validated_and_stored(tmp_path: Path) -> None:
    seen: list[float] = []

    def validate(net: nn.Module) -> dict[str, float]:
        assert not net.training
        assert not torch.is_grad_enabled()
        seen.append(net.weight.item())
        return {"dice": 0.5}

    trainer = multiply([1.0, 2.0, 3.0], tmp_path, validate=validate, ema_decay=0.75)
    start = trainer.net.weight.item()
    trainer.fit()
    weights = [start - 0.1, start - 0.3, start - 0.6]
    assert seen == [pytest.approx(0.75 * (0.75 * weights[0] + 0.25 * weights[1]) + 0.25 * weights[2], rel=1e-5)]
    best = read_checkpoint(tmp_path / "best.safetensors")
    assert best.ema is not None
    assert best.ema["weight"].item() == seen[0]
    assert best.net["weight"].item() == pytest.approx(weights[2], rel=1e-5)


def test_validation_runs_every_few_epochs_and_after_the_last_and_selects_the_best(tmp_path: Path) -> None:
    scores = iter([NAN, 0.25, 0.5, 0.5, 0.375])
    multiply([1.0], tmp_path, epochs=9, validate=lambda net: {"dice": next(scores)}, every=2).fit()
    best = read_checkpoint(tmp_path / "best.safetensors").progress
    assert (best["epochs_done"], best["best_dice"]) == (6, 0.5)
    validated = [(row["epoch"], row["dice"]) for row in rows_of(tmp_path) if "dice" in row]
    assert validated == [(1, None), (3, 0.25), (5, 0.5), (7, 0.5), (8, 0.375)]


@pytest.mark.usefixtures("plots")
def test_a_run_without_validation_writes_no_best_and_without_a_folder_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    multiply([1.0]).fit()
    assert list(tmp_path.iterdir()) == []
    multiply([1.0], tmp_path, epochs=2).fit()
    checkpoints = {"last.safetensors", "previous.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == checkpoints | {".lock", "metrics.jsonl", "progress.png"}


def test_every_parameter_moves_and_learned_loss_weights_are_in_every_row(tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path, epochs=2)
    parameters = {**dict(trainer.net.named_parameters()), **dict(trainer.objective.named_parameters())}
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    trainer.fit()
    still = [name for name, parameter in parameters.items() if torch.equal(parameter, before[name])]
    assert still == ["0.bias"], "the following batch norm subtracts the bias"
    first, second = (row["loss_weights"] for row in rows_of(tmp_path))
    assert second == trainer.objective.loss_weights() != first
    assert first.keys() == {"region", "distribution"}


def test_an_objective_that_observes_follows_the_run_and_the_network_is_in_training_mode() -> None:
    calls: list[Any] = []

    class Listening(nn.Module, Observer):
        def on_epoch_start(self, run: RunView) -> None:
            calls.append(run.epochs_done)

        def forward(self, net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            calls.append(net.training)
            return net.weight.sum()

        def on_step(self, run: RunView) -> None:
            calls.append("step")

    net = nn.Linear(2, 1, bias=False).eval()
    optimizer = SAM(net.parameters(), SGD)
    batches = [{"image": torch.ones(1, 2)}] * 2
    options: dict[str, Any] = {"validate": lambda net: {"dice": float(net.training)}, "log": [].append}
    make_trainer(net, Listening(), optimizer, epochs=2, batches=lambda epoch: batches, **options).fit()
    step = [True, True, "step"]
    assert calls == [0, *step, *step, 1, *step, *step]


class CountReads(TorchDispatchMode):
    """Counter of numbers read from tensors (each waits for a GPU)."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += function in READS
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("make", "per_step"), [(Plain, 1), (partial(SAM, rho=0.05), 2)], ids=["Plain", "SAM"])
def test_a_step_reads_only_the_norms_of_gradient_and_perturbation(make: Any, per_step: int) -> None:
    def reads(steps: int) -> int:
        net = UMambaBot(2, 1, 3, features=(4, 8), strides=(1, 2))
        loss = UncertaintyWeightedLoss({"region": SoftDiceLoss(), "distribution": CrossEntropyLoss()})
        objective = SupervisedObjective(DeepSupervisionLoss(loss))
        groups = [{"params": [*net.parameters()]}, {"params": [*objective.parameters()], "perturb": False}]
        image = torch.randn(1, 1, 8, 8)
        batch = {"image": image, "label": (image > 0).long()}
        optimizer = make(groups, SGD, max_grad_norm=12.0)
        trainer = make_trainer(
            net, objective, optimizer, epochs=1, batches=lambda epoch: [batch] * steps, log=[].append
        )
        with CountReads() as counted:
            trainer.fit()
        return counted.reads

    assert reads(5) - reads(2) == 3 * per_step


def test_the_trainer_takes_twelve_arguments_and_no_option_object_more_than_five() -> None:
    assert len(signature(Trainer).parameters) <= 12
    for options in (StepOptions, Execution, Validation, MovingAverage, RunFolder, Prefetcher):
        assert len(signature(options).parameters) <= 5, options


def test_the_simple_case_needs_five_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    net = nn.Linear(64, DIGITS)
    optimizer = Plain(net.parameters(), SGD)
    objective = SupervisedObjective(nn.CrossEntropyLoss())
    batches = [{"image": torch.randn(4, 64), "label": torch.arange(4)}]
    Trainer(net, objective, optimizer, batches=lambda epoch: batches, epochs=2).fit()
    assert capsys.readouterr().err.count("epoch") == 2
