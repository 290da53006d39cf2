"""Tests of the cases that are made of Sunnybrook's contours."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.sunnybrook import PHASES, fill_outline, find_area, find_perimeter, main
from tests.data.formats.dicom_files import COLUMNS, ROWS, STEP_MM, make_slices
from uumamba.data.label_scheme import IGNORED
from uumamba.data.scan import check_same_grid, read_image, read_label

SQUARE = np.array([[9.5, 4.5], [9.5, 20.5], [29.5, 20.5], [29.5, 4.5]])  # columns 10 to 29, rows 5 to 20


def draw_circle(radius: float, *, corners: int = 400) -> NDArray[np.float64]:
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.column_stack([40.2 + radius * np.cos(angles), 37.3 + radius * np.sin(angles)])


def find_inside(outline: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Count the edges that a ray to the right crosses."""
    x, y = np.indices(shape).astype(np.float64)
    inside = np.zeros(shape, dtype=np.bool_)
    for (x0, y0), (x1, y1) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    return inside


def test_a_square_between_pixels_has_the_pixels_inside() -> None:
    mask = fill_outline(SQUARE, (40, 33))
    expected = np.zeros((40, 33), dtype=bool)
    expected[10:30, 5:21] = True
    assert np.array_equal(mask, expected)
    assert mask.sum() == find_area(SQUARE) == 320
    assert find_perimeter(SQUARE) == 72


@pytest.mark.parametrize("outline", [draw_circle(20.3), draw_circle(30.1, corners=5), draw_circle(12)[::-1]])
def test_a_pixel_is_inside_if_a_ray_from_its_centre_crosses_the_outline_an_odd_number_of_times(outline: Any) -> None:
    assert np.array_equal(fill_outline(outline, (80, 90)), find_inside(outline, (80, 90)))


def test_the_pixels_of_a_disc_have_its_area() -> None:
    for radius in (5.0, 11.0, 30.0):
        assert fill_outline(draw_circle(radius), (80, 80)).sum() == pytest.approx(np.pi * radius**2, rel=0.02)


def test_a_contour_that_leaves_the_image_is_refused(refused: Any) -> None:
    with refused("contour", got="0 pixels"):
        fill_outline(SQUARE + 100, (40, 33))


def write_raw(raw: Path) -> Path:
    """Write a patient of three slices in two phases, numbered against their positions; one has no contour."""
    for folder in ("dicoms/P1", "contourfiles/SC-1/i-contours", "contourfiles/SC-1/o-contours"):
        (raw / folder).mkdir(parents=True)
    (raw / "link.csv").write_text("patient_id,original_id\nP1,SC-1\nP2,SC-2\n")
    images = make_slices(3, RescaleIntercept=0, ImagePositionPatient=lambda index: [-7.5, 12.25, -STEP_MM * index])
    for phase in (4, 17):
        for index, image in enumerate(images):
            number = index * PHASES + phase + 1
            image.save_as(raw / "dicoms" / "P1" / f"{number}.dcm", enforce_file_format=True)
            kinds = "" if index == 2 else "io" if phase == 17 else "i"
            for kind in kinds:
                name = f"contourfiles/SC-1/{kind}-contours/IM-0001-{number:04d}-{kind}contour-manual.txt"
                np.savetxt(raw / name, SQUARE + index, fmt="%.2f")
    return raw


def test_slices_without_a_contour_are_ignored_and_the_others_lie_on_their_image(tmp_path: Path) -> None:
    raw, out = write_raw(tmp_path / "raw"), tmp_path / "out"
    before = {path: path.read_bytes() for path in raw.rglob("*") if path.is_file()}
    assert main(["--raw", str(raw), "--out", str(out)]) == 0
    assert {path: path.read_bytes() for path in raw.rglob("*") if path.is_file()} == before
    with (out / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["patient"], row["phase"]) for row in rows] == [
        ("SC-1_ES", "SC-1", "ES"),
        ("SC-1_ED", "SC-1", "ED"),
    ]
    for row in rows:
        image = read_image(out / row["image"])
        label = read_label(out / row["label"], structures={"LV": 1, "ignored": IGNORED})
        check_same_grid(image, label, case_id=row["case"])
        assert label.array.shape == (COLUMNS, ROWS, 3)
        # The numbers count downwards: the slice without a contour is the lowest.
        assert (label.array[:, :, 0] == IGNORED).all()
        for plane, moved in ((2, 0), (1, 1)):
            expected = np.zeros((COLUMNS, ROWS), dtype=np.uint8)
            expected[10 + moved : 30 + moved, 5 + moved : 21 + moved] = 1
            assert np.array_equal(label.array[:, :, plane], expected)


def test_a_patient_without_outer_contours_is_refused(tmp_path: Path, refused: Any) -> None:
    raw = write_raw(tmp_path / "raw")
    for path in (raw / "contourfiles" / "SC-1" / "o-contours").iterdir():
        path.unlink()
    with refused("phase", case_id="SC-1"):
        main(["--raw", str(raw), "--out", str(tmp_path / "out")])
    with refused("--raw", got=tmp_path):
        main(["--raw", str(tmp_path), "--out", str(tmp_path / "out")])


def test_real_cavities_are_brighter_than_their_wall_and_eject_some_blood(real_data: Path, tmp_path: Path) -> None:
    if not (real_data / "sunnybrook").is_dir():
        pytest.skip("real data: sunnybrook is absent")
    main(["--raw", str(real_data / "sunnybrook"), "--out", str(tmp_path), "--quick"])
    volumes = {}
    for phase in ("ED", "ES"):
        image = read_image(tmp_path / "images" / f"SC-HF-I-1_{phase}")
        label = read_label(tmp_path / "labels" / f"SC-HF-I-1_{phase}.nii.gz", structures={"LV": 1, "ignored": IGNORED})
        cavity = label.array == 1
        outside = np.zeros_like(cavity)
        for axis in (0, 1):
            for step in (-4, 4):
                outside |= np.roll(cavity, step, axis)
        assert image.array[cavity].mean() > 2 * image.array[outside & ~cavity].mean()
        volumes[phase] = cavity.sum() * np.prod(image.spacing_mm) / 1000
    assert 0.1 < 1 - volumes["ES"] / volumes["ED"] < 0.4  # a failing heart, as its name says
