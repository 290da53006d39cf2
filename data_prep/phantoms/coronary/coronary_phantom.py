"""Phantom in ImageCAS's layout: CT angiographies of coronary trees with known centrelines and topology."""

from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from data_prep.nifti_file import write_nifti
from data_prep.phantoms.coronary.coronary_case import draw_anatomy
from data_prep.phantoms.coronary.coronary_chest import draw_enhancement
from data_prep.phantoms.coronary.coronary_scanner import draw_protocol, scan
from data_prep.phantoms.phantom_folder import Order, Progress, check_counts, check_no_others, write_cases
from data_prep.raw_folder import list_files
from uumamba.runtime.files import make_folder, write_text
from uumamba.runtime.seeds import key_to_seed

SHEET_NAME = "imageCAS_data_split.csv"
_SHARD_SIZE = 200
_SPLITS = ("Split-1", "Split-2", "Split-3", "Split-4")


def write_coronary_phantom(
    folder: Path | str,
    *,
    cases: int = 40,
    seed: int = 0,
    test_cases: int = 0,
    workers: int = 0,
    progress: Progress = lambda written, total: None,
) -> Path:
    """Write phantom cases as ImageCAS unpacks: ``1-200/1.img.nii.gz``, ``1-200/1.label.nii.gz`` and so on.

    Each is a CT angiography of a heart about two thirds of an adult's size: images of some 100 to 150 voxels of 0.5 to
    0.6 mm an axis (real ones are 512 x 512 x 206 to 275), in int16 Hounsfield units, stored from right to left and from
    front to back as ImageCAS's. Arteries are 3 to 8 voxels wide. They have the aorta's contrast, and so have left
    ventricle, left atrium and the vessels of the lung; coronary veins have half of it at most. Plaques lie within the
    labelled vessel and bloom beyond it, some cases have a stent, and in some a tree moved. Pose, size, course,
    dominance and number of the branches, contrast, noise and field of view are drawn for each case.

    ``imageCAS_data_split.csv`` is beside the shards. In each of its four splits another fifth of the cases is for
    validation, so that fold 0 has a fifth and :func:`data_prep.read_imagecas` deals the rest to four more; test cases
    are the same in all. Equal arguments give equal bytes, for any number of workers; a case does not change with the
    number of cases. :func:`data_prep.phantoms.coronary.coronary_case.coronary_truth` gives centrelines, diameters and
    topology.

    Args:
        folder: gets shards and split sheet.
        cases: number of cases to train and validate with; fewer than five leave validation sets empty.
        seed: another seed gives other cases.
        test_cases: number of test cases, numbered on from the others.
        workers: processes; 0 works in this one. More need an importable main module, as every spawned process.
        progress: called with the number of cases written and of all.

    Returns:
        The folder.

    Raises:
        UsageError: a count is too small, or the folder holds other files already.

    Example:
        >>> import tempfile
        >>> raw = write_coronary_phantom(tempfile.mkdtemp(), cases=1)
        >>> sorted(path.relative_to(raw).as_posix() for path in raw.rglob("*.*"))
        ['1-200/1.img.nii.gz', '1-200/1.label.nii.gz', 'imageCAS_data_split.csv']
    """
    folder = Path(folder)
    check_counts(cases=(cases, 1), test_cases=(test_cases, 0), workers=(workers, 0))
    orders = [Order(folder / _shard(number), number, seed) for number in range(1, cases + test_cases + 1)]
    own = [order.folder / f"{order.number}.{kind}.nii.gz" for order in orders for kind in ("img", "label")]
    check_no_others(folder, list_files(folder), [*own, folder / SHEET_NAME])
    make_folder(folder)
    write_text(folder / SHEET_NAME, _split_sheet(cases, test_cases))
    write_cases(_write_case, orders, workers=workers, progress=progress)
    return folder


def _write_case(order: Order) -> None:
    anatomy = draw_anatomy(order.number, order.seed)
    rng = np.random.default_rng(key_to_seed(order.seed, "coronary phantom image", order.number))
    enhancement, protocol = draw_enhancement(rng), draw_protocol(rng)
    image = scan(anatomy.grid, anatomy.heart, anatomy.distances_mm, enhancement, anatomy.lesions, protocol, rng)
    affine = anatomy.affine
    make_folder(order.folder)
    _write_nifti(order.folder / f"{order.number}.img.nii.gz", image, affine)
    _write_nifti(order.folder / f"{order.number}.label.nii.gz", anatomy.label, affine)


def _write_nifti(path: Path, array: NDArray[np.generic], affine: NDArray[np.float64]) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_xyzt_units("mm")
    header.set_qform(affine, code="scanner")
    header.set_sform(affine, code="scanner")
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = 1, 0, 352
    write_nifti(path, array, header, compression=2)


def _shard(number: int) -> str:
    first = (number - 1) // _SHARD_SIZE * _SHARD_SIZE + 1
    return f"{first}-{first + _SHARD_SIZE - 1}"


def _split_sheet(cases: int, test_cases: int) -> str:
    """Give a row for each case; of five in a row one is for validation, the next one in the next split."""
    rows = [
        [str(number), *(_partition(number, split, cases) for split in range(len(_SPLITS)))]
        for number in range(1, cases + test_cases + 1)
    ]
    return "".join(f"{','.join(row)}\n" for row in [["FileName", *_SPLITS], *rows])


def _partition(number: int, split: int, cases: int) -> str:
    if number > cases:
        return "Testing"
    return "Validation" if number % 5 == (split + 1) % 5 and cases >= 5 else "Training"
