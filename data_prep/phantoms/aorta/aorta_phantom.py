"""Phantom in AortaSeg24's layout: dissected aortas in 23 zones and branches, without a data agreement."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.phantoms.aorta.aorta_scanner import scan
from data_prep.phantoms.aorta.aorta_tree import draw_tree, subject_generator
from data_prep.phantoms.aorta.aorta_tubes import Grid
from data_prep.phantoms.phantom_folder import Order, Progress, check_counts, check_no_others, write_cases
from uumamba.runtime.files import make_folder, whole_file


def write_aorta_phantom(
    folder: Path | str,
    *,
    cases: int = 30,
    seed: int = 0,
    workers: int = 0,
    progress: Progress = lambda written, total: None,
) -> Path:
    """Write phantom subjects in AortaSeg24's layout: ``images/`` with scans and ``masks/`` with labels.

    Files are ``subject001_CTA.mha``, ``subject001_label.mha`` and so on. Each is a CT angiography of the trunk, int16
    from -1024 to 1500 HU at 1 mm, with a uint8 label of all 23 structures of :data:`data_prep.aorta.STRUCTURES`, every
    one a single piece, their union one tree without a loop. Zones end where the Society for Vascular Surgery sets their
    borders: at the far edges of the ostia on the arch, 2 cm further down, at T6 (the roof of the left atrium), at the
    near edges of celiac, mesenteric and first renal artery, at the far edge of the last renal one, and where the aorta
    and the iliac arteries divide. Branches end where they divide in two. Four aortas in five are dissected from beyond
    the left subclavian artery on; both lumens and the flap between them belong to the zones. Pose, size, course, arch,
    aneurysms, enhancement and the organs around are drawn for each subject; in one of five innominate and left carotid
    artery leave the arch together. :func:`data_prep.phantoms.aorta.aorta_tree.aorta_truth` gives centrelines, diameters
    and topology.

    The field of view is cut around the aorta, about 155 x 150 x 435 voxels, so that training stays light; real scans
    are two to four times as wide, show the whole trunk, and their branches are thinner. Subjects' numbers have gaps, as
    the real ones do: 4, 11, 18 and so on are left out, and those from 041 on are the test set. Equal arguments give
    equal bytes, for any number of workers; a subject does not change with the number of cases.

    Args:
        folder: gets ``images/`` and ``masks/``.
        cases: number of subjects; up to 34 are training cases.
        seed: another seed gives other subjects.
        workers: processes; 0 works in this one. More need an importable main module, as every spawned process.
        progress: called with the number of subjects written and of all.

    Returns:
        The folder.

    Raises:
        UsageError: a count is too small, or the folder holds other subjects already.

    Example:
        >>> import tempfile
        >>> raw = write_aorta_phantom(tempfile.mkdtemp(), cases=1)
        >>> sorted(path.name for path in raw.rglob("*.mha"))
        ['subject001_CTA.mha', 'subject001_label.mha']

    References:
        Imran et al., The AortaSeg24 Challenge, 2025, arXiv:2502.05330 (layout and structures).
    """
    folder = Path(folder)
    check_counts(cases=(cases, 1), workers=(workers, 0))
    # Numbers have a gap after every sixth, for readers that count instead of looking.
    numbers = (number for number in itertools.count(1) if number % 7 != 4)
    orders = [Order(folder, number, seed) for number in itertools.islice(numbers, cases)]
    found = (path for part in ("images", "masks") for path in (folder / part).glob("*"))
    check_no_others(folder, found, (path for order in orders for path in _paths(order)))
    write_cases(_write_case, orders, workers=workers, progress=progress)
    return folder


def _paths(order: Order) -> tuple[Path, Path]:
    subject = f"subject{order.number:03d}"
    return order.folder / "images" / f"{subject}_CTA.mha", order.folder / "masks" / f"{subject}_label.mha"


def _write_case(order: Order) -> None:
    paths = _paths(order)
    for path in paths:
        make_folder(path.parent)
    rng = subject_generator(order.number, order.seed)
    image, label, grid = scan(draw_tree(rng), rng)
    _write_mha(paths[0], image, grid)
    _write_mha(paths[1], label, grid)


def _write_mha(path: Path, voxels: NDArray[np.generic], grid: Grid) -> None:
    """A compressed MetaImage whose axes run to the left, to the back and to the head, as ITK's world does."""
    import SimpleITK  # a third of a second that readers of the data set need not wait

    volume: Any = SimpleITK.GetImageFromArray(voxels)
    right, front, head = grid.first_mm
    volume.SetOrigin((-right, -front, head))
    with whole_file(path) as unfinished:
        SimpleITK.WriteImage(volume, unfinished, useCompression=True, compressionLevel=1)
