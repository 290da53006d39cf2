"""A tiny phantom, prepared and trained once, for every test of the way of one scan."""

from collections.abc import Callable
from pathlib import Path

import pytest

from uumamba.config import RunConfig, read_config

TINY = (
    "preprocess.spacing_mm=[null,3.0,3.0]",
    "net.features=[4,8,8]",
    "net.strides=[[1,1],[2,2],[2,2]]",
    "net.encoder_blocks=[1,1,1]",
    "net.decoder_blocks=[1,1]",
    "training.epochs=2",
    "training.batches_per_epoch=3",
    "training.batch_size=2",
    "training.patch_size=[48,48]",
    "training.validate_every=1",
    "training.precision=float32",
    "inference.precision=float32",
)


@pytest.fixture(scope="session")
def tiny_overrides() -> tuple[str, ...]:
    """What cuts the demo's run down to seconds, as ``--set`` takes it."""
    return TINY


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., RunConfig]:
    """``tiny_config("training.ema_decay=0.9", ...)``: the demo's run cut down to seconds."""

    def read(*overrides: str) -> RunConfig:
        return read_config("demo", (*TINY, *overrides))

    return read


@pytest.fixture(scope="session")
def tiny_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten training and two test patients of the phantom, in ACDC's layout."""
    from data_prep.phantom import write_phantom

    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, patients=10, test_patients=2, seed=0, workers=0)
    return folder


@pytest.fixture(scope="session")
def tiny_prepared(
    tiny_raw: Path, tiny_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The phantom, prepared."""
    from uumamba.pipelines.datasets import read_dataset
    from uumamba.pipelines.prepare import prepare

    folder = tmp_path_factory.mktemp("prepared")
    manifest, bad = read_dataset("phantom", tiny_raw)
    result = prepare(manifest, bad, recipe=tiny_config().preprocess.build(), out=folder, workers=0)
    assert not result.failures
    return folder


@pytest.fixture(scope="session")
def tiny_run(
    tiny_prepared: Path, tiny_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Fold 0, trained for two short epochs."""
    from uumamba.pipelines.train import train

    folder = tmp_path_factory.mktemp("run")
    train(tiny_config(), data=tiny_prepared, out=folder)
    return folder
