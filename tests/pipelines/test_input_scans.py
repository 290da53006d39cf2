"""Inputs as people have them: studies, zip files, several paths, cines next to their frames."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import nibabel as nib
import numpy as np
import pytest

from tests.data.formats.dicom_files import make_slices, write_slices
from tests.pipelines.run_files import Refused, save_nifti
from uumamba.data.scan import ScanWarning
from uumamba.data.series_choice import SeriesWish
from uumamba.pipelines.predict import predict
from uumamba.pipelines.prediction.input_scans import find_inputs, unpack_zips
from uumamba.runtime.errors import UsageError
from uumamba.runtime.stop import StoppedOnRequest, StopRequest


def save_scan(path: Path) -> Path:
    voxels = np.random.default_rng(0).integers(1, 900, (40, 44, 3)).astype(np.int16)
    return save_nifti(path, voxels, (3.0, 3.0, 8.0))


def write_study(folder: Path) -> Path:
    """Write a study with a short axis of MR and a CT, in two sub-folders."""
    spacing = {"PixelSpacing": [3, 3], "RescaleIntercept": 0, "StudyInstanceUID": "1.8"}
    for number, modality in ((1, "CT"), (2, "MR")):
        tags = {"Modality": modality, "SeriesInstanceUID": f"1.8.{number}", "SeriesNumber": number}
        (folder / "DICOM" / f"S{number}").mkdir(parents=True)
        write_slices(folder / "DICOM" / f"S{number}", make_slices(3, **spacing, **tags), name="IM{}")
    (folder / "README").write_text("exported")
    return folder


def write_zip(path: Path, folder: Path) -> Path:
    with ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def read_label(path: Path) -> Any:
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_zipped_study_is_predicted_as_its_series_and_recorded_by_the_zip(
    tiny_run: Path, tmp_path: Path, scratch: Path
) -> None:
    study = write_study(tmp_path / "folder")
    packed = write_zip(tmp_path / "patient 7.zip", study)
    save_scan(tmp_path / "scans" / "a.nii.gz")
    scans = write_zip(tmp_path / "scans.zip", tmp_path / "scans")
    with pytest.warns(ScanWarning, match="patient 7|folder|DICOM") as caught:
        result = predict(tiny_run, [packed, scans, study, study / "DICOM" / "S2"], out=tmp_path / "out")
    assert not result.failures
    assert sum("is number 2, heart, MR" in str(each.message) for each in caught) == 2
    assert [path.name for path in result.written] == ["patient 7.nii.gz", "a.nii.gz", "folder.nii.gz", "S2.nii.gz"]
    first, _, third, alone = map(read_label, result.written)
    assert np.array_equal(first, alone)
    assert np.array_equal(third, alone)
    records = [json.loads((tmp_path / "out/records" / f"{name}.json").read_text()) for name in ("patient 7", "a")]
    assert records[0]["images"][0].startswith(str(packed))
    assert records[1]["images"] == [str(scans / "a.nii.gz")]
    assert "the series used is number 2, heart, MR" in records[0]["warnings"][0]
    assert list(scratch.iterdir()) == []


def test_a_bad_zip_ends_the_call_before_anything_is_written(tmp_path: Path, scratch: Path, refused: Refused) -> None:
    with ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../evil.nii", b"x")
    with refused("--input"):
        predict("acdc", [save_scan(tmp_path / "a.nii.gz"), tmp_path / "bad.zip"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert list(scratch.iterdir()) == []


def test_a_stop_removes_the_unpacked_files(tmp_path: Path, scratch: Path) -> None:
    save_scan(tmp_path / "in" / "a.nii.gz")
    packed = write_zip(tmp_path / "a.zip", tmp_path / "in")
    with StopRequest():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StoppedOnRequest):
            predict("acdc", [packed], out=tmp_path / "out")
    assert list(scratch.iterdir()) == []


def test_studies_of_several_patients_are_named_by_their_paths(tmp_path: Path) -> None:
    studies = [write_study(tmp_path / name) for name in ("p1", "p2")]
    with pytest.warns(ScanWarning):
        assert list(find_inputs(studies, series=SeriesWish(modality="MR"))) == ["p1", "p2"]


def test_a_zip_of_one_series_is_named_by_the_zip(tmp_path: Path, scratch: Path) -> None:
    shutil.copytree(write_study(tmp_path / "s") / "DICOM" / "S2", tmp_path / "one" / "x" / "y")
    packed = write_zip(tmp_path / "p9.zip", tmp_path / "one")
    with unpack_zips([packed]) as zips:
        assert list(find_inputs([packed], zips=zips)) == ["p9"]


def test_a_series_wanted_of_no_study_is_refused(tmp_path: Path, refused: Refused) -> None:
    scan = save_scan(tmp_path / "a.nii.gz")
    with refused("--series", got="5"):
        find_inputs([scan], series=SeriesWish(["5"]))


def test_several_paths_after_one_option_are_all_predicted(tiny_run: Path, tmp_path: Path) -> None:
    """In a process without HOME, with temporary files elsewhere."""
    names = [str(save_scan(tmp_path / f"{name}.nii.gz")) for name in "ab"]
    save_scan(tmp_path / "in" / "c.nii.gz")
    packed = write_zip(tmp_path / "c.zip", tmp_path / "in")
    environment = {key: value for key, value in os.environ.items() if key != "HOME"}
    (tmp_path / "tmp").mkdir()
    environment |= {"TMPDIR": str(tmp_path / "tmp"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "uumamba", "predict", str(tiny_run), "--device", "cpu"]
    command += ["--input", *names, str(packed), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {"a.nii.gz", "b.nii.gz", "c.nii.gz"}
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_missing_zip_is_refused_as_any_missing_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--input: got .*no\.zip"):
        predict("acdc", [tmp_path / "no.zip"], out=tmp_path / "out")
