"""Everything joined, on a tiny phantom: what is made, what is resumed, what is refused."""

import csv
import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from uumamba.config import RunConfig
from uumamba.data.case import Manifest
from uumamba.data.scan import Scan, read_image
from uumamba.pipelines.datasets import read_dataset
from uumamba.pipelines.run import SomeCasesMissing, run
from uumamba.runtime.errors import CaseError, UsageError, UumambaError
from uumamba.runtime.stop import StoppedOnRequest
from uumamba.training.checkpoint import read_checkpoint, save_checkpoint

MakeConfig = Callable[..., RunConfig]


def digests(folder: Path) -> dict[Path, str]:
    """A checksum of every file."""
    return {path: sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def raw_before(tiny_raw: Path) -> dict[Path, str]:
    """The raw folder's checksums before anything is run."""
    return digests(tiny_raw)


@pytest.fixture(scope="module")
def finished(
    tiny_raw: Path, raw_before: object, tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("whole")
    run(tiny_config(), raw=tiny_raw, out=out)
    return out


def test_run_makes_every_folder_and_file_of_the_design(finished: Path) -> None:
    for name in ("prepared", "run", "predictions", "scores.csv", "summary.json", "report.html"):
        assert (finished / name).exists(), name


def test_run_scores_the_validation_cases_of_fold_0_and_nothing_else(finished: Path) -> None:
    manifest = Manifest.read(finished / "prepared")
    expected = {case.case_id for case in manifest.select(split="training", fold=0)}
    with (finished / "scores.csv").open(encoding="utf-8") as file:
        assert {row["case_id"] for row in csv.DictReader(file)} == expected
    assert {path.name for path in (finished / "predictions").glob("*.nii.gz")} == {
        f"{name}.nii.gz" for name in expected
    }


def test_predictions_lie_on_the_grid_of_their_scans_with_the_same_header_codes(finished: Path) -> None:
    manifest = Manifest.read(finished / "prepared")
    for case in manifest.select(fold=0):
        scan, label = nib.load(case.image), nib.load(finished / "predictions" / f"{case.case_id}.nii.gz")
        assert scan.shape == label.shape
        assert np.array_equal(scan.affine, label.affine)
        assert np.array_equal(scan.header.get_zooms(), label.header.get_zooms())
        for code in ("qform_code", "sform_code"):
            assert scan.header[code] == label.header[code]


def test_a_second_call_reuses_what_stands_and_gives_the_same_scores(
    finished: Path, tiny_raw: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    before = (finished / "scores.csv").read_bytes()
    checkpoint = finished / "run" / "fold_0" / "last.safetensors"
    weights = checkpoint.read_bytes()
    run(tiny_config(), raw=tiny_raw, out=finished)
    assert checkpoint.read_bytes() == weights
    assert (finished / "scores.csv").read_bytes() == before


def test_the_raw_folder_is_never_written_to(tiny_raw: Path, raw_before: dict[Path, str], finished: Path) -> None:
    assert digests(tiny_raw) == raw_before


def test_an_output_in_the_raw_folder_is_refused(
    tiny_raw: Path, raw_before: dict[Path, str], tiny_config: MakeConfig
) -> None:
    with pytest.raises(UsageError, match=r"lies in the raw folder .* which is never written to; choose another --out"):
        run(tiny_config(), raw=tiny_raw, out=tiny_raw / "training" / "out")
    assert digests(tiny_raw) == raw_before


def test_an_unknown_fold_is_refused_before_anything_is_made(
    tiny_raw: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="There is no fold '7'"):
        run(tiny_config(), raw=tiny_raw, out=tmp_path / "out", fold="7")
    assert not (tmp_path / "out").exists()


def test_a_fold_without_cases_is_refused_before_anything_is_made(
    tiny_raw: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(tiny_raw, raw)
    for patient in sorted((raw / "training").glob("patient*"))[1:]:
        shutil.rmtree(patient)
    with pytest.raises(UsageError, match=r"Fold \d of phantom has \d cases to train on and \d to validate on; prepare"):
        run(tiny_config(), raw=raw, out=tmp_path / "out", fold="cv")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fold", ["0", "1"])
def test_another_configuration_is_refused_before_anything_is_changed(
    fold: str, finished: Path, tiny_raw: Path, tiny_config: MakeConfig
) -> None:
    before = digests(finished)
    other = tiny_config("preprocess.spacing_mm=[null,4.0,4.0]")
    with pytest.raises(UsageError, match=r"got .*'preprocess.spacing_mm': .*None, 4.0, 4.0"):
        run(other, raw=tiny_raw, out=finished, fold=fold)
    assert digests(finished) == before


@pytest.mark.parametrize("stage", ["prepare", "train", "predict"])
def test_a_request_to_stop_is_followed_in_every_stage(
    stage: str, finished: Path, tiny_raw: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    def stop(sentence: str) -> None:
        if sentence.startswith(stage):
            signal.raise_signal(signal.SIGTERM)

    out = Path(shutil.copytree(finished, tmp_path / "out"))
    (out / "report.html").unlink()
    with pytest.raises(
        StoppedOnRequest, match=r"Stopped by SIGTERM (before fold 0|after predicting 0 of 4)"
    ) as stopped:
        run(tiny_config(), raw=tiny_raw, out=out, say=stop)
    assert stopped.value.exit_code == 75
    assert not (out / "report.html").exists()


def make_five_folds(run_folder: Path) -> None:
    """Let fold 0's weights stand for every fold's."""
    trained = read_checkpoint(run_folder / "fold_0" / "last.safetensors")
    for fold in ("1", "2", "3", "4"):
        (run_folder / f"fold_{fold}").mkdir()
        own = replace(trained, config=trained.config | {"fold": fold})
        save_checkpoint(run_folder / f"fold_{fold}" / "last.safetensors", own)


@pytest.mark.slow
def test_a_case_that_cannot_be_predicted_is_listed_by_predictions_scores_and_report_whatever_its_fold(
    finished: Path, tiny_raw: Path, tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    make_five_folds(out / "run")
    manifest = Manifest.read(out / "prepared")
    bad = sorted(manifest.select(fold=fold)[0].case_id for fold in (0, 3))

    def read_all_but_the_bad(path: Path, *, case_id: str) -> Scan:
        if case_id in bad:
            raise CaseError(case_id, "it cannot be read", "restore it")
        return read_image(path, case_id=case_id)

    monkeypatch.setattr("uumamba.pipelines.predict.read_image", read_all_but_the_bad)
    result = run(tiny_config(), raw=tiny_raw, out=out, fold="cv")
    assert sorted(failure.case_id for failure in result.failures) == bad
    for folder in (out, out / "predictions"):
        listed = json.loads((folder / "failures.json").read_text(encoding="utf-8"))
        assert sorted(entry["case_id"] for entry in listed) == bad
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (summary["n_cases"], summary["failed"]) == (18, bad)
    assert all(f"<strong>{name}</strong>: it cannot be read" in (out / "report.html").read_text() for name in bad)


def test_when_no_case_can_be_predicted_the_reason_is_given(
    finished: Path, tiny_raw: Path, tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *, case_id: str) -> Scan:
        raise CaseError(case_id, "it cannot be read", "restore it")

    monkeypatch.setattr("uumamba.pipelines.predict.read_image", refuse)
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    with pytest.raises(UumambaError, match=r"No case could be scored; the first failure is .*: it cannot be read"):
        run(tiny_config(), raw=tiny_raw, out=out)
    assert not (out / "scores.csv").exists()


def test_a_case_that_cannot_be_used_stops_the_run_unless_it_may_be_missing(
    tiny_raw: Path, tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(tiny_raw, raw)
    manifest, _ = read_dataset("phantom", raw)
    broken, other = (manifest.select(fold=fold)[0].label for fold in (0, 1))
    assert broken is not None
    assert other is not None
    other.unlink()
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(SomeCasesMissing, match=r"2 cases could not be prepared.*--allow-missing"):
        run(tiny_config(), raw=raw, out=tmp_path / "out")
    result = run(tiny_config(), raw=raw, out=tmp_path / "out", allow_missing=True)
    name, of_fold_1 = (path.name.removesuffix("_gt.nii.gz") for path in (broken, other))
    assert sorted(failure.case_id for failure in result.failures) == sorted([name, of_fold_1])
    listed = json.loads((tmp_path / "out" / "prepared" / "failures.json").read_text(encoding="utf-8"))
    assert sorted(entry["case_id"] for entry in listed) == sorted([name, of_fold_1])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["n_cases"], summary["failed"]) == (3, [name]), "of fold 0, which is scored"
    assert result.report is not None
    html = result.report.read_text(encoding="utf-8")
    assert f"<strong>{name}</strong>" in html
    assert of_fold_1 not in html
