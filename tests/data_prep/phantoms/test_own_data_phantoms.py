"""Phantoms of own data: each channel shows a part, equal arguments give equal files."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from data_prep.phantoms.heart.__main__ import main as write_hearts
from data_prep.phantoms.lesions.__main__ import main as write_lesions
from data_prep.phantoms.lesions.lesion_phantom import draw_lesions, write_lesion_phantom
from data_prep.phantoms.pictures.__main__ import main as write_pictures
from data_prep.phantoms.pictures.picture_phantom import draw_cells, write_picture_phantom
from tests.data_prep.raw_layouts import file_bytes


@pytest.mark.parametrize("write", [write_lesion_phantom, write_picture_phantom])
def test_equal_arguments_give_equal_bytes_and_another_seed_other_cases(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    first, again, other = (
        write(tmp_path / name, cases=2, seed=seed, workers=workers)
        for name, seed, workers in (("a", 0, 0), ("b", 0, 2), ("c", 1, 0))
    )
    assert file_bytes(first) == file_bytes(again)
    assert file_bytes(first) != file_bytes(other)
    assert file_bytes(write(tmp_path / "a", cases=2)) == file_bytes(again)  # over its own files


@pytest.mark.parametrize(("command", "folder"), [(write_lesions, "imagesTr"), (write_pictures, "images")])
def test_a_folder_with_other_files_is_refused(
    tmp_path: Path, command: Callable[..., int], folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").touch()
    assert command([str(tmp_path), "--cases", "1"]) == 2
    assert "notes.txt" in capsys.readouterr().err
    (tmp_path / "notes.txt").unlink()
    assert command([str(tmp_path), "--cases", "1"]) == 0
    assert list((tmp_path / folder).iterdir())


def test_oedema_is_seen_in_flair_alone_and_the_core_in_t1_alone() -> None:
    t1_oedema, flair_oedema, t1_core, flair_core = [], [], [], []
    for seed in range(4):
        (t1, flair), label = draw_lesions(np.random.default_rng(seed))
        brain = (t1 > 0.4 * np.median(t1[t1 > t1.mean()])) & (label == 0)
        for image, oedema, core in ((t1, t1_oedema, t1_core), (flair, flair_oedema, flair_core)):
            spread = image[brain].std()
            oedema.append(abs(image[label == 1].mean() - image[brain].mean()) / spread)
            core.append(abs(image[label == 2].mean() - image[label == 1].mean()) / spread)
    assert np.mean(t1_oedema) < 0.5 < 3 < np.mean(flair_oedema)
    assert np.mean(flair_core) < 1.2 < 1.5 < np.mean(t1_core)


def test_files_of_a_lesion_case_share_one_grid_and_have_three_labels(tmp_path: Path) -> None:
    write_lesion_phantom(tmp_path, cases=1)
    scans = [nib.load(path) for path in sorted(tmp_path.rglob("*.nii.gz"))]
    assert len({scan.shape for scan in scans}) == 1
    assert all(np.array_equal(scan.affine, scans[0].affine) for scan in scans)
    assert np.unique(np.asarray(scans[-1].dataobj)).tolist() == [0, 1, 2]


def test_masks_are_0_and_255_and_no_threshold_finds_the_cells(tmp_path: Path) -> None:
    write_picture_phantom(tmp_path, cases=1)
    mask = np.asarray(Image.open(tmp_path / "masks" / "cells_001.png"))
    assert np.unique(mask).tolist() == [0, 255]
    picture, cells = draw_cells(np.random.default_rng(3))
    best = max(
        2 * np.sum((picture > level) & cells) / (np.sum(picture > level) + np.sum(cells)) for level in range(256)
    )
    assert best < 0.8


def test_the_command_of_hearts_counts_patients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert write_hearts([str(tmp_path / "hearts"), "--patients", "1", "--test-patients", "1"]) == 0
    assert capsys.readouterr().out == "patients: 1 of 2\npatients: 2 of 2\n"
    folders = sorted(path.relative_to(tmp_path / "hearts").as_posix() for path in (tmp_path / "hearts").glob("*/*"))
    assert folders == ["testing/patient002", "training/patient001"]
