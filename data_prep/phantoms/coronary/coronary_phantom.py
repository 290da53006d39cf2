"""Phantom in ImageCAS's layout: coronary trees with exact centrelines and topology."""

from pathlib import Path

import numpy as np

from data_prep.nifti_file import make_header, write_nifti
from data_prep.phantoms.coronary.coronary_case import draw_anatomy
from data_prep.phantoms.coronary.coronary_chest import draw_coronary_enhancement
from data_prep.phantoms.coronary.coronary_scanner import draw_ct_protocol, scan_coronaries
from data_prep.phantoms.phantom_folder import Order, Progress, check_no_others, write_cases
from data_prep.raw_folder import list_files
from uumamba.runtime.files import write_text
from uumamba.runtime.options import NonNegativeInt, PositiveInt, check_options
from uumamba.runtime.seeds import key_to_seed

SHEET_NAME = "imageCAS_data_split.csv"
_SHARD_SIZE = 200
_SPLITS = ("Split-1", "Split-2", "Split-3", "Split-4")


@check_options
def write_coronary_phantom(
    folder: Path | str,
    *,
    cases: PositiveInt = 40,
    seed: int = 0,
    test_cases: NonNegativeInt = 0,
    workers: NonNegativeInt = 0,
    progress: Progress = lambda written, total: None,
) -> Path:
    """Write phantom cases in ImageCAS's layout.

    Files are ``1-200/1.img.nii.gz``, ``1-200/1.label.nii.gz`` and so on. An image is a CT angiography of a heart about
    two thirds of an adult's size, in int16 Hounsfield units. It has some 100 to 150 voxels of 0.5 to 0.6 mm per axis
    (real images have 512 x 512 x 206 to 275), stored from right to left and from front to back as in ImageCAS.

    Arteries are 3 to 8 voxels wide and as bright as the aorta, the left heart and the pulmonary vessels; coronary veins
    have at most half that contrast. Plaques are within the labelled vessel and bloom beyond it. Some cases have a
    stent, and in some a tree moved during the scan. Pose, size, course, dominance and number of the branches, contrast,
    noise and field of view are drawn for each case.

    The split sheet ``imageCAS_data_split.csv`` is in the same folder. Each of its four splits has another fifth of the
    cases for validation, which :func:`data_prep.read_imagecas` makes fold 0; the reader deals the other cases to folds
    1 to 4. Test cases are the same in all splits. Equal arguments give equal bytes, for any number of workers; a case
    does not change with the number of cases.

    Args:
        folder: gets shards and split sheet.
        cases: number of cases for training and validation; with fewer than five, validation sets are empty.
        seed: another seed gives other cases.
        test_cases: number of test cases, numbered after the others.
        workers: number of worker processes; 0 uses this process. Workers need an importable main module.
        progress: called with the number of cases written and of all.

    Returns:
        The folder.

    Raises:
        UsageError: a count is too small, or the folder holds other files.

    Example:
        >>> import tempfile
        >>> raw = write_coronary_phantom(tempfile.mkdtemp(), cases=1)
        >>> sorted(path.relative_to(raw).as_posix() for path in raw.rglob("*.*"))
        ['1-200/1.img.nii.gz', '1-200/1.label.nii.gz', 'imageCAS_data_split.csv']
    """
    folder = Path(folder)
    orders = [Order(folder / _name_shard(number), number, seed) for number in range(1, cases + test_cases + 1)]
    own = [order.folder / f"{order.number}.{kind}.nii.gz" for order in orders for kind in ("img", "label")]
    check_no_others(folder, list_files(folder), [*own, folder / SHEET_NAME])
    write_text(folder / SHEET_NAME, _format_split_sheet(cases, test_cases))
    write_cases(_write_case, orders, workers=workers, progress=progress)
    return folder


def _write_case(order: Order) -> None:
    anatomy = draw_anatomy(order.number, order.seed)
    rng = np.random.default_rng(key_to_seed(order.seed, "coronary phantom image", order.number))
    enhancement, protocol = draw_coronary_enhancement(rng), draw_ct_protocol(rng)
    image = scan_coronaries(
        anatomy.grid, anatomy.heart, anatomy.distances_mm, enhancement, anatomy.lesions, protocol, rng
    )
    for kind, array in (("img", image), ("label", anatomy.label)):
        header = make_header(array)
        header.set_xyzt_units("mm")
        header.set_qform(anatomy.affine, code="scanner")
        header.set_sform(anatomy.affine, code="scanner")
        write_nifti(order.folder / f"{order.number}.{kind}.nii.gz", array, header, compression=2)


def _name_shard(number: int) -> str:
    first = (number - 1) // _SHARD_SIZE * _SHARD_SIZE + 1
    return f"{first}-{first + _SHARD_SIZE - 1}"


def _format_split_sheet(cases: int, test_cases: int) -> str:
    """Format the split sheet, with one row per case.

    Every fifth case is for validation, with another offset in each split.
    """
    rows = [
        [str(number), *(_choose_partition(number, split, cases) for split in range(len(_SPLITS)))]
        for number in range(1, cases + test_cases + 1)
    ]
    return "".join(f"{','.join(row)}\n" for row in [["FileName", *_SPLITS], *rows])


def _choose_partition(number: int, split: int, cases: int) -> str:
    if number > cases:
        return "Testing"
    return "Validation" if number % 5 == (split + 1) % 5 and cases >= 5 else "Training"
