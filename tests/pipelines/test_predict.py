"""Prediction: input files, grids, and files that are never replaced."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch

from tests.pipelines.run_files import MakeConfig, Refused, failed_in, last_of, save_nifti
from uumamba.data.case import Case, Manifest
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.datasets import read_dataset
from uumamba.pipelines.evaluate import evaluate_folder
from uumamba.pipelines.predict import predict
from uumamba.pipelines.prediction.input_scans import find_inputs
from uumamba.pipelines.prepare import prepare
from uumamba.pipelines.train import train
from uumamba.runtime.errors import CaseError, UumambaError
from uumamba.training.checkpoint import save_checkpoint


def save_scan(path: Path, *, value: int | None = None) -> Path:
    shape = (40, 44, 3)
    voxels = np.random.default_rng(0).integers(1, 900, shape) if value is None else np.full(shape, value)
    return save_nifti(path, voxels.astype(np.int16), (3.0, 3.0, 8.0))


def test_a_scan_is_never_replaced_by_its_label_map(tmp_path: Path, refused: Refused) -> None:
    scan = save_scan(tmp_path / "in" / "scan.nii.gz")
    before = scan.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for given, out in ((scan, tmp_path / "in"), (tmp_path / "in", tmp_path / "link")):
        with refused("--out", got=out):
            predict("acdc", [given], out=out)
    assert scan.read_bytes() == before


@pytest.mark.parametrize("split", ["training", "test"])
def test_a_manifests_label_is_never_replaced_by_a_label_map(tmp_path: Path, split: Any, refused: Refused) -> None:
    label = save_scan(tmp_path / "labels" / "a.nii.gz")
    cases = (
        Case("a", "a", "x", save_scan(tmp_path / "images" / "first.nii.gz")),
        Case("b", "b", "x", save_scan(tmp_path / "images" / "second.nii.gz"), label, split=split),
    )
    Manifest("toy", "MRI", {"LV": 1}, cases).write(tmp_path / "list.json")
    with refused("--out", got=tmp_path / "labels"):
        predict("acdc", [tmp_path / "list.json"], out=tmp_path / "labels", split="training")


def test_a_failed_case_is_listed_and_keeps_no_old_prediction(tiny_run: Path, tmp_path: Path) -> None:
    values = {"black": 0, "blank": 5, "good": None}
    scans = [save_scan(tmp_path / "in" / f"{name}.nii.gz", value=value) for name, value in values.items()]
    (tmp_path / "out" / "probabilities").mkdir(parents=True)
    for name in values:
        for folder in ("", "probabilities"):
            (tmp_path / "out" / folder / f"{name}.nii.gz").write_bytes(b"old")
    result = predict(tiny_run, scans, out=tmp_path / "out")
    assert [failure.case_id for failure in result.failures] == ["black", "blank"]
    assert failed_in(tmp_path / "out") == ["black", "blank"]
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    names = {"labels.txt", "labels.ctbl", "labels.json", "volumes.csv", "volumes.json"}
    assert written == {"good.nii.gz", "failures.json", "records/good.json", "previews/good.png", *names}
    assert result.written[0].read_bytes() != b"old"


def test_any_json_is_a_manifest(tmp_path: Path) -> None:
    scan = save_scan(tmp_path / "first.nii.gz")
    Manifest("toy", "MRI", {"LV": 1}, (Case("a", "a", "x", scan, fold=2),)).write(tmp_path / "split.json")
    assert find_inputs([tmp_path / "split.json"], fold=2) == {"a": scan}


def test_of_an_acdc_patients_folder_only_the_frames_are_scans(tmp_path: Path) -> None:
    patient = tmp_path / "patient001"
    for name in ("4d", "frame01", "frame01_gt", "frame12", "frame12_gt"):
        save_scan(patient / f"patient001_{name}.nii.gz")
    (patient / "._patient001_frame01.nii.gz").touch()
    with pytest.warns(UserWarning, match="left out are cines next to their frames: patient001_4d"):
        assert list(find_inputs([patient])) == ["patient001_frame01", "patient001_frame12"]
    assert list(find_inputs([patient / "patient001_frame01_gt.nii.gz"])) == ["patient001_frame01_gt"], "by its name"


def test_a_diverged_model_ends_the_call_with_no_error_of_a_case(tiny_run: Path, tmp_path: Path) -> None:
    checkpoint = last_of(tiny_run)
    diverged = {name: torch.full_like(tensor, torch.nan) for name, tensor in checkpoint.net.items()}
    save_checkpoint(tmp_path / "last.safetensors", replace(checkpoint, net=diverged, ema=None))
    with pytest.raises(UumambaError) as error:
        predict(tmp_path / "last.safetensors", [save_scan(tmp_path / "scan.nii.gz")], out=tmp_path / "out")
    assert not isinstance(error.value, CaseError)


def test_label_values_above_255_are_classes_in_between(tiny_raw: Path, tiny_config: MakeConfig, tmp_path: Path) -> None:
    manifest, _ = read_dataset("phantom", tiny_raw)
    values = {"RV": 700, "MYO": 5, "LV": 1000}
    lookup = np.array([0, *(values[name] for name in manifest.structures)], np.uint16)
    cases = []
    for case in manifest.select(split="training"):
        assert case.label is not None
        scan: Any = nib.load(case.label)
        label = lookup[np.asarray(scan.dataobj)]
        header = scan.header.copy()
        header.set_data_dtype(np.uint16)
        path = tmp_path / "labels" / case.label.name
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(label, scan.affine, header), path)
        cases.append(replace(case, label=path))
    config = tiny_config("training.epochs=1")
    changed = replace(manifest, structures=values, cases=tuple(cases))
    prepare(changed, recipe=config.preprocess.build(), out=tmp_path / "prepared", raw=tiny_raw, progress=False)
    prepared = PreparedFolder(tmp_path / "prepared")
    assert prepared.manifest.classes == {"RV": 2, "MYO": 1, "LV": 3}
    assert all(set(np.unique(prepared.case(case.case_id).label)) == {0, 1, 2, 3} for case in cases)
    train(config, data=prepared.path, out=tmp_path / "run", progress=False)
    result = predict(tmp_path / "run", [prepared.path], out=tmp_path / "maps", split="training", case_fold=0)
    for path in result.written:
        found: Any = nib.load(path)
        assert found.get_data_dtype() == np.uint16
        assert set(np.unique(found.dataobj)) <= {0, *values.values()}
    scores = evaluate_folder(tmp_path / "maps", prepared.path, tmp_path / "scores", split="training", fold=0)
    own = evaluate_folder(tmp_path / "labels", tmp_path / "labels", tmp_path / "own")
    assert {row.structure for row in scores.rows} == {*values}
    assert {(row.structure, row.dice) for row in own.rows} == {(f"label_{value}", 1.0) for value in values.values()}


def test_an_assumed_spacing_is_used_where_a_header_has_none(tiny_run: Path, tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(np.random.default_rng(0).integers(0, 200, (3, 40, 40)).astype(np.int16))
    image.SetSpacing((1.5, 1.5, 9.0))
    for name in ("known", "unknown"):
        SimpleITK.WriteImage(image, tmp_path / f"{name}.mha")
    path = tmp_path / "unknown.mha"
    path.write_bytes(path.read_bytes().replace(b"ElementSpacing = 1.5 1.5 9\n", b""))
    (failure,) = predict(tiny_run, [path], out=tmp_path / "out").failures
    assert (failure.key, "--assume-spacing Z,Y,X" in failure.fix) == ("spacing_mm", True)
    with pytest.warns(UserWarning, match="the assumed 1.5 x 1.5 x 9 mm is used"):
        both = predict(tiny_run, [tmp_path], out=tmp_path / "out", assume_spacing_mm=(1.5, 1.5, 9.0))
    known, unknown = (np.asarray(nib.load(written).dataobj) for written in both.written)
    assert np.array_equal(known, unknown)


def test_predictions_are_on_the_grids_of_real_ct_and_of_a_dicom_series(
    tiny_run: Path, find_real: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = find_real("totalsegmentator")
    scans = [folder / "aorta_dissection" / "ct_cropped.nii.gz", folder / "example_ct_sm.nii.gz"]
    series = folder / "example_ct_dicom"
    assert not predict(tiny_run, [*scans, series], out=tmp_path).failures
    for path in scans:
        scan, prediction = nib.load(path), nib.load(tmp_path / path.name)
        assert prediction.shape == scan.shape
        corners = np.array([[0, 0, 0, 1], [*(size - 1 for size in scan.shape), 1]]).T
        assert np.abs((prediction.affine - scan.affine) @ corners).max() < 0.5 * min(scan.header.get_zooms()[:3])
    prediction = nib.load(tmp_path / f"{series.name}.nii.gz")
    scan = SimpleITK.ReadImage(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(series)))
    assert prediction.shape == scan.GetSize()
    for corner in np.ndindex(2, 2, 2):
        index = [int(end * (size - 1)) for end, size in zip(corner, scan.GetSize(), strict=True)]
        ras_mm = np.array(scan.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        found_mm = prediction.affine[:3, :3] @ index + prediction.affine[:3, 3]
        assert np.abs(found_mm - ras_mm).max() < 0.5 * min(scan.GetSpacing())
