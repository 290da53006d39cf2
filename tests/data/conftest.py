"""Small scans, DICOM series and prepared folders, written for each test."""

import locale
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from uumamba.data.case import Case, Manifest
from uumamba.data.geometry import find_geometry
from uumamba.data.prepared import PreparedFolder, write_prepared
from uumamba.data.preprocess import PreprocessRecipe
from uumamba.data.warn import warn_of_acdc_spacing
from uumamba.runtime.files import write_json

STRUCTURES = {"RV": 1, "MYO": 2, "LV": 3}
WriteScan = Callable[..., Path]


@pytest.fixture
def structures() -> dict[str, int]:
    return dict(STRUCTURES)


@pytest.fixture(autouse=True)
def _reset_acdc_warning() -> Iterator[None]:
    """Reset the warning that is given once per process."""
    warn_of_acdc_spacing.cache_clear()
    yield
    warn_of_acdc_spacing.cache_clear()


@pytest.fixture
def write_scan(tmp_path: Path) -> WriteScan:
    """``write_scan("a.nii.gz", array, spacing_mm=..., affine=..., acdc=False, **header_fields)``."""

    def write(
        name: str,
        array: np.ndarray,
        *,
        spacing_mm: Sequence[float] = (1.5, 1.5, 8.0),
        affine: np.ndarray | None = None,
        acdc: bool = False,
        **fields: Any,
    ) -> Path:
        matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) if acdc else np.diag([*spacing_mm, 1.0])
        image = nib.Nifti1Image(array, matrix if affine is None else affine)
        if acdc:
            image.header["pixdim"][1:4] = spacing_mm
        for field, value in fields.items():
            image.header[field] = value
        nib.save(image, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def write_series(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """``write_series(image, positions_mm=..., uid=...)`` writes one DICOM file per plane."""

    def write(image: SimpleITK.Image, *, positions_mm: Sequence[float] | None = None, uid: str = "1.2.3") -> Path:
        folder = tmp_path / "series"
        folder.mkdir(exist_ok=True)
        writer = SimpleITK.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        columns = np.array(image.GetDirection()).reshape(3, 3)
        for number in range(image.GetSize()[2]):
            origin = np.array(image.TransformIndexToPhysicalPoint((0, 0, number)))
            if positions_mm is not None:
                origin[2] = positions_mm[number]
            plane = image[:, :, number : number + 1]
            tags = {
                "0008|0060": "MR",
                "0020|000e": uid,
                "0020|000d": "1.2",
                "0008|0018": f"{uid}.{number + 1}",
                "0020|0032": "\\".join(map(str, origin)),
                "0020|0037": "\\".join(map(str, columns[:, :2].T.ravel())),
                "0020|0013": str(number),
            }
            for tag, value in tags.items():
                plane.SetMetaData(tag, value)
            writer.SetFileName(str(folder / f"{uid}-{number}.dcm"))
            writer.Execute(plane)
        return folder

    before = locale.setlocale(locale.LC_ALL)
    yield write
    locale.setlocale(locale.LC_ALL, before)  # SimpleITK leaves the process in the C locale


@pytest.fixture(scope="session")
def prepare() -> Callable[[Path, dict[str, tuple[np.ndarray, np.ndarray]]], PreparedFolder]:
    """``prepare(path, {case_id: (image, label)})`` writes a prepared folder.

    Images may have several channels.
    """

    def prepare(path: Path, cases: dict[str, tuple[np.ndarray, np.ndarray]]) -> PreparedFolder:
        listed = tuple(Case(name, name[0], f"centre-{name[0]}", path / f"{name}.nii.gz") for name in cases)
        Manifest("test", "cine MRI", {"one": 1, "two": 2}, listed).write(path / "dataset.json")
        write_json(path / "recipe.json", PreprocessRecipe(spacing_mm=(None, None, None)).to_json())
        for name, (image, label) in cases.items():
            geometry = find_geometry(label.shape[::-1], spacing_mm=(1.5, 1.5, 10.0))
            write_prepared(path, name, image=image[:1], label=label, geometry=geometry, key="key")
            np.save(path / "cases" / name / "image.npy", image.astype(np.float16), allow_pickle=False)
        return PreparedFolder(path)

    return prepare


@pytest.fixture(scope="session")
def heart() -> tuple[np.ndarray, np.ndarray]:
    """Noisy image of ACDC's size in an empty frame, and three structures."""
    x, y, z = np.meshgrid(np.arange(216), np.arange(256), np.arange(10), indexing="ij")
    taper = 1 - 0.05 * np.abs(z - 4.5)
    left = np.hypot(x - 110.3, y - 130.7)
    label = np.zeros(x.shape, dtype=np.uint8)
    label[np.hypot((x - 80.2) / 1.3, y - 120.4) < 19 * taper] = 1
    label[left < 24 * taper] = 2
    label[left < 16 * taper] = 3
    noise = np.random.default_rng(0).normal(0, 10, x.shape)
    image = (60 + np.array([0, 80, 20, 100])[label] + noise).astype(np.float32)
    image[:7], image[-4:], image[:, :12], image[:, -9:] = 0, 0, 0, 0
    return image, label
