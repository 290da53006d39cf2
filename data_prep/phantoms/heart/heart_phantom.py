"""A phantom in ACDC's own layout: beating two-ventricle hearts that nobody needs to download or may not share."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from data_prep.nifti_file import write_nifti
from data_prep.phantoms.heart.heart_scanner import Scanner, draw_protocol
from data_prep.phantoms.heart.heart_shape import HABITS, draw_heart, end_diastole, end_systole
from uumamba.runtime.errors import UsageError
from uumamba.runtime.files import make_folder, write_text
from uumamba.runtime.seeds import key_to_seed

GROUPS = tuple(HABITS)


@dataclass(frozen=True)
class _Order:
    """One patient to write."""

    folder: Path
    number: int
    seed: int


def write_phantom(
    folder: Path | str,
    *,
    patients: int = 60,
    seed: int = 0,
    test_patients: int = 0,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write phantom patients as ACDC ships its own: ``training/patient001/patient001_frame01.nii.gz`` and so on.

    Each patient has an end-diastolic and an end-systolic frame, their labels (RV 1, MYO 2, LV 3) and ``Info.cfg``. The
    headers repeat ACDC's: the sform has unit scale and the true spacing stands in pixdim alone. Diagnoses take turns
    and set the ejection fraction; pose, size, shape and contrast are drawn for each patient. Voxels average 2 x 2 x 4
    samples, slices are shifted by uneven breath-holds, the coil sees unevenly and the noise is Rician. Equal arguments
    give equal bytes, for any number of workers; a patient does not change with the number of patients.

    Args:
        folder: gets ``training/`` and, with test patients, ``testing/``.
        patients: number of training patients.
        seed: another seed gives other patients.
        test_patients: number of patients of ``testing/``, numbered on from the training patients.
        workers: processes; 0 works in this one. More need an importable main module, as every spawned process.
        progress: called with the number of patients written and of all.

    Returns:
        The folder.

    Raises:
        UsageError: no patient is asked for, or the folder holds other patients already.

    Example:
        >>> import tempfile
        >>> raw = write_phantom(tempfile.mkdtemp(), patients=1)
        >>> sorted(path.suffix for path in (raw / "training" / "patient001").iterdir())
        ['.cfg', '.gz', '.gz', '.gz', '.gz']
    """
    folder = Path(folder)
    if patients < 1 or test_patients < 0 or workers < 0:
        found = f"patients={patients}, test_patients={test_patients}, workers={workers}"
        raise UsageError(f"The phantom needs at least one patient and no negative number, got {found}; correct it.")
    splits = ["training"] * patients + ["testing"] * test_patients
    orders = [_Order(folder / split, number, seed) for number, split in enumerate(splits, start=1)]
    _refuse_other_patients(folder, orders)
    for written, _ in enumerate(_carry_out(orders, workers), start=1):
        if progress is not None:
            progress(written, len(orders))
    return folder


def _refuse_other_patients(folder: Path, orders: list[_Order]) -> None:
    own = {order.folder / f"patient{order.number:03d}" for order in orders}
    others = sorted(path for split in ("training", "testing") for path in (folder / split).glob("*") if path not in own)
    if others:
        raise UsageError(f"{folder} already holds {others[0].name} and perhaps more; give the phantom an empty folder.")


def _carry_out(orders: list[_Order], workers: int) -> Iterator[None]:
    if workers < 2:
        yield from map(_write_patient, orders)
        return
    # Forking a process that has run torch can deadlock; a spawned one cannot.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_write_patient, orders)


def _write_patient(order: _Order) -> None:
    rng = np.random.default_rng(key_to_seed(order.seed, "phantom", order.number))
    group = GROUPS[(order.number - 1) % len(GROUPS)]
    heart = draw_heart(group, rng)
    relaxed = end_diastole(heart)
    protocol = draw_protocol(heart, relaxed.end_mm, rng)
    scanner = Scanner(heart, protocol, rng)
    phases = {"ED": relaxed, "ES": end_systole(heart)}
    frames, info = _draw_info(group, rng)
    patient_id = f"patient{order.number:03d}"
    patient = make_folder(order.folder / patient_id)
    for name, phase in phases.items():
        image, label = scanner.frame(phase, rng)
        stem = f"{patient_id}_frame{frames[name]:02d}"
        _write_nifti(patient / f"{stem}.nii.gz", image, protocol.spacing_mm)
        _write_nifti(patient / f"{stem}_gt.nii.gz", label, protocol.spacing_mm)
    write_text(patient / "Info.cfg", info)


def _draw_info(group: str, rng: np.random.Generator) -> tuple[dict[str, int], str]:
    """Frame numbers and the text of ``Info.cfg``; one patient in six has its end diastole in a later frame."""
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


def acdc_header(shape: tuple[int, ...], spacing_mm: tuple[float, ...], stored_type: str) -> nib.Nifti1Header:
    """A NIfTI header as ACDC's files have it: qform_code 0, sform_code 2 with ``diag(-1, -1, 1)``, true pixdim."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.dtype(stored_type))
    header.set_data_shape(shape)
    header["pixdim"] = (1, *spacing_mm, 1, 1, 1, 1)
    header["quatern_d"] = 1
    header["sform_code"] = 2
    header["srow_x"], header["srow_y"], header["srow_z"] = (-1, -0.0, 0, 0), (-0.0, -1, 0, 0), (0, 0, 1, 0)
    # What nibabel shows as NaN after loading is 1 and 0 on ACDC's disk.
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["vox_offset"] = 352
    return header


def _write_nifti(path: Path, array: NDArray[np.generic], spacing_mm: tuple[float, ...]) -> None:
    header = acdc_header(array.shape, spacing_mm, str(array.dtype))
    write_nifti(path, array, header, compression=4)
