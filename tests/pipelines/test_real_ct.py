"""Real CT pieces go through prepare, predict and evaluate with a model trained on the phantom, and stay in place.

Their labels are another model's output, and the model here is hardly trained: what is looked at is where things lie.
"""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from data_prep.aorta import STRUCTURES, read_aorta
from data_prep.phantoms.aorta.aorta_phantom import write_aorta_phantom
from uumamba.config import RunConfig, read_config
from uumamba.data.prepared import open_prepared
from uumamba.data.preprocess import PreprocessRecipe, restore_label
from uumamba.data.scan import read_label
from uumamba.pipelines.evaluate import evaluate_folder
from uumamba.pipelines.predict import predict
from uumamba.pipelines.prepare import prepare
from uumamba.pipelines.train import train

BRANCHES = {
    "aorta": "Zone5",
    "brachiocephalic_trunk": "Innominate",
    "common_carotid_artery_left": "LCC",
    "subclavian_artery_left": "LSA",
    "celiac_trunk": "Celiac",
    "superior_mesenteric_artery": "SMA",
}
AORTA_OF_TOTALSEGMENTATOR = 52

pytestmark = pytest.mark.slow  # a phantom is written and trained on: about a minute


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return read_config("aorta_cpu", ["training.epochs=1", "training.batches_per_epoch=2", "schedule.warmup_epochs=0"])


@pytest.fixture(scope="module")
def model(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on five phantom subjects; any quality will do."""
    folder = tmp_path_factory.mktemp("phantom")
    write_aorta_phantom(folder / "raw", cases=5)
    manifest, errors = read_aorta(folder / "raw")
    assert not errors
    prepare(manifest, recipe=config.preprocess.build(), out=folder / "prepared")
    train(config, data=folder / "prepared", out=folder / "run", fold="0", progress=False)
    return folder / "run"


@pytest.fixture(scope="module")
def crops(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two NIfTI pieces in CIS-UNet's layout, their vessels under AortaSeg24's values."""
    source, raw = real_data / "totalsegmentator", tmp_path_factory.mktemp("crops")
    if not source.is_dir():
        pytest.skip(f"real data: {source} is absent")
    dissected = source / "aorta_dissection"
    vessels = np.zeros(nib.load(dissected / "ct_cropped.nii.gz").shape, dtype=np.uint8)
    for name, structure in BRANCHES.items():
        vessels[np.asarray(nib.load(dissected / f"{name}.nii.gz").dataobj) > 0] = STRUCTURES[structure]
    whole = np.asarray(nib.load(source / "example_seg_fast.nii.gz").dataobj) == AORTA_OF_TOTALSEGMENTATOR
    labels = {1: vessels, 2: whole.astype(np.uint8) * STRUCTURES["Zone5"]}
    images = {1: dissected / "ct_cropped.nii.gz", 2: source / "example_ct_sm.nii.gz"}
    for number, image in images.items():
        shutil.copy(image, raw / f"Subject{number:03d}_CTA.nii.gz")
        label = nib.Nifti1Image(labels[number], nib.load(image).affine)
        nib.save(label, raw / f"Subject{number:03d}_Label.nii.gz")
    return raw


def centre_mm(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    return affine[:3, :3] @ np.argwhere(mask).mean(0) + affine[:3, 3]


def test_prepared_labels_come_back_to_within_half_a_voxel(model: Path, config: RunConfig, crops: Path) -> None:
    manifest, errors = read_aorta(crops)
    assert not errors
    out = model.parent / "prepared_crops"
    recipe = PreprocessRecipe.from_json(_recipe_of(model))
    assert not prepare(manifest, recipe=recipe, out=out).failures
    for case in manifest.cases:
        assert case.label is not None
        label = read_label(case.label, structures=STRUCTURES, case_id=case.case_id)
        prepared = open_prepared(out, case.case_id)
        back = restore_label(np.asarray(prepared.label), prepared.geometry)
        assert back.shape == label.array.shape
        apart = centre_mm(back > 0, label.affine) - centre_mm(label.array > 0, label.affine)
        assert np.abs(apart).max() < 0.5 * min(label.spacing_mm)


def test_predictions_lie_on_the_scans_and_are_scored_there(model: Path, crops: Path, tmp_path: Path) -> None:
    images = sorted(crops.glob("*_CTA.nii.gz"))
    assert not predict(model, images, out=tmp_path / "predictions").failures
    labels = tmp_path / "labels"
    labels.mkdir()
    for image in images:
        name = image.name.removesuffix(".nii.gz")
        scan, prediction = nib.load(image), nib.load(tmp_path / "predictions" / f"{name}.nii.gz")
        assert prediction.shape == scan.shape
        half_a_voxel = 0.5 * min(scan.header.get_zooms()[:3])
        corners = np.array([[0, 0, 0, 1], [*(size - 1 for size in scan.shape), 1]]).T
        assert np.abs((prediction.affine - scan.affine) @ corners).max() < half_a_voxel
        shutil.copy(crops / name.replace("_CTA", "_Label.nii.gz"), labels / f"{name}.nii.gz")
    scores = evaluate_folder(tmp_path / "predictions", labels, tmp_path, structures=STRUCTURES)
    assert not scores.failures
    assert {row.case_id for row in scores.rows} == {"Subject001_CTA", "Subject002_CTA"}


def test_a_dicom_series_is_predicted_on_its_own_grid(model: Path, real_data: Path, tmp_path: Path) -> None:
    series = real_data / "totalsegmentator" / "example_ct_dicom"
    if not series.is_dir():
        pytest.skip(f"real data: {series} is absent")
    result = predict(model, [series], out=tmp_path)
    assert not result.failures
    prediction = nib.load(next(tmp_path.glob("*.nii.gz")))
    scan = SimpleITK.ReadImage(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(series)))
    assert prediction.shape == scan.GetSize() == (512, 512, 20)
    for corner in np.ndindex(2, 2, 2):
        index = [int(end * (size - 1)) for end, size in zip(corner, scan.GetSize(), strict=True)]
        lps_mm = np.array(scan.TransformIndexToPhysicalPoint(index))
        ras_mm = prediction.affine[:3, :3] @ index + prediction.affine[:3, 3]
        assert np.abs(ras_mm - lps_mm * (-1, -1, 1)).max() < 0.5 * min(scan.GetSpacing())


def _recipe_of(model: Path) -> dict[str, object]:
    import json

    stored: dict[str, object] = json.loads((model / "fold_0" / "config.json").read_text(encoding="utf-8"))["recipe"]
    return stored
