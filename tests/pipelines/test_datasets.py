"""Readers of data sets, and failures of selected cases."""

from pathlib import Path

import pytest

from tests.pipelines.run_files import Refused
from uumamba.config.registry import KINDS
from uumamba.data.case import Case, Manifest
from uumamba.pipelines.datasets import is_dataset, read_dataset, select_failures
from uumamba.runtime.errors import CaseError, UsageError


@pytest.mark.parametrize("name", KINDS["dataset"].parts)
def test_every_reader_refuses_a_folder_without_its_layout(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        read_dataset(name, tmp_path)


def test_an_unknown_name_and_an_absent_folder_are_refused(tmp_path: Path, refused: Refused) -> None:
    with refused("dataset.name", got="brats"):
        read_dataset("brats", tmp_path)
    with refused("--raw", got=f"{tmp_path / 'absent'}, which does not exist"):
        read_dataset("acdc", tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "listed", "split", "same"),
    [
        ("aorta", "AortaSeg24", None, True),
        ("acdc", "ACDC", None, True),
        ("phantom", "phantom", None, True),
        ("mnms", "M&Ms", None, True),
        ("imagecas", "ImageCAS", "Split-1", True),
        ("imagecas_split3", "ImageCAS", "Split-3", True),
        ("imagecas", "ImageCAS", "Split-2", False),
        ("aorta", "ACDC", None, False),
    ],
)
def test_name_and_official_split_identify_a_data_set(name: str, listed: str, split: str | None, same: bool) -> None:
    manifest = Manifest(listed, "CT", {"a": 1}, (), extra={} if split is None else {"official_split": split})
    assert is_dataset(manifest, name) is same


@pytest.mark.parametrize(
    ("failed", "is_in_fold_0"),
    [("p1_ED", 1), ("p1_ES", 1), ("p1", 1), ("p10_ED", 0), ("p10_ES", 0), ("p10", 0), ("p2_ED", 1), ("p2", 1)],
)
def test_a_failure_is_in_its_patients_fold_and_of_an_unknown_patient_in_every_fold(
    failed: str, is_in_fold_0: int
) -> None:
    cases = tuple(Case(f"{name}_ED", name, "x", Path("image"), fold=fold) for name, fold in (("p1", 0), ("p10", 1)))
    manifest = Manifest("toy", "MRI", {"LV": 1}, cases)
    failure = CaseError(failed, "image", got="no voxels", expected="some", fix="scan again")
    assert select_failures(manifest.select(fold=0), [failure], manifest=manifest) == [failure] * is_in_fold_0
