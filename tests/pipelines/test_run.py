"""Everything joined, on a tiny phantom: what is made, what is resumed, what is refused."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from uumamba.config import RunConfig
from uumamba.data.case import Manifest
from uumamba.pipelines.run import SomeCasesMissing, run


@pytest.fixture(scope="module")
def finished(tiny_raw: Path, tiny_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def test_the_raw_folder_is_never_written_to(tiny_raw: Path, finished: Path) -> None:
    names = {path.name for path in tiny_raw.rglob("*") if path.is_file()}
    assert all(name.startswith("patient") or name == "Info.cfg" or name.endswith(".md") for name in names)


def test_a_case_that_cannot_be_used_stops_the_run_unless_it_may_be_missing(
    tiny_raw: Path, tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(tiny_raw, raw)
    broken = sorted((raw / "training").rglob("*_gt.nii.gz"))[0]
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(SomeCasesMissing, match=r"1 cases could not be prepared.*--allow-missing"):
        run(tiny_config(), raw=raw, out=tmp_path / "out")
    result = run(tiny_config(), raw=raw, out=tmp_path / "out", allow_missing=True)
    assert [failure.case_id for failure in result.failures] == [broken.name.removesuffix("_gt.nii.gz")]
    listed = json.loads((tmp_path / "out" / "prepared" / "failures.json").read_text(encoding="utf-8"))
    assert listed[0]["case_id"] == result.failures[0].case_id
    assert result.report is not None
    assert result.report.is_file()
