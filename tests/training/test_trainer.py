"""The loop: any task, any optimizer of the family, and nothing that trains less than it seems to."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uumamba.optim import ASAM, SAM, Plain
from uumamba.runtime.errors import UsageError
from uumamba.runtime.seeds import generator_for
from uumamba.training import RunLog, SupervisedObjective, Trainer, TrainingDivergedError, poly, read_checkpoint

DIGITS = 10
SGD = partial(torch.optim.SGD, lr=0.1)
Build = Callable[..., Trainer]


def digits(*key: int | str, count: int = 64) -> dict[str, Tensor]:
    """Ten random 8 x 8 patterns, drawn over with noise of their own size."""
    patterns = torch.randn(DIGITS, 1, 8, 8, generator=generator_for("patterns"))
    label = torch.randint(DIGITS, (count,), generator=generator_for("label", *key))
    noise = torch.randn(count, 1, 8, 8, generator=generator_for("noise", *key))
    return {"image": patterns[label] + noise, "label": label}


def digit_batches(epoch: int) -> Iterator[dict[str, Tensor]]:
    return (digits(epoch, index) for index in range(10))


def accuracy(net: nn.Module) -> dict[str, float]:
    batch = digits("validation", count=200)
    return {"dice": (net(batch["image"]).argmax(dim=1) == batch["label"]).float().mean().item()}


def classifier() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, DIGITS))


def quiet(net: nn.Module, objective: Any, optimizer: Any, **options: Any) -> Trainer:
    """A trainer that prints nothing."""
    return Trainer(net, objective, optimizer, **{"progress": False, "log": [].append} | options)


@pytest.mark.parametrize("make", [Plain, partial(SAM, rho=0.05), partial(ASAM, rho=0.5)], ids=["Plain", "SAM", "ASAM"])
def test_a_digit_classifier_learns_with_every_optimizer_by_the_same_loop(make: Any) -> None:
    net = classifier()
    scores: list[float] = []

    def validate(net: nn.Module) -> dict[str, float]:
        scores.append(accuracy(net)["dice"])
        return {"dice": scores[-1]}

    quiet(
        net,
        SupervisedObjective(nn.CrossEntropyLoss()),
        make(net.parameters(), SGD),
        epochs=5,
        batches=digit_batches,
        validate=validate,
    ).fit()
    assert len(scores) == 5
    assert scores[-1] > 0.95, "chance is 0.1"


def test_plain_training_equals_a_loop_written_by_hand(tmp_path: Path) -> None:
    trained, by_hand = classifier(), classifier()
    by_hand.load_state_dict(trained.state_dict())
    optimizer = Plain(trained.parameters(), SGD)
    quiet(
        trained,
        SupervisedObjective(nn.CrossEntropyLoss()),
        optimizer,
        epochs=2,
        batches=digit_batches,
        augment=lambda batch: batch | {"image": batch["image"] * 2},
        scheduler=poly(optimizer, total_steps=20),
        run_dir=tmp_path,
    ).fit()
    reference = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    losses = []
    for epoch in range(2):
        for index, batch in enumerate(digit_batches(epoch)):
            reference.param_groups[0]["lr"] = 0.1 * (1 - (10 * epoch + index) / 20) ** 0.9
            reference.zero_grad()
            losses.append(nn.functional.cross_entropy(by_hand(batch["image"] * 2), batch["label"]))
            losses[-1].backward()
            reference.step()
    for found, expected in zip(trained.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(found, expected)
    rows = RunLog(tmp_path / "metrics.jsonl").rows()
    assert rows[1]["loss"] == pytest.approx(torch.stack(losses[10:]).mean().item(), rel=1e-6)
    assert rows[1]["lr"] == pytest.approx(0.1 * (1 / 20) ** 0.9), "of the step that was taken last"


def test_autocast_is_entered_in_every_pass_and_left_after_it() -> None:
    net = nn.Linear(4, 2)
    inside: list[tuple[bool, torch.dtype]] = []

    def objective(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        output = net(batch["image"])
        inside.append((torch.is_autocast_enabled("cpu"), output.dtype))
        return output.float().square().mean()

    quiet(
        net,
        objective,
        SAM(net.parameters(), SGD),
        epochs=1,
        batches=lambda epoch: [{"image": torch.ones(1, 4)}] * 3,
        precision="bfloat16",
    ).fit()
    assert inside == [(True, torch.bfloat16)] * 6, "two passes a step"
    assert not torch.is_autocast_enabled("cpu")


def test_float16_trains_with_a_scaler_whose_state_is_kept(tmp_path: Path) -> None:
    net = classifier()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=10)
    quiet(
        net,
        SupervisedObjective(nn.CrossEntropyLoss()),
        Plain(net.parameters(), SGD, scaler=scaler),
        epochs=2,
        batches=digit_batches,
        precision="float16",
        run_dir=tmp_path,
    ).fit()
    kept = read_checkpoint(tmp_path / "last.safetensors").optimizer["scaler"]
    assert kept["scale"] == 32.0, "doubled after each ten of the twenty steps"


def test_float16_without_a_scaler_is_refused() -> None:
    net = classifier()
    with pytest.raises(UsageError, match="float16 needs a gradient scaler"):
        quiet(net, nn.Identity(), Plain(net.parameters(), SGD), epochs=1, batches=digit_batches, precision="float16")


def test_an_optimizer_of_torch_itself_is_refused_with_the_wrapper_to_use() -> None:
    net = classifier()
    with pytest.raises(UsageError, match=r"got SGD; wrap it, such as Plain\("):
        quiet(net, nn.Identity(), SGD(net.parameters()), epochs=1, batches=digit_batches)


def test_a_parameter_that_no_optimizer_holds_is_refused() -> None:
    net, objective = classifier(), SupervisedObjective(nn.Linear(1, 1))
    with pytest.raises(UsageError, match=r"2 parameters would never learn, .* first objective.loss.weight"):
        quiet(net, objective, Plain(net.parameters(), SGD), epochs=1, batches=digit_batches)
    frozen = objective.requires_grad_(False)
    quiet(net, frozen, Plain(net.parameters(), SGD), epochs=1, batches=digit_batches)


@pytest.mark.parametrize("name", ["epochs", "validate_every", "max_skipped_in_a_row"])
def test_a_count_below_one_is_refused_by_name(name: str) -> None:
    net = classifier()
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        quiet(net, nn.Identity(), Plain(net.parameters(), SGD), **{"epochs": 1, "batches": digit_batches, name: 0})


def test_an_unknown_precision_is_refused() -> None:
    net = classifier()
    with pytest.raises(ValueError, match="precision must be float32, bfloat16 or float16, got 'int8'"):
        quiet(net, nn.Identity(), Plain(net.parameters(), SGD), epochs=1, batches=digit_batches, precision="int8")


def test_a_configuration_that_is_not_json_is_refused_at_once() -> None:
    net = classifier()
    with pytest.raises(TypeError, match="not JSON serializable"):
        quiet(net, nn.Identity(), Plain(net.parameters(), SGD), epochs=1, batches=digit_batches, config={"net": net})


def test_an_epoch_without_batches_is_an_error() -> None:
    net = classifier()
    with pytest.raises(UsageError, match=r"batches\(0\) gave no batch"):
        quiet(net, nn.Identity(), Plain(net.parameters(), SGD), epochs=1, batches=lambda epoch: []).fit()


def weighted(values: list[float]) -> tuple[nn.Module, Callable[[int], list[dict[str, Tensor]]]]:
    """A network of one weight, and batches whose loss is the weight times each value."""
    return nn.Linear(1, 1, bias=False), lambda epoch: [{"factor": torch.tensor(value)} for value in values]


def factor_loss(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return net.weight.sum() * batch["factor"]


def test_a_step_that_is_not_finite_is_skipped_counted_and_left_out_of_the_mean(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    net, batches = weighted([1.0, nan, 2.0, inf, nan, 3.0])
    start = net.weight.item()
    optimizer = Plain(net.parameters(), SGD)
    quiet(net, factor_loss, optimizer, epochs=1, batches=batches, max_skipped_in_a_row=3, run_dir=tmp_path).fit()
    assert optimizer.skipped_steps == 3
    assert net.weight.item() == pytest.approx(start - 0.1 * (1 + 2 + 3), rel=1e-5)
    (row,) = RunLog(tmp_path / "metrics.jsonl").rows()
    losses = [start, (start - 0.1) * 2, (start - 0.3) * 3]
    assert row["loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert row["skipped_steps"] == 3


def test_too_many_steps_in_a_row_that_are_not_finite_end_the_run() -> None:
    net, batches = weighted([1.0, float("nan"), float("nan")])
    trainer = quiet(net, factor_loss, Plain(net.parameters(), SGD), epochs=9, batches=batches, max_skipped_in_a_row=2)
    with pytest.raises(TrainingDivergedError, match=r"2 steps in a row .* step 3 of epoch 1; lower the learning rate"):
        trainer.fit()
    assert torch.isfinite(net.weight).all()


def test_skipped_steps_are_counted_over_epochs_and_resumes(tmp_path: Path) -> None:
    def fit(epochs: int) -> None:
        net, batches = weighted([float("nan")])
        optimizer = Plain(net.parameters(), SGD)
        options: dict[str, Any] = {"max_skipped_in_a_row": 3, "run_dir": tmp_path}
        quiet(net, factor_loss, optimizer, epochs=epochs, batches=batches, **options).fit(resume=True)

    fit(epochs=2)
    with pytest.raises(TrainingDivergedError, match="3 steps in a row"):
        fit(epochs=3)


def test_the_moving_average_is_the_recurrence_and_is_what_is_validated_and_stored(tmp_path: Path) -> None:
    net, batches = weighted([1.0, 2.0, 3.0])
    seen: list[float] = []

    def validate(net: nn.Module) -> dict[str, float]:
        assert not net.training
        assert not torch.is_grad_enabled()
        seen.append(net.weight.item())
        return {"dice": 0.5}

    start = net.weight.item()
    quiet(
        net,
        factor_loss,
        Plain(net.parameters(), SGD),
        epochs=1,
        batches=batches,
        validate=validate,
        ema_decay=0.5,
        run_dir=tmp_path,
    ).fit()
    weights = [start - 0.1, start - 0.3, start - 0.6]
    average = 0.5 * (0.5 * weights[0] + 0.5 * weights[1]) + 0.5 * weights[2]
    assert seen == [pytest.approx(average, rel=1e-5)]
    best = read_checkpoint(tmp_path / "best.safetensors")
    assert best.ema is not None
    assert best.ema["weight"].item() == seen[0]
    assert best.net["weight"].item() == pytest.approx(weights[2], rel=1e-5)


def test_validation_comes_every_few_epochs_and_after_the_last(tmp_path: Path) -> None:
    net, batches = weighted([0.0])
    quiet(
        net,
        factor_loss,
        Plain(net.parameters(), SGD),
        epochs=5,
        batches=batches,
        validate=lambda net: {"dice": 0.5, "dice_RV": 0.25},
        validate_every=2,
        run_dir=tmp_path,
    ).fit()
    rows = RunLog(tmp_path / "metrics.jsonl").rows()
    assert [row["epoch"] for row in rows if "dice" in row] == [1, 3, 4]
    assert rows[4]["dice_RV"] == 0.25


def test_best_is_the_checkpoint_of_the_highest_dice(tmp_path: Path) -> None:
    net, batches = weighted([1.0])
    scores = iter([float("nan"), 0.25, 0.5, 0.5, 0.375])
    quiet(
        net,
        factor_loss,
        Plain(net.parameters(), SGD),
        epochs=5,
        batches=batches,
        validate=lambda net: {"dice": next(scores)},
        run_dir=tmp_path,
    ).fit()
    best = read_checkpoint(tmp_path / "best.safetensors")
    assert best.progress["epochs_done"] == 3
    assert best.progress["best_dice"] == 0.5
    assert RunLog(tmp_path / "metrics.jsonl").rows()[0]["dice"] is None


def test_a_validation_without_dice_is_an_error() -> None:
    net, batches = weighted([1.0])
    trainer = quiet(
        net, factor_loss, Plain(net.parameters(), SGD), epochs=1, batches=batches, validate=lambda net: {"iou": 1.0}
    )
    with pytest.raises(ValueError, match=r"must return 'dice' among its scores, got \['iou'\]"):
        trainer.fit()


def test_without_a_validation_there_is_a_last_and_no_best(tmp_path: Path) -> None:
    net, batches = weighted([1.0])
    quiet(net, factor_loss, Plain(net.parameters(), SGD), epochs=2, batches=batches, run_dir=tmp_path).fit()
    assert {path.name for path in tmp_path.iterdir()} == {
        ".lock",
        "last.safetensors",
        "metrics.jsonl",
        "previous.safetensors",
        "progress.png",
    }


def test_learned_loss_weights_move_and_stand_in_every_row(build_trainer: Build, tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path, epochs=2)
    parameters = {**dict(trainer.net.named_parameters()), **dict(trainer.objective.named_parameters())}
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    trainer.fit()
    still = [name for name, parameter in parameters.items() if torch.equal(parameter, before[name])]
    assert still == ["0.bias"], "a batch norm follows, which subtracts the bias again"
    rows = RunLog(tmp_path / "metrics.jsonl").rows()
    assert rows[1]["loss_weights"] == trainer.objective.loss_weights()
    assert rows[0]["loss_weights"].keys() == {"region", "distribution"}
    assert rows[0]["loss_weights"] != rows[1]["loss_weights"]
    assert (tmp_path / "progress.png").read_bytes().startswith(b"\x89PNG")


def test_a_loss_without_learned_weights_logs_none() -> None:
    assert SupervisedObjective(nn.CrossEntropyLoss()).loss_weights() == {}


def test_nothing_is_written_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net, batches = weighted([1.0])
    quiet(net, factor_loss, Plain(net.parameters(), SGD), epochs=1, batches=batches).fit()
    assert list(tmp_path.iterdir()) == []


def test_the_network_is_in_training_mode_again_after_a_validation() -> None:
    net, batches = weighted([1.0])
    modes: list[bool] = []

    def objective(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        modes.append(net.training)
        return factor_loss(net, batch)

    optimizer = Plain(net.eval().parameters(), SGD)
    quiet(
        net, objective, optimizer, epochs=2, batches=batches, validate=lambda net: {"dice": float(net.training)}
    ).fit()
    assert modes == [True, True]
