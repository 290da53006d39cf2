"""Tests of the models in the package."""

import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from benchmarks.sunnybrook import find_cines, write_cine
from uumamba.cli import main
from uumamba.metrics import dice_coefficient
from uumamba.pipelines import load_predictor
from uumamba.pipelines.models import SHIPPED, WEIGHTS_NAME, checkpoint_paths, list_shipped, shipped_models
from uumamba.pipelines.predict import predict
from uumamba.pipelines.prediction.finished_cases import hash_model
from uumamba.pipelines.prediction.page import CARD_SECTIONS, describe_model
from uumamba.training import read_checkpoint

FRAME = "acdc/training/patient{0}/patient{0}_frame{1}"
MOST_BYTES = 16_000_000


def test_acdc_is_shipped() -> None:
    assert "acdc" in shipped_models()


@pytest.mark.parametrize("name", shipped_models())
def test_a_shipped_model_is_small_in_half_precision_and_has_a_card_and_a_licence(name: str) -> None:
    weights = SHIPPED / name / "model.safetensors"
    assert weights.stat().st_size <= MOST_BYTES
    stored = read_checkpoint(weights)
    assert {each.dtype for each in stored.net.values() if each.is_floating_point()} == {torch.float16}
    assert stored.ema is None
    assert not stored.optimizer
    card, licence = ((SHIPPED / name / file).read_text(encoding="utf-8") for file in ("CARD.md", "LICENSE"))
    assert stored.config["licence"] in card
    assert stored.config["licence"] in licence
    assert stored.config["reference"] in licence
    assert "/" not in str(stored.config["run"]["name"])


def test_the_model_of_acdc_labels_a_phantom_on_its_grid(tiny_raw: Path) -> None:
    path = sorted(tiny_raw.rglob("patient001_frame*_gt.nii.gz"))[0]
    image, label = nib.load(str(path).replace("_gt", "")), np.asarray(nib.load(path).dataobj)
    spacing_mm = image.header.get_zooms()[:3]
    predictor = load_predictor("acdc")
    assert predictor.postprocess is not None
    found = predictor(np.asarray(image.dataobj), spacing_mm=spacing_mm).label
    assert found.shape == label.shape
    assert set(np.unique(found)) <= {0, 1, 2, 3}


@pytest.mark.parametrize(("patient", "frame"), [("001", "01"), ("001", "12")])
def test_the_model_of_acdc_segments_a_real_frame(patient: str, frame: str, real_data: Path) -> None:
    path = real_data / FRAME.format(patient, frame)
    image, label = nib.load(f"{path}.nii.gz"), np.asarray(nib.load(f"{path}_gt.nii.gz").dataobj)
    found = load_predictor("acdc")(np.asarray(image.dataobj), spacing_mm=image.header.get_zooms()[:3]).label
    assert min(dice_coefficient(found == value, label == value) for value in (1, 2, 3)) > 0.7


def test_shipped_models_are_listed_with_structures_licence_and_card(capsys: pytest.CaptureFixture[str]) -> None:
    (acdc,) = [each for each in list_shipped() if each["name"] == "acdc"]
    assert acdc["structures"] == "RV, MYO, LV"
    assert acdc["licence of the weights"] == "CC BY-NC-SA 4.0"
    assert Path(acdc["card"]).is_file()
    with pytest.raises(SystemExit, match="0"):
        main(["models"])
    assert f"card: {acdc['card']}" in capsys.readouterr().out


def test_a_path_named_like_a_model_wins_and_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_run: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acdc").mkdir()
    assert checkpoint_paths("acdc") == [SHIPPED / "acdc" / "model.safetensors"], "a folder without a checkpoint"
    shutil.copytree(tiny_run, tmp_path / "acdc", dirs_exist_ok=True)
    with pytest.warns(UserWarning, match=r"MODEL: acdc is your path of this name, not the shipped model"):
        (path,) = checkpoint_paths("acdc")
    assert not path.is_relative_to(SHIPPED)


@pytest.mark.parametrize("name", shipped_models())
def test_a_shipped_model_predicts_channels_last_with_the_same_labels(name: str) -> None:
    fast = load_predictor(name)
    plain = load_predictor(name)
    plain.channels_last, plain.precision, fast.precision = False, "float32", "float32"
    plain.nets = [deepcopy(net).to(memory_format=torch.contiguous_format) for net in fast.nets]
    noise = np.random.default_rng(0).normal(size=(1, 2, 64, 64))  # a flat image would enlarge its rounding
    blob = (noise + 3 * np.exp(-((np.mgrid[:2, -32:32, -32:32][1:] / 12.0) ** 2).sum(axis=0))).astype(np.float32)
    assert fast.channels_last
    found, expected = (each.prepared_probabilities(blob) for each in (fast, plain))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(found.argmax(axis=0), expected.argmax(axis=0))


@pytest.mark.parametrize("name", shipped_models())
def test_a_page_has_use_figures_limits_and_licence_of_a_shipped_model(name: str) -> None:
    texts = describe_model(name, hash_model([SHIPPED / name / WEIGHTS_NAME]))
    assert {text.split(":")[0] for text in texts} == {*CARD_SECTIONS}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::uumamba.data.warn.ScanWarning")
@pytest.mark.parametrize("study", ["SCD0000101", "SCD0000301"])
def test_left_ventricles_of_dicom_cines_have_the_volumes_of_their_contours(
    study: str, real_data: Path, find_real: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = find_real(f"sunnybrook/dicoms/{study}")
    [cine] = [each for each in find_cines(real_data / "sunnybrook") if {*each.slices.values()} == {*folder.iterdir()}]
    expected = {row["phase"]: row["cavity_ml"] for row in write_cine(cine, tmp_path / "cases")}
    [record] = predict("acdc", [folder], out=tmp_path / "out", mirror=False, preview=False, progress=False).records
    found_ml = sorted(volumes["LV"] for volumes in record.volumes_ml)
    assert found_ml == pytest.approx([expected["ES"], expected["ED"]], rel=0.15)
