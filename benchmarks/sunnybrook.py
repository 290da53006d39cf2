r"""Folder of DICOM cases with label maps, from Sunnybrook's contours.

    python -m benchmarks.sunnybrook --raw sunnybrook --out sunnybrook_cases

RAW holds ``link.csv``, ``dicoms/<patient_id>/<n>.dcm`` and ``contourfiles/<original_id>/{i,o}-contours`` of Sunnybrook
Cardiac Data (CC0), only read. OUT gets ``images/<case_id>/`` with the copied slices of one phase,
``labels/<case_id>.nii.gz`` on the same grid, and ``cases.csv`` with patients and phases. As a data set it is::

    dataset: {name: folder, structures: {LV: 1}, ignore_value: 255}

Labels are 1 inside the inner contour (cavity of the left ventricle), and 255 on every slice without a contour: base and
apex were left out by the readers, so it is unknown what is cavity there. Outer contours exist at end-diastole only and
are not used: the myocardium would be a structure at end-diastole and background at end-systole.
"""

import argparse
import csv
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from matplotlib.path import Path as Polygon
from numpy.typing import NDArray

from benchmarks.scan import print_rows
from uumamba.data.label_scheme import IGNORED
from uumamba.data.scan import read_image, write_label
from uumamba.runtime.errors import require, require_case
from uumamba.runtime.files import make_folder, whole_file

PHASES = 20
"""Phases of a cine; file ``n`` is slice ``(n - 1) // 20`` at phase ``(n - 1) % 20``."""
CAVITY = 1
_CONTOUR = re.compile(r"IM-0001-(\d{4})-[io]contour-manual\.txt")

Points = NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True)
class Cine:
    """Files of one patient, by number of the slice's file."""

    patient: str
    slices: Mapping[int, Path]
    inner: Mapping[int, Path]
    outer: Mapping[int, Path]


def main(given: Sequence[str] | None = None) -> int:
    """Write the cases, and print the volumes of their labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True, help="the Sunnybrook folder")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--quick", action="store_true", help="only the first patient")
    options = parser.parse_args(given)
    cines = find_cines(options.raw)
    rows = [row for cine in (cines[:1] if options.quick else cines) for row in write_cine(cine, options.out)]
    write_table(options.out / "cases.csv", rows)
    print_rows(rows)
    return 0


def find_cines(raw: Path) -> list[Cine]:
    """Find the patients with images.

    Raises:
        UsageError: there is none.
    """
    link = raw / "link.csv"
    require(link.is_file(), "--raw", got=raw, expected="the Sunnybrook folder with link.csv")
    with link.open(newline="", encoding="utf-8") as file:
        originals = {row["patient_id"]: row["original_id"] for row in csv.DictReader(file)}
    cines = []
    for patient_id, original in sorted(originals.items()):
        slices = {int(path.stem): path for path in (raw / "dicoms" / patient_id).glob("*.dcm")}
        inner, outer = (_find_contours(raw / "contourfiles" / original / f"{kind}-contours") for kind in "io")
        if slices:
            cines.append(Cine(original, slices, inner, outer))
    require(cines, "--raw", got=raw, expected="dicoms/<patient_id>/<n>.dcm of a patient in link.csv")
    return cines


def write_cine(cine: Cine, out: Path) -> list[Row]:
    """Write the cases of a patient, and return a row for each.

    Raises:
        CaseError: the slices are not of two phases, or outer contours not of one of them.
    """
    phases = {(number - 1) % PHASES for number in cine.slices}
    diastole = {(number - 1) % PHASES for number in cine.outer}
    require_case(
        len(phases) == 2 and len(diastole) == 1 and diastole < phases,
        cine.patient,
        "phase",
        got=f"slices of phases {sorted(phases)}, outer contours of {sorted(diastole)}",
        expected="slices of two phases, and outer contours of one",
        fix="restore the files from their source",
    )
    return [write_case(cine, phase, "ED" if phase in diastole else "ES", out) for phase in sorted(phases)]


def write_case(cine: Cine, phase: int, name: str, out: Path) -> Row:
    """Copy the slices of a phase, and write their label map."""
    case_id = f"{cine.patient}_{name}"
    folder = make_folder(out / "images" / case_id)
    numbers = [number for number in sorted(cine.slices) if (number - 1) % PHASES == phase]
    for number in numbers:
        shutil.copyfile(cine.slices[number], folder / f"{number:03d}.dcm")
    scan = read_image(folder, case_id=case_id)
    label = np.full(scan.array.shape, IGNORED, dtype=np.uint8)
    annotated = [number for number in numbers if number in cine.inner]
    for number in annotated:
        outline = read_contour(cine.inner[number])
        label[:, :, find_plane(cine.slices[number], scan.affine)] = CAVITY * fill_outline(outline, label.shape[:2])
    write_label(make_folder(out / "labels") / f"{case_id}.nii.gz", label, scan)
    return {
        "case": case_id,
        "patient": cine.patient,
        "phase": name,
        "image": f"images/{case_id}",
        "label": f"labels/{case_id}.nii.gz",
        "slices": len(numbers),
        "annotated": len(annotated),
        "cavity_ml": round(int((label == CAVITY).sum()) * float(np.prod(scan.spacing_mm)) / 1000, 1),
    }


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write the columns of the rows that a folder of scans needs."""
    with whole_file(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["case", "patient", "phase", "image", "label"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def read_contour(path: Path) -> Points:
    """Read a contour, one vertex ``x y`` a line in pixels."""
    return np.loadtxt(path, dtype=np.float64, ndmin=2)


def find_plane(path: Path, affine: NDArray[np.float64]) -> int:
    """Find a slice's plane in its scan by ``ImagePositionPatient``."""
    position = np.array(pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient, dtype=np.float64)
    voxel = np.linalg.solve(affine, [*(position * (-1, -1, 1)), 1.0])[:3]
    require(np.abs(voxel[:2]).max() < 0.5, path.name, got=voxel[:2].tolist(), expected="the first voxel of a plane")
    return round(float(voxel[2]))


def fill_outline(outline: Points, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the pixels ``(X, Y)`` whose centre is inside a polygon.

    The centre of the first pixel is (0, 0). A pixel's centre on an edge may be in or out.

    Raises:
        UsageError: the area differs from the polygon's by more than its perimeter allows.

    Example:
        >>> fill_outline(np.array([[0.5, 0.5], [0.5, 2.5], [3.5, 2.5], [3.5, 0.5]]), (5, 4)).sum()
        np.int64(6)
    """
    centres = np.indices(shape[:2]).reshape(2, -1).T
    mask = Polygon(outline).contains_points(centres).reshape(shape[:2])
    found, area, bound = int(mask.sum()), find_area(outline), find_perimeter(outline) / 2 + 1
    # Nosarzewska 1948: of a convex polygon, the number of centres inside differs from the area by at most this.
    require(abs(found - area) <= bound, "contour", got=f"{found} pixels", expected=f"{area:.1f} +- {bound:.1f}")
    return mask


def find_area(outline: Points) -> float:
    """Compute a polygon's area by the shoelace formula."""
    x, y = outline.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def find_perimeter(outline: Points) -> float:
    """Compute a polygon's perimeter."""
    return float(np.linalg.norm(outline - np.roll(outline, -1, axis=0), axis=1).sum())


def _find_contours(folder: Path) -> dict[int, Path]:
    found = {path: _CONTOUR.fullmatch(path.name) for path in folder.glob("*.txt")}
    return {int(match[1]): path for path, match in found.items() if match}


if __name__ == "__main__":
    sys.exit(main())
