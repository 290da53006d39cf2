"""All stages of a run on a tiny phantom: output, resume, refusals."""

import csv
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.pipelines.run_files import LAST, MakeConfig, Refused, contents, failed_in, last_of, read_json
from uumamba.data.case import Manifest
from uumamba.data.scan import Scan, read_image
from uumamba.pipelines.datasets import read_dataset
from uumamba.pipelines.run import SomeCasesMissing, run
from uumamba.runtime.errors import CaseError, UsageError
from uumamba.runtime.stop import StoppedOnRequest
from uumamba.training.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def raw_before(tiny_raw: Path) -> dict[Path, bytes]:
    """Contents of the raw folder before any run."""
    return contents(tiny_raw)


@pytest.fixture(scope="module")
def finished(
    tiny_raw: Path, raw_before: object, tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("finished")
    run(tiny_config(), raw=tiny_raw, out=out)
    return out


def test_run_makes_every_file_and_scores_only_the_validation_cases_of_fold_0(finished: Path) -> None:
    for name in ("prepared", "run", "predictions", "scores.csv", "summary.json", "report.html"):
        assert (finished / name).exists(), name
    manifest = Manifest.read(finished / "prepared")
    expected = {case.case_id for case in manifest.select(split="training", fold=0)}
    with (finished / "scores.csv").open(encoding="utf-8") as file:
        assert {row["case_id"] for row in csv.DictReader(file)} == expected
    predictions = {path.name for path in (finished / "predictions").glob("*.nii.gz")}
    assert predictions == {f"{name}.nii.gz" for name in expected}
    for case in manifest.select(fold=0):
        scan, label = nib.load(case.image), nib.load(finished / "predictions" / f"{case.case_id}.nii.gz")
        assert scan.shape == label.shape
        assert np.array_equal(scan.affine, label.affine)
        assert np.array_equal(scan.header.get_zooms(), label.header.get_zooms())
        for code in ("qform_code", "sform_code"):
            assert scan.header[code] == label.header[code]


def test_a_second_call_reuses_cases_and_weights_and_gives_the_same_scores(
    finished: Path, tiny_raw: Path, raw_before: dict[Path, bytes], tiny_config: MakeConfig
) -> None:
    kept = [finished / "scores.csv", finished / "run" / LAST]
    before = [path.read_bytes() for path in kept]
    run(tiny_config(), raw=tiny_raw, out=finished)
    assert [path.read_bytes() for path in kept] == before
    assert contents(tiny_raw) == raw_before, "the raw folder is never written to"


def test_unknown_and_empty_folds_and_an_output_in_the_raw_folder_are_refused_before_anything_is_made(
    tiny_raw: Path, raw_before: dict[Path, bytes], tiny_config: MakeConfig, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "out"
    with refused("--fold", got="7"):
        run(tiny_config(), raw=tiny_raw, out=out, fold="7")
    inside = tiny_raw / "training" / "out"
    with refused("--out", got=inside):
        run(tiny_config(), raw=tiny_raw, out=inside)
    assert contents(tiny_raw) == raw_before
    one = tmp_path / "raw" / "training" / "patient001"
    shutil.copytree(tiny_raw / "training" / "patient001", one)
    with refused("--fold"):
        run(tiny_config(), raw=tmp_path / "raw", out=out, fold="cv")
    assert not out.exists()


@pytest.mark.parametrize("fold", ["0", "1"])
def test_another_configuration_is_refused_before_anything_is_changed(
    fold: str, finished: Path, tiny_raw: Path, tiny_config: MakeConfig
) -> None:
    before = contents(finished)
    other = tiny_config("preprocess.spacing_mm=[null,4.0,4.0]")
    with pytest.raises(UsageError, match=r"preprocess\.spacing_mm"):
        run(other, raw=tiny_raw, out=finished, fold=fold)
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("stage", "where"),
    [
        ("prepare", "after comparing 0 of 10 cases"),
        ("train", "after verifying 0 of 10 cases"),
        ("predict", "after predicting 0 of 2"),
    ],
)
def test_a_stop_request_ends_a_run_in_every_stage(
    stage: str, where: str, finished: Path, tiny_raw: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    def stop(sentence: str) -> None:
        if sentence.startswith(stage):
            signal.raise_signal(signal.SIGTERM)

    out = Path(shutil.copytree(finished, tmp_path / "out"))
    (out / "report.html").unlink()
    with pytest.raises(StoppedOnRequest, match=f"SIGTERM {where}") as stopped:
        run(tiny_config(), raw=tiny_raw, out=out, say=stop)
    assert stopped.value.exit_code == 75
    assert not (out / "report.html").exists()


def unreadable(*bad: str) -> Callable[..., Scan]:
    def read(path: Path, *, case_id: str, **options: Any) -> Scan:
        if case_id in bad or not bad:
            raise CaseError(case_id, "image", got="noise", expected="a scan", fix="restore it")
        return read_image(path, case_id=case_id, **options)

    return read


@pytest.mark.slow
def test_a_case_that_cannot_be_predicted_is_listed_everywhere_whatever_its_fold(
    finished: Path, tiny_raw: Path, tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    trained = last_of(out / "run")
    for fold in ("1", "2", "3", "4"):  # with the weights of fold 0
        (out / "run" / f"fold_{fold}").mkdir()
        own = replace(trained, config=trained.config | {"fold": fold})
        save_checkpoint(out / "run" / f"fold_{fold}" / "last.safetensors", own)
    manifest = Manifest.read(out / "prepared")
    bad = sorted(manifest.select(fold=fold)[0].case_id for fold in (0, 3))
    monkeypatch.setattr("uumamba.pipelines.prediction.cines.read_image", unreadable(*bad))
    result = run(tiny_config(), raw=tiny_raw, out=out, fold="cv")
    assert sorted(failure.case_id for failure in result.failures) == bad
    assert sorted(failed_in(out)) == sorted(failed_in(out / "predictions")) == bad
    summary = read_json(out / "summary.json")
    assert (summary["n_cases"], summary["failed"]) == (8, bad)
    assert all(f"<strong>{name}</strong>: image: got noise" in (out / "report.html").read_text() for name in bad)


def test_when_no_case_can_be_predicted_the_run_fails_without_scores(
    finished: Path,
    tiny_raw: Path,
    tiny_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Refused,
) -> None:
    monkeypatch.setattr("uumamba.pipelines.prediction.cines.read_image", unreadable())
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    with refused("image", got="noise") as error:
        run(tiny_config(), raw=tiny_raw, out=out)
    assert "all 2 failed cases in failures.json" in error.value.fix
    assert not (out / "scores.csv").exists()


def test_an_unusable_case_ends_the_run_unless_missing_cases_are_allowed(
    finished: Path, tiny_raw: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    raw, out = Path(shutil.copytree(tiny_raw, tmp_path / "raw")), tmp_path / "out"
    manifest, _ = read_dataset("phantom", raw)
    (broken, _), (other, _) = (manifest.select(fold=fold) for fold in (0, 1))
    assert broken.label is not None
    assert other.label is not None
    other.label.unlink()
    broken.label.write_bytes(broken.label.read_bytes()[:200])
    bad = sorted((broken.case_id, other.case_id))
    said: list[str] = []
    with pytest.raises(SomeCasesMissing, match=r"2 cases that cannot be prepared.*--allow-missing"):
        run(tiny_config(), raw=raw, out=out, say=said.append)
    assert [line.split(": ")[1] for line in said if line.startswith("failed: ")] == bad
    shutil.copytree(finished / "run", out / "run")  # so that nothing is trained again
    result = run(tiny_config(), raw=raw, out=out, allow_missing=True)
    assert sorted(failure.case_id for failure in result.failures) == failed_in(out / "prepared") == bad
    summary = read_json(out / "summary.json")
    assert (summary["n_cases"], summary["failed"]) == (1, [broken.case_id]), "of fold 0, which is scored"
    assert result.report is not None
    html = result.report.read_text(encoding="utf-8")
    assert f"<strong>{broken.case_id}</strong>" in html
    assert other.case_id not in html
