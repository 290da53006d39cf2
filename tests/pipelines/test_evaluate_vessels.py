"""Vessels in files: which structures get centreline and topology, what is printed, and whose labels are understood."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from uumamba.data.case import Case, Manifest
from uumamba.evaluation import read_scores
from uumamba.pipelines.evaluate import MissingPredictions, evaluate_folder, print_summary
from uumamba.pipelines.report import report
from uumamba.runtime.errors import UsageError

SPACING_MM = (0.5, 0.5, 2.0)
TUBE_MM = 20 * 2.0
Kidneys = Callable[..., Path]


def tube(*, slices: int = 21) -> np.ndarray:
    """21 slices are 40 mm long from centre to centre."""
    labels = np.zeros((9, 9, 24), np.uint8)
    labels[3:6, 3:6, 1 : 1 + slices] = 1
    return labels


def torus() -> np.ndarray:
    z, y, x = np.meshgrid(np.arange(-4, 5), np.arange(-4, 5), np.arange(-12, 12), indexing="ij")
    return (np.hypot(np.hypot(z, y) - 3, x) <= 1).astype(np.uint8)


def save(path: Path, labels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mha":
        image = SimpleITK.GetImageFromArray(labels.transpose(2, 1, 0))
        image.SetSpacing(SPACING_MM)
        SimpleITK.WriteImage(image, path)
    else:
        nib.save(nib.Nifti1Image(labels, np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])), path)
    return path


def summary_of(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text(encoding="utf-8"))


@pytest.fixture
def imagecas(tmp_path: Path) -> Path:
    """Case 1 is fold 0, 2 trains, 3 is a test case, as ImageCAS unpacks."""
    raw = tmp_path / "imagecas"
    for number, labels in ((1, tube()), (2, tube(slices=16)), (3, torus())):
        save(raw / "1-200" / f"{number}.img.nii.gz", labels * 100)
        save(raw / "1-200" / f"{number}.label.nii.gz", labels)
    sheet = "FileName,Split-1\n1,Validation\n2,Training\n3,Testing\n"
    (raw / "imageCAS_data_split.csv").write_text(sheet)
    return raw


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """Case 1 stops early, 2 is in two parts, 3 is a disc with no tunnel."""
    broken = tube(slices=16)
    broken[:, :, 8] = 0
    disc = np.maximum(torus(), (np.indices((9, 9, 24))[2] == 12) & (torus().sum(axis=2, keepdims=True) > 0))
    disc[3:6, 3:6, 12] = 1
    for number, labels in ((1, tube(slices=16)), (2, broken), (3, disc.astype(np.uint8))):
        save(tmp_path / "predictions" / f"imagecas{number:04d}.nii.gz", labels)
    return tmp_path / "predictions"


def test_a_scored_folder_tells_lengths_parts_and_tunnels(imagecas: Path, predictions: Path, tmp_path: Path) -> None:
    scores = evaluate_folder(predictions, imagecas, tmp_path / "out")
    short, broken, disc = read_scores(tmp_path / "out" / "scores.csv")
    assert (short, broken, disc) == scores.rows
    assert {row.structure for row in scores.rows} == {"coronary"}
    assert short.length_error == pytest.approx(-10 / TUBE_MM)
    # 16 slices are 30 mm; without the eighth voxel's plane two ends 4 mm apart stand in the middle.
    assert broken.length_error == pytest.approx(-4 / 30)
    assert (broken.betti0_error, broken.betti1_error, broken.betti2_error) == (1.0, 0.0, 0.0)
    assert (disc.betti0_error, disc.betti1_error, disc.betti2_error) == (0.0, 1.0, 0.0)
    vessel = summary_of(tmp_path / "out")["structures"][0]["vessel"]
    assert vessel["betti0_error"] == {"mean": pytest.approx(1 / 3), "sd": pytest.approx(3**-0.5), "n": 3}
    assert "Betti errors are absolute differences" in summary_of(tmp_path / "out")["rules"]["vessels"]
    assert not (tmp_path / "out" / "trees.csv").exists()


@pytest.mark.parametrize(("chosen", "cases"), [({"fold": 0}, [1]), ({"split": "training"}, [1, 2]), ({}, [1, 2, 3])])
def test_folds_and_splits_of_imagecas_are_those_of_its_sheet(
    chosen: dict, cases: list[int], imagecas: Path, predictions: Path, tmp_path: Path
) -> None:
    scores = evaluate_folder(predictions, imagecas, tmp_path / "out", **chosen)
    assert [row.case_id for row in scores.rows] == [f"imagecas{number:04d}" for number in cases]


def test_an_unpacked_shard_is_no_folder_of_label_maps(imagecas: Path, predictions: Path, tmp_path: Path) -> None:
    shard = imagecas / "1-200"
    (imagecas / "imageCAS_data_split.csv").rename(shard / "imageCAS_data_split.csv")
    scores = evaluate_folder(predictions, shard, tmp_path / "out", fold=0)
    assert [row.case_id for row in scores.rows] == ["imagecas0001"]


def test_a_data_set_that_is_not_whole_says_what_it_lacks(imagecas: Path, predictions: Path, tmp_path: Path) -> None:
    (imagecas / "imageCAS_data_split.csv").unlink()
    with pytest.raises(UsageError) as error:
        evaluate_folder(predictions, imagecas, tmp_path / "out")
    assert (error.value.key, error.value.got) == ("split sheet", imagecas)


def test_a_prediction_that_imagecas_lacks_is_named_by_its_case(
    imagecas: Path, predictions: Path, tmp_path: Path
) -> None:
    (predictions / "imagecas0002.nii.gz").unlink()
    with pytest.raises(MissingPredictions, match=r"1 labelled cases have no prediction in .*: imagecas0002; "):
        evaluate_folder(predictions, imagecas, tmp_path / "out")


def test_a_folder_of_no_layout_is_told_all_that_would_do(predictions: Path, tmp_path: Path) -> None:
    (tmp_path / "raw" / "below").mkdir(parents=True)
    sentence = (
        r"^No label map was found in .*raw; give a folder of <case_id>.nii.gz, a manifest \(dataset.json\), or the "
        r"folder of ACDC, ImageCAS, AortaSeg24 or M&Ms as it was downloaded\.$"
    )
    with pytest.raises(UsageError, match=sentence):
        evaluate_folder(predictions, tmp_path / "raw", tmp_path / "out")


def aorta(*, right: slice, left: slice) -> np.ndarray:
    """A straight Zone9 with a renal artery, 15 right and 16 left, on either side of it."""
    labels = np.zeros((25, 9, 9), np.uint8)
    labels[11:14, 3:6, 1:8] = 17
    labels[right, 4, 4], labels[left, 4, 4] = 15, 16
    return labels


RIGHT, LEFT = slice(2, 11), slice(14, 23)


@pytest.fixture
def aortas(tmp_path: Path) -> Path:
    """Two subjects as AortaSeg24 is downloaded, the second of which is predicted with left and right swapped."""
    raw = tmp_path / "aorta"
    labels = aorta(right=RIGHT, left=LEFT)
    for number in (1, 7):
        save(raw / "images" / f"subject{number:03d}_CTA.mha", labels * 10)
        save(raw / "masks" / f"subject{number:03d}_label.mha", labels)
    save(tmp_path / "predicted" / "subject001.nii.gz", labels)
    save(tmp_path / "predicted" / "subject007.nii.gz", aorta(right=LEFT, left=RIGHT))
    return raw


def test_swapped_sides_are_told_in_the_summary_and_on_the_screen(
    aortas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = evaluate_folder(tmp_path / "predicted", aortas, tmp_path / "out")
    assert summary_of(tmp_path / "out")["sides"] == {
        "n_checked": 4,
        "swapped": [
            {"case_id": "subject007", "structure": "RenalR", "partner": "RenalL"},
            {"case_id": "subject007", "structure": "RenalL", "partner": "RenalR"},
        ],
    }
    print_summary(scores)
    printed = " ".join(capsys.readouterr().out.split())
    assert "WARNING, left and right: 2 of 4 paired structures are swapped" in printed
    assert "subject007: RenalR lies where RenalL is labelled" in printed
    assert "The clinical table" not in printed


def test_sides_that_are_right_are_said_to_be(aortas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "predicted" / "subject001.nii.gz").replace(tmp_path / "predicted" / "subject007.nii.gz")
    save(tmp_path / "predicted" / "subject001.nii.gz", aorta(right=RIGHT, left=slice(0, 0)))
    print_summary(evaluate_folder(tmp_path / "predicted", aortas, tmp_path / "out"))
    assert "none of 3 paired structures lies on its partner's side" in " ".join(capsys.readouterr().out.split())


def test_the_tree_of_all_zones_is_scored_apart_and_in_no_mean(aortas: Path, tmp_path: Path) -> None:
    evaluate_folder(tmp_path / "predicted", aortas, tmp_path / "out")
    trees = read_scores(tmp_path / "out" / "trees.csv")
    # Swapping names leaves the tree as it is.
    assert [(row.case_id, row.structure, row.dice, row.cl_dice) for row in trees] == [
        ("subject001", "whole tree", 1.0, 1.0),
        ("subject007", "whole tree", 1.0, 1.0),
    ]
    summary = summary_of(tmp_path / "out")
    # Zone9 is right in both cases, the renal arteries in one; the other 20 zones are nowhere.
    assert summary["foreground_dice"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert summary["whole_tree"]["dice"]["mean"] == 1.0
    assert "whole tree" not in {row.structure for row in read_scores(tmp_path / "out" / "scores.csv")}


def test_the_trees_of_an_earlier_evaluation_do_not_outlive_it(aortas: Path, tmp_path: Path) -> None:
    evaluate_folder(tmp_path / "predicted", aortas, tmp_path / "out")
    evaluate_folder(tmp_path / "predicted", aortas, tmp_path / "out", vessels=["Zone9"])
    assert not (tmp_path / "out" / "trees.csv").exists()
    evaluate_folder(tmp_path / "predicted", aortas, tmp_path / "out")
    for path in (tmp_path / "predicted").iterdir():
        path.write_bytes(b"")
    evaluate_folder(tmp_path / "predicted", aortas, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["failures.json"]


@pytest.mark.parametrize(
    ("vessels", "filled"), [(None, set()), (["all"], {"label_1", "label_3"}), (["label_3"], {"label_3"}), ([], set())]
)
def test_vessels_of_a_plain_folder_are_those_that_are_named(
    vessels: list[str] | None, filled: set[str], tmp_path: Path
) -> None:
    labels = tube()
    labels[:, :, 12:] *= 3
    save(tmp_path / "labels" / "a.nii.gz", labels)
    scores = evaluate_folder(tmp_path / "labels", tmp_path / "labels", tmp_path / "out", vessels=vessels)
    assert {row.structure for row in scores.rows if row.is_vessel} == filled
    with (tmp_path / "out" / "scores.csv").open() as stream:
        assert {row["structure"] for row in csv.DictReader(stream) if row["cl_dice"]} == filled


def test_a_vessel_that_is_no_structure_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "labels" / "a.nii.gz", tube())
    with pytest.raises(UsageError, match="aorta: there is no such vessel among the structures label_1; name some"):
        evaluate_folder(tmp_path / "labels", tmp_path / "labels", tmp_path / "out", vessels=["aorta", "label_1"])


def manifest_of(folder: Path, **extra: object) -> Path:
    label = save(folder / "a_gt.nii.gz", tube())
    case = Case("a", "a", "x", label, label, fold=0)
    Manifest("toy", "CT", {"RenalR": 1, "RenalL": 2}, (case,), extra=extra).write(folder / "dataset.json")
    return folder


@pytest.mark.parametrize("pairs", [3, ["RenalR"], [["RenalR", "RenalL", "SMA"]], [[]]])
def test_mirror_pairs_that_are_none_are_refused(pairs: object, tmp_path: Path) -> None:
    folder = manifest_of(tmp_path, mirror_pairs=pairs)
    with pytest.raises(UsageError, match=r"manifest of toy gives .* as its mirror_pairs; write pairs of structures"):
        evaluate_folder(folder, folder, tmp_path / "out")


def test_mirror_pairs_of_structures_that_are_not_scored_are_passed_over(tmp_path: Path) -> None:
    folder = manifest_of(tmp_path, mirror_pairs=[["RenalR", "RenalL"], ["Zone10R", "Zone10L"]])
    scores = evaluate_folder(folder, folder, tmp_path / "out")
    assert [row.partner for row in scores.rows] == ["RenalL", "RenalR"]


def test_the_report_of_vessels_warns_of_swaps_and_shows_projections(aortas: Path, tmp_path: Path) -> None:
    from uumamba.pipelines.datasets import read_dataset

    out = tmp_path / "run"
    manifest, _ = read_dataset("aorta", aortas)
    manifest.write(out / "prepared" / "dataset.json")
    (tmp_path / "predicted").rename(out / "predictions")
    evaluate_folder(out / "predictions", out / "prepared", out)
    html = report(out, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<strong>subject007</strong>: RenalR lies where RenalL is labelled." in html
    assert "The vessels of subject007 in label and prediction" in html
    assert '<tr class="total"><th scope="row">whole tree</th><td>1.000' in html
    assert 'id="clinical"' not in html
