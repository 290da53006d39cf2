"""Each option works from training to scores on a tiny phantom."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from uumamba.config import RunConfig
from uumamba.data.case import Manifest
from uumamba.pipelines import load_predictor
from uumamba.pipelines.evaluate import evaluate_folder
from uumamba.pipelines.predict import predict
from uumamba.pipelines.train import train
from uumamba.training.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow

MakeConfig = Callable[..., RunConfig]


def scored(
    run: Path, prepared: Path, out: Path, *, split: Any = "training", fold: int | None = 0, **options: Any
) -> set:
    """Predict and evaluate the cases of a fold; return case and structure of every row."""
    result = predict(run, [prepared], out=out / "predictions", split=split, case_fold=fold, **options)
    assert not result.failures
    evaluate_folder(out / "predictions", prepared / "dataset.json", out, split=split, fold=fold)
    with (out / "scores.csv").open(encoding="utf-8") as file:
        return {(row["case_id"], row["structure"]) for row in csv.DictReader(file)}


def test_three_dimensions(tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = tiny_config(
        "net.spatial_dims=3",
        "net.strides=[[1,1,1],[1,2,2],[2,2,2]]",
        "training.patch_size=[4,32,32]",
        "augment.mirror_axes=[0,1,2]",
        "inference.mirror=true",
    )
    train(config, data=tiny_prepared, out=tmp_path / "run")
    assert len(scored(tmp_path / "run", tiny_prepared, tmp_path)) == 2 * 3


def test_five_folds_are_trained_and_averaged(tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path) -> None:
    folders = train(tiny_config("training.epochs=1"), data=tiny_prepared, out=tmp_path / "run", fold="cv")
    assert [folder.name for folder in folders] == [f"fold_{k}" for k in range(5)]
    assert len(scored(tmp_path / "run", tiny_prepared, tmp_path, fold=None)) == 10 * 3
    image, spacing_mm = np.random.default_rng(0).random((40, 44, 5), dtype=np.float32), (2.0, 2.0, 8.0)
    together, *alone = (
        load_predictor(run)(image, spacing_mm=spacing_mm, probabilities=True).probabilities
        for run in (tmp_path / "run", *folders)
    )
    np.testing.assert_allclose(together, np.mean(alone, axis=0), atol=1e-5)


def test_all_cases_without_validation(tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path) -> None:
    (folder,) = train(tiny_config("training.epochs=1"), data=tiny_prepared, out=tmp_path / "run", fold="all")
    assert folder.name == "fold_all"
    assert len(scored(tmp_path / "run", tiny_prepared, tmp_path)) == 2 * 3


def test_fine_tuning_starts_from_the_given_weights(
    tiny_run: Path, tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    still = tiny_config("optim.base.lr=1e-30", "optim.base.weight_decay=0", "training.epochs=1")
    (folder,) = train(still, data=tiny_prepared, out=tmp_path / "run", init=str(tiny_run))
    before, after = (read_checkpoint(each / "last.safetensors") for each in (tiny_run / "fold_0", folder))
    start = before.ema if before.ema is not None else before.net
    for name, tensor in after.net.items():
        torch.testing.assert_close(tensor, start[name])


def test_averaged_weights_differ_from_the_last_and_are_used(
    tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    (folder,) = train(tiny_config("training.ema_decay=0.5"), data=tiny_prepared, out=tmp_path / "run")
    checkpoint = read_checkpoint(folder / "last.safetensors")
    assert checkpoint.ema is not None
    assert any(not torch.equal(checkpoint.ema[name], tensor) for name, tensor in checkpoint.net.items())
    (used,) = load_predictor(folder / "last.safetensors").nets
    assert torch.equal(used.state_dict()["decoder.seg_layers.0.weight"], checkpoint.ema["decoder.seg_layers.0.weight"])


def test_mirror_averaging_equals_the_mean_over_the_trained_axes(tiny_run: Path) -> None:
    image, spacing_mm = np.random.default_rng(0).random((48, 48, 4), dtype=np.float32), (3.0, 3.0, 8.0)
    plain, mirrored = load_predictor(tiny_run, mirror=False), load_predictor(tiny_run, mirror=True)

    def segment(predictor: Any, flips: tuple[int, ...]) -> np.ndarray:
        found = predictor(np.flip(image, flips).copy(), spacing_mm=spacing_mm, probabilities=True).probabilities
        return np.flip(found, tuple(axis + 1 for axis in flips))

    expected = np.mean([segment(plain, flips) for flips in ((), (0,), (1,), (0, 1))], axis=0)
    np.testing.assert_allclose(segment(mirrored, ()), expected, atol=1e-4)


@pytest.mark.parametrize(
    "override",
    [
        "net={name: SegResNet, spatial_dims: 2, init_filters: 8, blocks_down: [1, 1], blocks_up: [1]}",
        "net={name: DynUNet, spatial_dims: 2, features: [8, 8, 8], strides: [[1,1],[2,2],[2,2]], "
        "kernel_sizes: [[3,3],[3,3],[3,3]]}",
        "net={name: UNETR, spatial_dims: 2, feature_size: 4, hidden_size: 24, mlp_dim: 24, num_heads: 2}",
        "net={name: SwinUNETR, spatial_dims: 2, feature_size: 12}",
        "net.name=UMambaEnc",
        "net.name=ResEncUNet",
        "optim={name: Plain, base: {name: SGD}}",
        "optim={name: ASAM, base: {name: SGD}}",
        "optim={name: TRAM, base: {name: SGD}}",
        "optim={name: SAM, ascent: {name: output_bias_forgetting, class_mean: true}, base: {name: SGD}}",
        "loss={name: uncertainty_weighted, mode: released_code}",
        "loss={name: dice_cross_entropy}",
    ],
)
def test_another_network_optimizer_or_loss_by_config(
    override: str, tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    quick = ("training.epochs=1", "training.batches_per_epoch=1", "training.patch_size=[64,64]")
    train(tiny_config(override, *quick), data=tiny_prepared, out=tmp_path / "run")
    assert len(scored(tmp_path / "run", tiny_prepared, tmp_path)) == 2 * 3


def test_test_cases_are_predicted_and_scored_only_on_request(
    tiny_run: Path, tiny_prepared: Path, tmp_path: Path
) -> None:
    tests = {case.case_id for case in Manifest.read(tiny_prepared).select(split="test")}
    assert len(tests) == 2
    assert not any((tiny_prepared / "cases" / name).exists() for name in tests)
    rows = scored(tiny_run, tiny_prepared, tmp_path, split="test", fold=None, mirror=True)
    assert {case_id for case_id, _ in rows} == tests
