"""Small scans written by nibabel, with headers as they come, ACDC's quirk among them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from uumamba.data.warn import warn_of_acdc_spacing

STRUCTURES = {"RV": 1, "MYO": 2, "LV": 3}
WriteScan = Callable[..., Path]


@pytest.fixture
def structures() -> dict[str, int]:
    """ACDC's."""
    return dict(STRUCTURES)


@pytest.fixture(autouse=True)
def _acdc_warning_not_yet_given() -> Iterator[None]:
    """Each test is a process of its own as far as the warning goes that is given once."""
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


@pytest.fixture(scope="session")
def heart() -> tuple[np.ndarray, np.ndarray]:
    """A noisy image of ACDC's size ``(216, 256, 10)`` in an empty frame, and a label of three round structures."""
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
