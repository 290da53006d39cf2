"""Inputs unlike the training data, from training to the warning."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.pipelines.run_files import MakeConfig, last_of, save_nifti
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.predict import predict
from uumamba.pipelines.prediction.segmented_case import UnusualCaseWarning
from uumamba.pipelines.prepare import prepare_dataset
from uumamba.pipelines.train import train
from uumamba.runtime.text_files import load_json
from uumamba.training.checkpoint import read_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def prepared(tiny_raw: Path, tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> PreparedFolder:
    out = tmp_path_factory.mktemp("unusual") / "prepared"
    prepare_dataset(tiny_config(), raw=tiny_raw, out=out, progress=False)
    return PreparedFolder(out)


@pytest.fixture(scope="module")
def model(prepared: PreparedFolder, tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("unusual") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uumamba.data.fingerprint.FEWEST_CASES", 4)
        train(tiny_config("training.epochs=1"), data=prepared.path, out=run, progress=False)
    return run


def test_a_run_stores_the_ranges_of_its_training_cases_alone(model: Path, prepared: PreparedFolder) -> None:
    stored = last_of(model).config["fingerprint"]
    spacings = [
        prepared.case(case.case_id).geometry.oriented_spacing_mm[0]
        for case in prepared.manifest.select(split="training")
    ]
    low, high = stored["lengths"]["spacing between slices"]
    assert min(spacings) / 1.25 <= low <= high <= max(spacings) * 1.25
    assert set(stored["volumes_ml"]) == set(prepared.manifest.structures)


def test_an_unusual_input_is_predicted_with_a_warning_and_a_record(model: Path, tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(1, 900, (40, 44, 3)).astype(np.int16)
    scan = save_nifti(tmp_path / "scan.nii.gz", voxels, (0.3, 0.3, 0.8))
    with pytest.warns(
        UnusualCaseWarning, match=r"scan is unlike the training data: spacing between slices 0\.8 mm, not"
    ):
        result = predict(model, [scan], out=tmp_path / "out")
    assert len(result.written) == 1
    remarks = load_json(tmp_path / "out" / "records" / "scan.json")["warnings"]
    assert any(remark.startswith("correlation of neighbouring voxels") for remark in remarks)


def test_a_run_of_an_older_version_without_ranges_resumes(
    model: Path, prepared: PreparedFolder, tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("training.epochs=1")
    train(config, data=prepared.path, out=tmp_path, progress=False)
    (path,) = tmp_path.rglob("last.safetensors")
    checkpoint = read_checkpoint(path)
    assert "fingerprint" not in checkpoint.config, "of fewer than 20 cases"
    save_checkpoint(path, replace(checkpoint, config=dict(checkpoint.config)))
    monkeypatch.setattr("uumamba.data.fingerprint.FEWEST_CASES", 4)
    train(config, data=prepared.path, out=tmp_path, resume=True, progress=False)
