"""Channels of one image: files, grids and their refusals."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from uumamba.data.case import Case
from uumamba.data.open_scan import open_scan
from uumamba.data.recipe import PreprocessRecipe
from uumamba.data.scan import read_case, read_image, write_label
from uumamba.data.source_key import source_key
from uumamba.data.warn import ScanWarning

NAMES = ("T1", "FLAIR")
SHAPE, SPACING_MM = (12, 10, 6), (1.0, 1.5, 4.0)
WriteScan = Callable[..., Path]


def make_values(dtype: str = "int16", shape: Sequence[int] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 200, shape).astype(dtype)


def make_affine(spacing_mm: Sequence[float] = SPACING_MM, *, angle: float = 0.3) -> np.ndarray:
    """Make an oblique affine."""
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing_mm
    affine[:3, 3] = 7, -3, 20
    return affine


def shift(affine: np.ndarray, voxels: Sequence[float]) -> np.ndarray:
    """Move a grid by voxels along its own axes."""
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ voxels
    return moved


def refine(affine: np.ndarray, factors: Sequence[float]) -> np.ndarray:
    """Return a grid with the same outer faces and so many voxels for one along each axis."""
    fine = affine.copy()
    fine[:3, :3] /= factors
    fine[:3, 3] = (affine @ [*((1 / np.array(factors) - 1) / 2), 1])[:3]
    return fine


@pytest.fixture
def write_pair(write_scan: WriteScan) -> Callable[..., tuple[Path, Path]]:
    """``write_pair(second, affine)`` writes a first channel and a second one on another grid."""

    def write(second: np.ndarray, affine: np.ndarray, **first: Any) -> tuple[Path, Path]:
        return (
            write_scan("a_0000.nii.gz", make_values(**first), affine=make_affine()),
            write_scan("a_0001.nii.gz", second, affine=affine),
        )

    return write


def resample_by_itk(paths: Sequence[Path]) -> np.ndarray:
    first, second = (SimpleITK.ReadImage(str(path), SimpleITK.sitkFloat64) for path in paths)
    resample = SimpleITK.ResampleImageFilter()
    resample.SetReferenceImage(first)
    resample.SetInterpolator(SimpleITK.sitkLinear)
    resample.UseNearestNeighborExtrapolatorOn()
    return SimpleITK.GetArrayFromImage(resample.Execute(second)).transpose(2, 1, 0)


def test_channels_are_stacked_in_their_order_with_the_grid_of_the_first(write_pair: Any) -> None:
    second = make_values("uint8", seed=1)
    paths = write_pair(second, make_affine())
    scan, alone = read_image(paths, channels=NAMES, keep_integers=True), read_image(paths[0], keep_integers=True)
    assert scan.array.shape == (2, *SHAPE)
    assert (scan.array.dtype, scan.shape, scan.spacing_mm) == (np.int16, SHAPE, alone.spacing_mm)
    assert np.array_equal(scan.array, [alone.array, second])
    assert np.array_equal(scan.affine, alone.affine)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_a_file_with_all_channels_equals_a_file_for_each(write_scan: WriteScan, dtype: str) -> None:
    each = [make_values(dtype, seed=seed) for seed in (0, 1)]
    paths = [write_scan(f"a_{index:04d}.nii.gz", array, affine=make_affine()) for index, array in enumerate(each)]
    single = write_scan("a.nii.gz", np.stack(each, axis=-1), affine=make_affine())
    separate, together = (read_image(given, channels=NAMES, keep_integers=True) for given in (paths, single))
    assert together.array.dtype == separate.array.dtype
    assert together.array.strides == separate.array.strides
    assert together.array.tobytes() == separate.array.tobytes()
    assert np.array_equal(together.affine, separate.affine)
    assert open_scan(single, channels=2).read_grid().array.shape == (2, *SHAPE)


def test_the_label_map_of_a_file_with_all_channels_is_a_volume_on_its_grid(write_scan: WriteScan) -> None:
    path = write_scan("a.nii.gz", np.stack([make_values()] * 2, axis=-1), affine=make_affine())
    label = (make_values() > 100).astype(np.uint8)
    write_label(path.with_name("out.nii.gz"), label, like=read_image(path, channels=NAMES))
    written = nib.load(path.with_name("out.nii.gz"))
    assert np.array_equal(np.asarray(written.dataobj), label)
    np.testing.assert_allclose(written.affine, nib.load(path).affine, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "affine"),
    [
        ((12, 10, 6), shift(make_affine(), (0.3, -0.4, 0.2))),
        ((24, 10, 6), refine(make_affine(), (2, 1, 1))),
        ((6, 30, 9), refine(make_affine(), (0.5, 3, 1.5))),
        ((12, 10, 6), make_affine(angle=0.33)),
    ],
)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_a_channel_on_another_grid_is_interpolated_as_by_itk(
    write_pair: Any, shape: Sequence[int], affine: np.ndarray, order: Sequence[int]
) -> None:
    second = make_values("int16", shape, seed=1).transpose(order)
    turned = affine[:, [*order, 3]].copy()
    second, turned = (
        second[::-1],
        turned
        @ np.array([[-1, 0, 0, second.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=np.float64),
    )
    paths = write_pair(np.ascontiguousarray(second), turned)
    with pytest.warns(ScanWarning, match=r"c7: channel 1 \(FLAIR\): on another grid, resampled") as warned:
        scan = read_image(paths, channels=NAMES, case_id="c7", keep_integers=True)
    assert len(warned) == 1
    np.testing.assert_allclose(scan.array[1], resample_by_itk(paths), rtol=0, atol=2e-3)
    assert np.array_equal(scan.array[0], read_image(paths[0]).array)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_channel_in_another_axis_order_keeps_its_integers(write_pair: Any, order: Sequence[int]) -> None:
    second = make_values(seed=1)
    turned = np.ascontiguousarray(second.transpose(order)[:, ::-1])
    affine = make_affine()[:, [*order, 3]]
    affine[:3, 3] += affine[:3, 1] * (turned.shape[1] - 1)
    affine[:3, 1] *= -1
    scan = read_image(write_pair(turned, affine), channels=NAMES, keep_integers=True)
    assert scan.array.dtype == np.int16
    assert np.array_equal(scan.array[1], second)


def test_a_channel_less_than_a_hundredth_of_a_voxel_apart_is_taken_as_it_is(write_pair: Any) -> None:
    second = make_values(seed=1)
    scan = read_image(write_pair(second, shift(make_affine(), (0.005, 0, 0))), channels=NAMES, keep_integers=True)
    assert np.array_equal(scan.array[1], second)


@pytest.mark.parametrize(
    ("shape", "affine", "apart"),
    [
        (SHAPE, shift(make_affine(), (0, 0.6, 0)), "0.6"),
        ((13, 10, 6), make_affine(), "1.0"),
        ((24, 10, 6), shift(refine(make_affine(), (2, 1, 1)), (1.1, 0, 0)), "0.6"),
        ((6, 10, 6), shift(refine(make_affine(), (0.5, 1, 1)), (0.6, 0, 0)), "0.6"),
    ],
)
def test_a_channel_with_another_field_of_view_is_refused(
    write_pair: Any, shape: Sequence[int], affine: np.ndarray, apart: str, refused: Any
) -> None:
    with refused("channel 1 (FLAIR)", case_id="c7") as error:
        read_image(write_pair(make_values(shape=shape), affine), channels=NAMES, case_id="c7")
    assert f"{apart} voxels between corners" in str(error.value.got)
    assert "12 x 10 x 6 voxels of 1 x 1.5 x 4 mm" in error.value.expected


def test_half_a_voxel_is_measured_in_the_coarser_grid(write_pair: Any) -> None:
    coarse = shift(refine(make_affine(), (0.5, 1, 1)), (0.45, 0, 0))
    with pytest.warns(ScanWarning, match="resampled"):
        read_image(write_pair(make_values(shape=(6, 10, 6)), coarse), channels=NAMES)


def test_a_wrong_number_of_channels_is_refused_with_the_channels_and_the_files(
    write_pair: Any, write_scan: WriteScan, refused: Any
) -> None:
    first, second = write_pair(make_values(), make_affine())
    with refused("image", "3 files: a_0000.nii.gz, a_0001.nii.gz, a_0001.nii.gz", case_id="c7") as error:
        read_image([first, second, second], channels=NAMES, case_id="c7")
    assert "channel 0 (T1), channel 1 (FLAIR)" in error.value.expected
    with refused("image", "2 files: a_0000.nii.gz, a_0001.nii.gz"):
        read_image([first, second])
    with refused("shape", SHAPE):
        read_image(first, channels=NAMES)
    three = write_scan("a.nii.gz", np.stack([make_values()] * 3, axis=-1), affine=make_affine())
    for given, channels in ((three, NAMES), (three, ("T1",)), ([first, three], NAMES)):
        with refused("shape", (*SHAPE, 3)):
            read_image(given, channels=channels)


def test_a_missing_channel_is_refused_by_name(write_pair: Any, tmp_path: Path, refused: Any) -> None:
    first, _ = write_pair(make_values(), make_affine())
    with refused("channel 1 (FLAIR)", str(tmp_path / "gone.nii.gz"), case_id="c7"):
        read_image([first, tmp_path / "gone.nii.gz"], channels=NAMES, case_id="c7")


def test_channels_of_another_format_need_a_file_each(tmp_path: Path, refused: Any) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(make_values()), str(tmp_path / "a.mha"))
    with refused("image", "a.mha"):
        read_image(tmp_path / "a.mha", channels=NAMES)
    assert read_image([tmp_path / "a.mha"] * 2, channels=NAMES).array.shape == (2, *SHAPE[::-1])


def test_the_label_of_an_image_with_channels_is_on_the_first_ones_grid(write_pair: Any, write_scan: WriteScan) -> None:
    paths = write_pair(make_values(shape=(24, 10, 6)), refine(make_affine(), (2, 1, 1)))
    label = write_scan("label.nii.gz", (make_values() > 100).astype(np.uint8), affine=make_affine())
    case = Case("c7", "p", "d", paths, label)
    with pytest.warns(ScanWarning, match="c7: channel 1"):
        image, read = read_case(case, structures={"lesion": 1}, channels=NAMES)
    assert image.shape == read.array.shape == SHAPE


def test_the_key_of_a_prepared_case_depends_on_every_channel_and_their_order(write_pair: Any) -> None:
    first, second = write_pair(make_values(seed=1), make_affine())

    def key(*paths: Path) -> str:
        case = Case("a", "a", "d", paths, first)
        return source_key(case, recipe=PreprocessRecipe((None, None, None)), structures={"lesion": 1})

    assert len({key(first, second), key(second, first), key(first, first), key(first)}) == 4
