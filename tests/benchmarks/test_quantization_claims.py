"""The data of the claims about low bits keep training and test apart, and every method can train there."""

from pathlib import Path

import pytest
import torch

from benchmarks.claims import digits, rotated_digits
from benchmarks.claims.low_bits import LEARNING_RATE, METHODS, SETTINGS, fit_scales, perform
from benchmarks.claims.quantization import CLAIMS, about, claim_rows
from benchmarks.claims.rotated_digits import SOURCES, UNSEEN, perceptron
from benchmarks.claims.rotated_digits import test_set as turned_test_set
from benchmarks.claims.run_log import Run, RunLog
from benchmarks.result_file import read_result, write_result
from uumamba.quantization import calibrate, quantize_, quantized_layers


def test_no_test_image_is_trained_on_and_the_seed_draws_the_angles_alone() -> None:
    first, second = rotated_digits.training_set(0), rotated_digits.training_set(1)
    assert torch.equal(first.labels, second.labels)
    assert len(first.labels) == 1797 - 800
    assert not torch.equal(first.images, second.images)
    for angle in SOURCES:
        tested = {image.numpy().tobytes() for image in turned_test_set(angle).images}
        assert not tested & {image.numpy().tobytes() for image in first.images}


def test_an_angle_of_zero_changes_nothing_and_the_unseen_one_is_no_source() -> None:
    images, labels = digits.test_set()
    assert torch.equal(turned_test_set(0).images, images.flatten(1))
    assert torch.equal(turned_test_set(UNSEEN).labels, labels)
    assert UNSEEN not in SOURCES


def test_scales_of_least_squares_leave_less_error_than_those_that_training_starts_from() -> None:
    net, images = perceptron(0).eval(), turned_test_set(0).images[:100]
    with torch.no_grad():
        exact = net(images)
        quantize_(net, **SETTINGS["3 bits"])
        calibrate(net, [images])
        before = (net(images) - exact).square().mean()
        weight = next(quantized_layers(net)).full_weight
        error = (net[0].weight - weight).square().mean()
        fit_scales(net, images)
        assert (net[0].weight - weight).square().mean() < error
        assert (net(images) - exact).square().mean() < before


@pytest.mark.parametrize("method", [*METHODS, "full precision", "QT-DoG"])
def test_every_method_is_measured_at_seen_and_unseen_angles_and_the_same_again(method: str) -> None:
    setting = {"full precision": "", "QT-DoG": "7 bits, weights alone"}.get(method, "2 bits")
    run = Run(setting, method, None, LEARNING_RATE, 36, 0, "test")
    measured = perform(run)
    assert {"seen angles", "unseen angle"} <= measured.keys()
    assert ("frozen fraction" in measured) == method.startswith("GAQAT")
    assert perform(run) == measured
    assert measured["seen angles"] > 0.1


def test_every_claim_has_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = {claim.metric for claim, _ in CLAIMS}

    def complete(self: RunLog, runs: list[Run], work: object, *, workers: int) -> None:
        self.measured |= {run: dict.fromkeys(metrics, float(run.seed + (run.method == "LSQ"))) for run in runs}

    monkeypatch.setattr(RunLog, "complete", complete)
    rows = list(claim_rows(RunLog(tmp_path), steps=900, seeds=2, workers=1))
    assert len(rows) == len(CLAIMS)
    assert (rows[0]["claim"], rows[0]["difference"], rows[0]["verdict"]) == (
        "at least 8 points higher than PTQ",
        1.0,
        "holds",
    )
    write_result(tmp_path / "a.json", rows, title="A", about=about(900), measured_at="abc")
    assert read_result(tmp_path / "a.json")["rows"] == rows
