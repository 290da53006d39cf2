"""A run whose 2-D network sees neighbouring slices."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.pipelines.run_files import LAST, MakeConfig
from uumamba.pipelines import load_predictor
from uumamba.pipelines.train import train
from uumamba.training import read_checkpoint


def test_a_run_with_neighbouring_slices_trains_and_predicts(
    tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    config = tiny_config("training.neighbour_slices=1", "inference.postprocess=auto")
    train(config, data=tiny_prepared, out=tmp_path, progress=False)
    first = next(value for value in read_checkpoint(tmp_path / LAST).net.values() if value.ndim == 4)
    assert first.shape[1] == 3
    scan = np.random.default_rng(0).normal(size=(60, 60, 4))
    assert load_predictor(tmp_path)(scan, spacing_mm=(3.0, 3.0, 10.0)).label.shape == scan.shape


def test_neighbouring_slices_of_3_d_patches_are_refused(tiny_config: MakeConfig, refused: Any) -> None:
    flat = ("net.strides=[[1,1,1],[1,2,2],[1,2,2]]", "net.spatial_dims=3", "training.patch_size=[4,48,48]")
    with refused("training.neighbour_slices", got=1):
        tiny_config(*flat, "training.neighbour_slices=1")
