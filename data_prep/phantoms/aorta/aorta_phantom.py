"""Phantom in AortaSeg24's layout: dissected aortas in 23 zones and branches."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.phantoms.aorta.aorta_scanner import scan_aorta
from data_prep.phantoms.aorta.aorta_tree import draw_aorta_tree, make_generator
from data_prep.phantoms.aorta.aorta_tubes import AortaGrid
from data_prep.phantoms.phantom_folder import Order, Progress, check_no_others, write_cases
from uumamba.runtime.files import whole_file
from uumamba.runtime.options import NonNegativeInt, PositiveInt, check_options


@check_options
def write_aorta_phantom(
    folder: Path | str,
    *,
    cases: PositiveInt = 30,
    seed: int = 0,
    workers: NonNegativeInt = 0,
    progress: Progress = lambda written, total: None,
) -> Path:
    """Write phantom subjects in AortaSeg24's layout.

    Files are ``images/subject001_CTA.mha``, ``masks/subject001_label.mha`` and so on. An image is a CT angiography of
    the trunk, int16 from -1024 to 1500 HU at 1 mm. Its uint8 label has all 23 structures of
    :data:`data_prep.aorta.STRUCTURES`, each in one piece; their union is one tree without a loop.

    The zones have the borders of the Society for Vascular Surgery: the far edges of the ostia on the arch, 2 cm further
    down, T6 (the roof of the left atrium), the near edges of the celiac, mesenteric and first renal artery, the far
    edge of the last renal artery, and the bifurcations of the aorta and the iliac arteries. Branches end at their own
    bifurcation. Four aortas in five have a dissection that starts beyond the left subclavian artery; both lumens and
    the flap between them belong to the zones. Pose, size, course, arch, aneurysms, enhancement and surrounding organs
    are drawn for each subject. One arch in five is bovine (innominate and left carotid artery share an ostium).

    The field of view is limited to the aorta, about 155 x 150 x 435 voxels, which keeps training fast. Real scans are
    two to four times as wide, show the entire trunk, and have thinner branches. Subject numbers have gaps, as in the
    real data: 4, 11, 18 and so on are left out. Subjects from 041 on are the test set. Equal arguments give equal
    bytes, for any number of workers; a subject does not change with the number of cases.

    Args:
        folder: gets ``images/`` and ``masks/``.
        cases: number of subjects; up to 34 are training cases.
        seed: another seed gives other subjects.
        workers: number of worker processes; 0 uses this process. Workers need an importable main module.
        progress: called with the number of subjects written and of all.

    Returns:
        The folder.

    Raises:
        UsageError: a count is too small, or the folder holds other subjects.

    Example:
        >>> import tempfile
        >>> raw = write_aorta_phantom(tempfile.mkdtemp(), cases=1)
        >>> sorted(path.name for path in raw.rglob("*.mha"))
        ['subject001_CTA.mha', 'subject001_label.mha']

    References:
        Imran et al., The AortaSeg24 Challenge, 2025, arXiv:2502.05330 (layout and structures).
    """
    folder = Path(folder)
    # Gaps in the numbers reveal readers that count subjects instead of listing files.
    numbers = (number for number in itertools.count(1) if number % 7 != 4)
    orders = [Order(folder, number, seed) for number in itertools.islice(numbers, cases)]
    found = (path for part in ("images", "masks") for path in (folder / part).glob("*"))
    check_no_others(folder, found, (path for order in orders for path in _list_files(order)))
    write_cases(_write_case, orders, workers=workers, progress=progress)
    return folder


def _list_files(order: Order) -> tuple[Path, Path]:
    subject = f"subject{order.number:03d}"
    return order.folder / "images" / f"{subject}_CTA.mha", order.folder / "masks" / f"{subject}_label.mha"


def _write_case(order: Order) -> None:
    rng = make_generator(order.number, order.seed)
    image, label, grid = scan_aorta(draw_aorta_tree(rng), rng)
    image_path, label_path = _list_files(order)
    _write_mha(image_path, image, grid)
    _write_mha(label_path, label, grid)


def _write_mha(path: Path, voxels: NDArray[np.generic], grid: AortaGrid) -> None:
    """Write a compressed MetaImage with the axes of ITK's world (LPS)."""
    import SimpleITK  # 0.3 s, which readers of the data set need not spend

    volume: Any = SimpleITK.GetImageFromArray(voxels)
    right, front, head = grid.first_mm
    volume.SetOrigin((-right, -front, head))
    with whole_file(path) as unfinished:
        SimpleITK.WriteImage(volume, unfinished, useCompression=True, compressionLevel=1)
