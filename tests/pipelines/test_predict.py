"""From scans to label maps: which model, which scans, and what is never replaced."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from uumamba.data.case import Case, Manifest
from uumamba.pipelines import load_predictor
from uumamba.pipelines.models import checkpoint_paths
from uumamba.pipelines.predict import find_inputs, predict
from uumamba.runtime.errors import UsageError, UumambaError
from uumamba.training.checkpoint import Checkpoint, read_checkpoint, save_checkpoint


def save_scan(path: Path, *, value: int | None = None) -> Path:
    shape = (40, 44, 3)
    voxels = np.random.default_rng(0).integers(1, 900, shape) if value is None else np.full(shape, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), np.diag([3.0, 3.0, 8.0, 1.0])), path)
    return path


@pytest.fixture
def fold(tiny_run: Path, tmp_path: Path) -> Path:
    """The folder of a trained fold, to be changed."""
    return Path(shutil.copytree(tiny_run / "fold_0", tmp_path / "own" / "fold_0"))


def change(path: Path, **parts: object) -> Checkpoint:
    changed = replace(read_checkpoint(path), **parts)  # type: ignore[arg-type]  # keywords are mixed on purpose
    save_checkpoint(path, changed)
    return changed


# What is replaced.


def test_a_scan_is_never_replaced_by_its_label_map(tmp_path: Path) -> None:
    scan = save_scan(tmp_path / "in" / "scan.nii.gz")
    before = scan.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for given, out in ((scan, tmp_path / "in"), (tmp_path / "in", tmp_path / "link")):
        with pytest.raises(UsageError, match=r"The label map of scan would replace the input .*scan.nii.gz; choose"):
            predict(tmp_path / "no model yet", [given], out=out)
    assert scan.read_bytes() == before


@pytest.mark.parametrize("split", ["training", "test"])
def test_a_manifests_label_is_never_replaced_by_a_label_map(tmp_path: Path, split: str) -> None:
    label = save_scan(tmp_path / "labels" / "a.nii.gz")
    cases = (
        Case("a", "a", "x", save_scan(tmp_path / "images" / "first.nii.gz")),
        Case("b", "b", "x", save_scan(tmp_path / "images" / "second.nii.gz"), label, split=split),  # type: ignore[arg-type]  # a literal
    )
    Manifest("toy", "MRI", {"LV": 1}, cases).write(tmp_path / "list.json")
    with pytest.raises(UsageError, match=r"The label map of a would replace the input .*labels/a.nii.gz"):
        predict(tmp_path / "no model yet", [tmp_path / "list.json"], out=tmp_path / "labels", split="training")


def test_a_case_that_fails_is_named_and_leaves_no_old_prediction(tiny_run: Path, tmp_path: Path) -> None:
    names = ("black", "blank", "good")
    scans = [
        save_scan(tmp_path / "in" / f"{name}.nii.gz", value=value)
        for name, value in zip(names, (0, 5, None), strict=True)
    ]
    for name in names:
        for suffix in (".nii.gz", ".probabilities.npy"):
            (tmp_path / "out").mkdir(exist_ok=True)
            (tmp_path / "out" / f"{name}{suffix}").write_bytes(b"old")
    result = predict(tiny_run, scans, out=tmp_path / "out")
    assert [failure.case_id for failure in result.failures] == ["black", "blank"]
    listed = json.loads((tmp_path / "out" / "failures.json").read_text(encoding="utf-8"))
    assert [entry["case_id"] for entry in listed] == ["black", "blank"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"good.nii.gz", "failures.json"}
    assert result.written[0].read_bytes() != b"old"


# Which scans.


def test_any_json_is_a_manifest(tmp_path: Path) -> None:
    scan = save_scan(tmp_path / "first.nii.gz")
    Manifest("toy", "MRI", {"LV": 1}, (Case("a", "a", "x", scan, fold=2),)).write(tmp_path / "split.json")
    assert find_inputs([tmp_path / "split.json"], fold=2) == {"a": scan}


def test_of_an_acdc_patients_folder_only_the_frames_are_scans(tmp_path: Path) -> None:
    patient = tmp_path / "patient001"
    for name in ("4d", "frame01", "frame01_gt", "frame12", "frame12_gt"):
        save_scan(patient / f"patient001_{name}.nii.gz")
    (patient / "._patient001_frame01.nii.gz").touch()
    assert list(find_inputs([patient])) == ["patient001_frame01", "patient001_frame12"]
    assert list(find_inputs([patient / "patient001_frame01_gt.nii.gz"])) == ["patient001_frame01_gt"], "by its name"


# Which model.


def test_the_model_of_a_fold_is_its_last_checkpoint_and_best_is_there_by_name(fold: Path) -> None:
    trained = read_checkpoint(fold / "last.safetensors")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in trained.net.items()}
    change(fold / "best.safetensors", net=zeros, ema=None)
    for model in (fold, fold.parent):
        (net,) = load_predictor(model).nets
        weights = trained.net if trained.ema is None else trained.ema
        assert all(torch.equal(tensor, weights[name]) for name, tensor in net.state_dict().items())
    (best,) = load_predictor(fold / "best.safetensors").nets
    assert not any(tensor.any() for tensor in best.state_dict().values())


def test_the_run_beneath_the_output_of_uumamba_run_is_found(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tiny_run)
    assert checkpoint_paths(tmp_path) == [tmp_path / "run" / "fold_0" / "last.safetensors"]
    assert checkpoint_paths(tmp_path, fold="0") == checkpoint_paths(tmp_path)


@pytest.mark.parametrize(
    ("model", "fold", "sentence"),
    [
        ("", "*", r"There is no fold '\*'; choose one of 0, 1, 2, 3, 4, all"),
        ("", "cv", "There is no fold 'cv'"),
        ("", "3", "holds no checkpoint of fold 3, only of 0; train it first"),
        ("fold_0", "3", "fold_0 is one fold's model; leave --fold out"),
        ("fold_0/last.safetensors", "0", "last.safetensors is one fold's model; leave --fold out"),
    ],
)
def test_a_fold_that_cannot_be_chosen_is_refused(tiny_run: Path, model: str, fold: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        checkpoint_paths(tiny_run / model, fold=fold)


def test_a_run_that_is_half_trained_is_used_with_a_warning(fold: Path) -> None:
    progress = read_checkpoint(fold / "last.safetensors").progress
    change(fold / "last.safetensors", progress=progress | {"epochs_done": 1})
    with pytest.warns(UserWarning, match=r"last.safetensors has done 1 of 2 epochs; finish it with"):
        load_predictor(fold)


def test_a_checkpoint_of_a_trainer_of_ones_own_says_what_to_do(fold: Path) -> None:
    for config in (None, {"epochs": 3}):
        change(fold / "last.safetensors", config=config)
        with pytest.raises(UsageError, match="does not say which network it is of, since `uumamba train` did not"):
            load_predictor(fold)


def test_weights_of_another_network_are_refused_in_one_line(fold: Path) -> None:
    change(fold / "last.safetensors", net={}, ema=None)
    with pytest.raises(
        UsageError, match=r"^A checkpoint's weights do not fit its own configuration .*; train again\.$"
    ):
        load_predictor(fold)


def test_a_model_that_diverged_ends_the_call_and_blames_no_case(fold: Path, tmp_path: Path) -> None:
    weights = read_checkpoint(fold / "last.safetensors").net
    lost = {name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()}
    change(fold / "last.safetensors", net=lost, ema=None)
    scan = save_scan(tmp_path / "scan.nii.gz")
    with pytest.raises(UumambaError, match="not finite even for a blank image, so its training diverged"):
        predict(fold, [scan], out=tmp_path / "out")
