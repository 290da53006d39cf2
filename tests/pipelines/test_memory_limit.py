"""Prediction within a limit of memory, and probabilities in files."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from tests.pipelines.limited_memory import predict_alone, save_model
from tests.pipelines.run_files import Refused, save_nifti
from uumamba.inference.memory_plan import GB
from uumamba.pipelines.models import load_predictor
from uumamba.pipelines.predict import predict
from uumamba.runtime.memory_shortage import measure_resident_bytes

SPACING_MM = (2.0, 2.0, 3.0)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    voxels = np.random.default_rng(0).integers(-900, 900, (30, 41, 12)).astype(np.int16)
    voxels[:3] = voxels[:, :4] = voxels[:, -2:] = voxels[..., :1] = 0
    return save_nifti(tmp_path / "in" / "a.nii.gz", voxels, SPACING_MM)


@pytest.mark.parametrize("patch_size", [(16, 16), (4, 16, 16)])
def test_stored_probabilities_are_those_in_memory_to_1e_5(
    patch_size: tuple[int, ...], scan: Path, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "model.safetensors", patch_size=patch_size, spacing_mm=(None, 1.5, 2.5), classes=4)
    predict(model, [scan], out=tmp_path / "out", save_probabilities=True, progress=False)
    image, stored = nib.load(scan), nib.load(tmp_path / "out" / "probabilities" / "a.nii.gz")
    expected = load_predictor(model)(
        np.asarray(image.dataobj), spacing_mm=SPACING_MM, affine=image.affine, probabilities=True
    )
    found = np.moveaxis(stored.get_fdata(), -1, 0)
    np.testing.assert_allclose(found, expected.probabilities, atol=1e-5)
    np.testing.assert_allclose(found[:, :3], np.array([1, 0, 0, 0])[:, None, None, None] + 0 * found[:, :3], atol=1e-6)
    assert np.array_equal(nib.load(tmp_path / "out" / "a.nii.gz").dataobj, expected.label)
    np.testing.assert_array_equal(stored.affine, image.affine)
    assert json.loads(stored.header.extensions[0].get_content()) == {
        "names": ["background", "structure1", "structure2", "structure3"]
    }
    other = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "out" / "probabilities" / "a.nii.gz")))
    np.testing.assert_allclose(other.T, stored.get_fdata(), atol=1e-6)
    assert {path.name for path in (tmp_path / "out" / "probabilities").iterdir()} == {"a.nii.gz"}


def test_strips_give_the_label_and_probabilities_of_the_whole_image(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model.safetensors", patch_size=(16, 32, 32), spacing_mm=(3.0, 1.5, 2.0), classes=24)
    image = np.random.default_rng(0).integers(-900, 900, (160, 160, 24)).astype(np.int16)
    predictor = load_predictor(model)
    sizes: list[int] = []
    predictor.nets[0].register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    whole = predictor(image, spacing_mm=SPACING_MM, probabilities=True)
    windows = sum(sizes)
    predictor.memory_limit_gb = measure_resident_bytes() / GB + 0.15  # 0.2 for the whole image
    found = predictor(image, spacing_mm=SPACING_MM, probabilities=True)
    assert sum(sizes) > 2.2 * windows, "the border windows of strips are repeated"
    np.testing.assert_allclose(found.probabilities, whole.probabilities, atol=1e-5)
    assert (found.label == whole.label).mean() > 0.999


def test_a_limit_that_cannot_be_kept_is_an_error_of_the_case(scan: Path, tmp_path: Path, refused: Refused) -> None:
    model = save_model(tmp_path / "model.safetensors", patch_size=(16, 16), spacing_mm=(None, 1.5, 2.5), classes=4)
    (failure,) = predict(model, [scan], out=tmp_path / "out", memory_limit_gb=0.05, progress=False).failures
    assert (failure.case_id, failure.key, failure.got) == ("a", "memory_limit_gb", 0.05)
    with refused("memory_limit_gb", got=0):
        load_predictor(model, memory_limit_gb=0)
    limit_gb = measure_resident_bytes() / 1e9 + 0.5
    assert not predict(model, [scan], out=tmp_path / "out", memory_limit_gb=limit_gb, progress=False).failures


def test_prediction_starts_no_process_and_uses_no_shared_memory(scan: Path, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model.safetensors", patch_size=(16, 16), spacing_mm=(None, 1.5, 2.5), classes=4)
    code = f"""
import sys
forbidden = ("os.fork", "os.posix_spawn", "subprocess.Popen", "os.exec", "_posixshmem")
def refuse(event, args):
    opened = str(args[0]) if event == "open" else ""
    assert not event.startswith(forbidden) and not opened.startswith("/dev/shm"), (event, args)
from uumamba.pipelines.predict import predict
sys.addaudithook(refuse)
out = {str(tmp_path / "out")!r}
result = predict({str(model)!r}, [{str(scan)!r}], out=out, save_probabilities=True, progress=False)
assert not result.failures, result.failures
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def large_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a scan of 512 x 512 x 600 voxels: waves in air, whose constant probabilities are compressed fast."""
    voxels = np.full((512, 512, 600), -900, dtype=np.int16, order="F")
    wave = 400 * np.sin(np.arange(256) / 20)
    for z in range(600):
        voxels[128:384, 128:384, z] = wave[:, None] + np.roll(wave, z)
    path = tmp_path_factory.mktemp("scans") / "a.nii"
    nib.save(nib.Nifti1Image(voxels, np.diag([0.7, 0.7, 1.0, 1.0])), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("save_probabilities", "most_gib"), [(False, 1.2), (True, 2.0)])
def test_a_large_scan_of_many_classes_keeps_to_the_limit(
    save_probabilities: bool, most_gib: float, large_scan: Path, tmp_path: Path
) -> None:
    model = save_model(
        tmp_path / "model.safetensors",
        patch_size=(16, 64, 64),
        spacing_mm=(3.0, 3.0, 3.0),
        classes=24,
        sharpness=100.0,
        overrides=("inference.postprocess=[union,structure1,structure2]",),
    )
    limit_gb = most_gib * 2**30 / GB
    options = {"save_probabilities": save_probabilities, "memory_limit_gb": limit_gb}
    found = predict_alone(model, large_scan, tmp_path / "out", **options)
    assert found["peak_mib"] < 1024 * most_gib, found
    assert found["structures"] > 4, found
