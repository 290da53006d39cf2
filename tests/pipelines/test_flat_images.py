"""Pictures in, pictures out: PNG from a manifest to the report."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from uumamba.data.case import Case, Manifest
from uumamba.data.prepared import PreparedFolder
from uumamba.data.preprocess import PreprocessRecipe, restore_label
from uumamba.data.scan import read_image, read_label
from uumamba.pipelines.evaluate import evaluate_folder
from uumamba.pipelines.predict import predict
from uumamba.pipelines.prepare import prepare
from uumamba.pipelines.report import report

STRUCTURES = {"RV": 1, "MYO": 2, "LV": 3}
RECIPES = (PreprocessRecipe(spacing_mm=(None, 1.0, 1.0)), PreprocessRecipe(spacing_mm=(None, None, None)))


def write_pictures(folder: Path, *, number: int = 3) -> Manifest:
    """Write noisy pictures of three rings with black borders, and their masks."""
    cases = []
    for index in range(number):
        rows, columns = np.indices((70, 60 + index))
        apart = np.hypot(rows - 30, columns - 28)
        label = (np.select([apart < 8, apart < 14, np.hypot(rows - 35, columns - 10) < 7], [3, 2, 1])).astype(np.uint8)
        noise = np.random.default_rng(index).integers(0, 30, label.shape)
        image = (np.array([40, 200, 90, 220])[label] + noise).astype(np.uint8)
        image[:5], image[:, -6:] = 0, 0
        for kind, pixels in (("images", image), ("masks", label)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / f"c{index}.png")
        paths = folder / "images" / f"c{index}.png", folder / "masks" / f"c{index}.png"
        cases.append(Case(f"c{index}", f"p{index}", "x", *paths, fold=index))
    return Manifest("pictures", "picture", STRUCTURES, tuple(cases))


def as_nifti(manifest: Manifest, folder: Path) -> Manifest:
    """Write the pictures of a manifest as NIfTI, as ITK converts them."""
    folder.mkdir()
    cases = []
    for case in manifest.cases:
        paths = {}
        for kind, path in (("image", case.image), ("label", case.label)):
            pixels = np.asarray(Image.open(path)).T[..., None]
            paths[kind] = folder / f"{case.case_id}_{kind}.nii.gz"
            nib.save(nib.Nifti1Image(pixels, np.diag([-1.0, -1.0, 1.0, 1.0])), paths[kind])
        cases.append(replace(case, **paths))
    return replace(manifest, cases=tuple(cases))


@pytest.mark.parametrize("recipe", RECIPES, ids=["1 mm", "as stored"])
def test_a_picture_is_prepared_as_the_same_slice_in_nifti_and_restored_exactly(
    tmp_path: Path, recipe: PreprocessRecipe
) -> None:
    manifest = write_pictures(tmp_path)
    for name, each in (("png", manifest), ("nifti", as_nifti(manifest, tmp_path / "volumes"))):
        assert not prepare(each, [], recipe=recipe, out=tmp_path / name, workers=0).failures
    flat = PreparedFolder(tmp_path / "png")
    for case in manifest.cases:
        for array in ("image.npy", "label.npy", "locations.npy"):
            paths = [tmp_path / name / "cases" / case.case_id / array for name in ("png", "nifti")]
            assert paths[0].read_bytes() == paths[1].read_bytes()
        prepared = flat.case(case.case_id)
        label = read_label(case.label, structures=STRUCTURES).array
        assert prepared.image.shape == (1, 1, 65, label.shape[0] - 6)  # without the black borders
        assert np.array_equal(restore_label(prepared.label, prepared.geometry), label)


def test_a_constant_and_a_coloured_picture_fail_by_name_and_the_others_go_on(tmp_path: Path) -> None:
    manifest = write_pictures(tmp_path)
    Image.fromarray(np.full((70, 60), 9, np.uint8)).save(tmp_path / "images" / "c0.png")
    Image.fromarray(np.zeros((70, 61), np.uint8)).save(tmp_path / "images" / "c1.png")
    result = prepare(manifest, [], recipe=RECIPES[0], out=tmp_path / "out", workers=0)
    assert [(each.case_id, each.key) for each in result.failures] == [("c0", "image"), ("c1", "image")]
    assert result.prepared == ("c2",)


def test_pictures_are_predicted_as_pictures_on_their_grids_scored_and_drawn(tmp_path: Path, tiny_run: Path) -> None:
    manifest = write_pictures(tmp_path)
    result = predict(tiny_run, [tmp_path / "images"], out=tmp_path / "predictions", save_probabilities=True)
    assert not result.failures
    assert [path.name for path in result.written] == ["c0.png", "c1.png", "c2.png"]
    volumes = as_nifti(manifest, tmp_path / "volumes")
    volumes.write(tmp_path / "volumes.json")
    predict(tiny_run, [tmp_path / "volumes.json"], out=tmp_path / "of_nifti")
    for case in manifest.cases:
        picture = read_label(tmp_path / "predictions" / f"{case.case_id}.png", structures=STRUCTURES)
        volume = read_label(tmp_path / "of_nifti" / f"{case.case_id}.nii.gz", structures=STRUCTURES)
        assert np.array_equal(picture.array, volume.array)
        assert np.asarray(Image.open(case.image)).T[..., None].shape == picture.array.shape
        probabilities = nib.load(tmp_path / "predictions" / "probabilities" / f"{case.case_id}.nii.gz")
        assert probabilities.shape == (*picture.array.shape, 4)
    manifest.write(tmp_path / "prepared" / "dataset.json")
    by_manifest = evaluate_folder(tmp_path / "predictions", tmp_path / "prepared", tmp_path)
    by_folder = evaluate_folder(tmp_path / "predictions", tmp_path / "masks", tmp_path / "s", structures=STRUCTURES)
    by_nifti = evaluate_folder(tmp_path / "predictions", tmp_path / "volumes.json", tmp_path / "n")
    dice = [[row.dice for row in scores.rows] for scores in (by_manifest, by_folder, by_nifti)]
    assert dice[0] == dice[1] == dice[2]
    assert len(dice[0]) == 9
    page = report(tmp_path, tmp_path / "report.html").read_text()
    assert page.count("Slices of c") == 3
    assert "is not drawn" not in page


def test_label_maps_do_not_replace_the_pictures(tmp_path: Path, tiny_run: Path, refused: Any) -> None:
    write_pictures(tmp_path, number=1)
    with refused("--out", got=tmp_path / "images"):
        predict(tiny_run, [tmp_path / "images"], out=tmp_path / "images")
    assert read_image(tmp_path / "images" / "c0.png").array.shape == (60, 70, 1)
