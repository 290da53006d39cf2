"""Phantom in ACDC's layout: beating hearts with two ventricles."""

from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from data_prep.nifti_file import make_header, write_nifti
from data_prep.phantoms.heart.heart_scanner import Scanner, draw_mri_protocol
from data_prep.phantoms.heart.heart_shape import HABITS, compute_end_diastole, compute_end_systole, draw_heart
from data_prep.phantoms.phantom_folder import Order, Progress, check_no_others, write_cases
from uumamba.runtime.files import write_text
from uumamba.runtime.options import NonNegativeInt, PositiveInt, check_options
from uumamba.runtime.seeds import key_to_seed

GROUPS = tuple(HABITS)


@check_options
def write_phantom(
    folder: Path | str,
    *,
    patients: PositiveInt = 60,
    seed: int = 0,
    test_patients: NonNegativeInt = 0,
    workers: NonNegativeInt = 0,
    progress: Progress = lambda written, total: None,
) -> Path:
    """Write phantom patients in ACDC's layout.

    Files are ``training/patient001/patient001_frame01.nii.gz`` and so on. Each patient has an end-diastolic and an
    end-systolic frame, their labels (RV 1, MYO 2, LV 3) and ``Info.cfg``. The headers equal ACDC's: the sform has unit
    scale, only pixdim has the true spacing. Diagnoses alternate and determine the ejection fraction; pose, size, shape
    and contrast are drawn for each patient. Voxels average 2 x 2 x 4 samples, breath-holds shift the slices, the coil
    sensitivity is uneven and the noise is Rician. Equal arguments give equal bytes, for any number of workers; a
    patient does not change with the number of patients.

    Args:
        folder: gets ``training/`` and, with test patients, ``testing/``.
        patients: number of training patients.
        seed: another seed gives other patients.
        test_patients: number of patients of ``testing/``, numbered after the training patients.
        workers: number of worker processes; 0 uses this process. Workers need an importable main module.
        progress: called with the number of patients written and of all.

    Returns:
        The folder.

    Raises:
        UsageError: a count is too small, or the folder holds other patients.

    Example:
        >>> import tempfile
        >>> raw = write_phantom(tempfile.mkdtemp(), patients=1)
        >>> sorted(path.suffix for path in (raw / "training" / "patient001").iterdir())
        ['.cfg', '.gz', '.gz', '.gz', '.gz']
    """
    folder = Path(folder)
    splits = ["training"] * patients + ["testing"] * test_patients
    orders = [Order(folder / split, number, seed) for number, split in enumerate(splits, start=1)]
    found = (path for split in ("training", "testing") for path in (folder / split).glob("*"))
    check_no_others(folder, found, (order.folder / f"patient{order.number:03d}" for order in orders))
    write_cases(_write_case, orders, workers=workers, progress=progress)
    return folder


def _write_case(order: Order) -> None:
    rng = np.random.default_rng(key_to_seed(order.seed, "phantom", order.number))
    group = GROUPS[(order.number - 1) % len(GROUPS)]
    heart = draw_heart(group, rng)
    phases = {"ED": compute_end_diastole(heart), "ES": compute_end_systole(heart)}
    protocol = draw_mri_protocol(heart, phases["ED"].end_mm, rng)
    scanner = Scanner(heart, protocol, rng)
    frames, info = _draw_info(group, rng)
    patient_id = f"patient{order.number:03d}"
    patient = order.folder / patient_id
    for name, phase in phases.items():
        for end, array in zip(("", "_gt"), scanner.scan_phase(phase, rng), strict=True):
            write_nifti(
                patient / f"{patient_id}_frame{frames[name]:02d}{end}.nii.gz",
                array,
                _make_acdc_header(array, protocol.spacing_mm),
                compression=4,
            )
    write_text(patient / "Info.cfg", info)


def _draw_info(group: str, rng: np.random.Generator) -> tuple[dict[str, int], str]:
    """Draw frame numbers and the text of ``Info.cfg``.

    In one patient of six, end-diastole is not the first frame.
    """
    diastole = int(rng.integers(2, 5)) if rng.random() < 1 / 6 else 1
    frames = {"ED": diastole, "ES": diastole + int(rng.integers(6, 15))}
    lines = {
        **frames,
        "Group": group,
        "Height": f"{rng.integers(150, 195)}.0",
        "NbFrame": frames["ES"] + int(rng.integers(4, 18)),
        "Weight": f"{rng.integers(48, 110)}.0",
    }
    return frames, "".join(f"{key}: {value}\n" for key, value in lines.items())


def _make_acdc_header(array: NDArray[np.generic], spacing_mm: tuple[float, ...]) -> nib.Nifti1Header:
    """Create a NIfTI header like those of ACDC.

    qform_code is 0, sform_code is 2 with ``diag(-1, -1, 1)``, and pixdim has the true spacing.
    """
    header = make_header(array)
    header["pixdim"] = (1, *spacing_mm, 1, 1, 1, 1)
    header["quatern_d"] = 1
    header["sform_code"] = 2
    header["srow_x"], header["srow_y"], header["srow_z"] = (-1, -0.0, 0, 0), (-0.0, -1, 0, 0), (0, 0, 1, 0)
    return header
