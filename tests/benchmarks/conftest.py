"""Fixtures of the benchmark tests."""

from collections.abc import Callable, Iterable

import pytest

from benchmarks import train_step
from benchmarks.claims.run_log import Measured, Run, RunLog
from uumamba.config import RunConfig, read_config
from uumamba.data.prepared import PreparedFolder

TINY = (
    *("net.features=[4,8]", "net.strides=[[1,1],[2,2]]", "net.encoder_blocks=[1,1]", "net.decoder_blocks=[1]"),
    *("training.batches_per_epoch=2", "training.batch_size=2", "training.patch_size=[32,32]", "dataset.name=phantom"),
)


@pytest.fixture(scope="session")
def tiny_settings() -> list[str]:
    """List the command-line settings of a tiny network and training."""
    return [word for override in TINY for word in ("--set", override)]


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., RunConfig]:
    """Read ``acdc_cpu`` with a tiny network and further settings."""
    return lambda *overrides: read_config("acdc_cpu", (*TINY, "training.precision=float32", *overrides))


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> PreparedFolder:
    """Prepare a phantom of five patients."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_step, "PATIENTS", 5)
        return train_step.prepare_phantom(tmp_path_factory.mktemp("phantom"), read_config("acdc_cpu"))


@pytest.fixture
def replace_training(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Run], Measured]], None]:
    """Replace the training of missing runs by a function of the run."""

    def replace(measure: Callable[[Run], Measured]) -> None:
        def complete(log: RunLog, runs: Iterable[Run], work: object, *, workers: int) -> None:
            log.measured |= {run: measure(run) for run in runs}
            log.commits.add("abc")

        monkeypatch.setattr(RunLog, "complete", complete)

    return replace
