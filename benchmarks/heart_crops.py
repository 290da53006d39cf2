"""Copies of ACDC whose frames are cut around the heart's label."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from data_prep.acdc import read_acdc
from uumamba.runtime.files import make_folder


def cut_around_hearts(raw: Path, out: Path, *, margin_mm: float) -> Path:
    """Write a copy of each frame, cut around its label.

    Images and labels keep their voxels and affine spacing, and all slices. Frames that are there are kept.

    Args:
        raw: ACDC as it was downloaded; only read.
        out: folder in the same layout.
        margin_mm: distance that is kept around the label.

    Returns:
        ``out``.
    """
    for case in read_acdc(raw)[0].select(split="training"):
        files = {name: raw / name for name in case.files}
        folder = make_folder(out / "training" / case.patient_id)
        if all((folder / path.name).is_file() for path in files.values()):
            continue
        shutil.copyfile(raw / case.images[0].parent / "Info.cfg", folder / "Info.cfg")
        scans: dict[str, Any] = {path.name: nib.load(path) for path in files.values()}
        *_, label = scans.values()
        box = find_box(np.asarray(label.dataobj), label.header.get_zooms(), margin_mm)
        _save(scans, box, folder)
    return out


def find_box(label: Any, spacing_mm: tuple[float, ...], margin_mm: float) -> tuple[slice, slice]:
    """Find the in-plane box of all structures, with a margin.

    Example:
        >>> label = np.zeros((20, 20, 2))
        >>> label[8:10, 3, 0] = 1
        >>> find_box(label, (2.0, 2.0, 8.0), 10.0)
        (slice(3, 15, None), slice(0, 9, None))
    """
    found = []
    for axis in (0, 1):
        places = np.flatnonzero(label.any(axis=tuple({0, 1, 2} - {axis})))
        margin = round(margin_mm / spacing_mm[axis])
        found.append(slice(max(0, int(places[0]) - margin), int(places[-1]) + 1 + margin))
    return found[0], found[1]


def _save(scans: Mapping[str, Any], box: tuple[slice, slice], folder: Path) -> None:
    for name, scan in scans.items():
        nib.save(scan.slicer[box], folder / name)
