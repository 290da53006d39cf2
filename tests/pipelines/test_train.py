"""Training folds from prepared cases: what it is refused for, and a request to stop between two folds."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from uumamba.config import RunConfig
from uumamba.pipelines.train import train
from uumamba.pipelines.validation import WholeCaseValidation
from uumamba.runtime.errors import UsageError
from uumamba.runtime.stop import StoppedOnRequest

MakeConfig = Callable[..., RunConfig]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "preprocess.spacing_mm=[null,1.0,1.0]",
            r"by another recipe .* \(spacing_mm is \(None, 3.0, 3.0\) there, \(None, 1.0, 1.0\) here\); prepare again",
        ),
        ("dataset.name=acdc", "holds the data set phantom, the configuration names acdc; prepare again"),
    ],
)
def test_cases_that_were_prepared_for_another_configuration_are_refused(
    override: str, sentence: str, tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=sentence):
        train(tiny_config(override), data=tiny_prepared, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_fold_is_refused(tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no fold '7'; choose one of 0, 1, 2, 3, 4, all, cv"):
        train(tiny_config(), data=tiny_prepared, out=tmp_path / "run", fold="7")


def test_a_stop_asked_for_in_a_folds_last_validation_is_followed_before_the_next_fold(
    tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate = WholeCaseValidation.__call__

    def validate_and_stop(self: WholeCaseValidation, net: nn.Module) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return validate(self, net)

    monkeypatch.setattr(WholeCaseValidation, "__call__", validate_and_stop)
    with pytest.raises(StoppedOnRequest, match="Stopped by SIGTERM before fold 1; go on with --resume"):
        train(tiny_config("training.epochs=1"), data=tiny_prepared, out=tmp_path / "run", fold="cv")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["fold_0"]
    assert (tmp_path / "run" / "fold_0" / "last.safetensors").is_file()
