"""Derived spacing, patch and strides: nnU-Net's published topology, budgets, stand-ins."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uumamba.config import RunConfig, read_config
from uumamba.config.automatic import MOST_VOXELS, choose_patch, choose_stages, round_patch
from uumamba.data.geometry import Geometry, find_geometry
from uumamba.runtime.errors import UsageError

SIZES = st.tuples(st.integers(8, 60), st.integers(40, 600), st.integers(40, 600))
SPACINGS = st.tuples(st.floats(0.5, 12), st.floats(0.3, 3), st.floats(0.3, 3))


def geometries(*scans: tuple[Sequence[int], Sequence[float]]) -> list[Geometry]:
    """Geometries of axial scans ``(Z, Y, X)``."""
    return [find_geometry(shape[::-1], spacing_mm=spacing[::-1]) for shape, spacing in scans]


def test_stages_are_those_that_nnunet_published_for_acdc_in_3d() -> None:
    stages = choose_stages((20, 256, 224), (5.0, 1.5625, 1.5625), most=6)
    published = read_config("acdc_3d").net  # patch, strides and kernels of nnU-Net's plans
    assert stages.strides == published.strides
    assert stages.kernel_sizes == published.kernel_sizes


def test_stages_of_an_isotropic_cube_halve_every_axis() -> None:
    stages = choose_stages((128, 128, 128), (0.8, 0.8, 0.8), most=6)
    assert stages.strides == ((1, 1, 1), *[(2, 2, 2)] * 5)
    assert {*stages.kernel_sizes} == {(3, 3, 3)}


@given(shape=SIZES, spacing_mm=SPACINGS, most_voxels=st.integers(4096, 500_000))
def test_a_patch_is_a_cube_in_millimetres_within_the_image_and_the_budget(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...], most_voxels: int
) -> None:
    patch = choose_patch(shape, spacing_mm, most_voxels=most_voxels)
    assert prod(patch) <= max(most_voxels, 1)
    assert all(1 <= size <= whole for size, whole in zip(patch, shape, strict=True))
    edges = [size * mm for size, mm, whole in zip(patch, spacing_mm, shape, strict=True) if size < whole]
    assert not edges or max(edges) - min(edges) <= 1.01 * max(spacing_mm)  # half a voxel each, by rounding
    if patch != shape:  # no whole axis is longer than the cut ones
        whole = [size * mm for size, mm, full in zip(patch, spacing_mm, shape, strict=True) if size == full]
        assert max(edges) >= max(whole, default=0.0) - max(spacing_mm)


@given(shape=SIZES, spacing_mm=SPACINGS, most=st.integers(2, 7))
def test_strides_divide_the_rounded_patch_and_leave_four_voxels(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...], most: int
) -> None:
    patch = choose_patch(shape, spacing_mm, most_voxels=MOST_VOXELS[3])
    stages = choose_stages(patch, spacing_mm, most=most)
    rounded = round_patch(patch, shape, stages.divisor)
    assert 2 <= len(stages.strides) <= most
    for size, step, axis in zip(rounded, stages.divisor, range(3), strict=True):
        assert size % step == 0
        assert step == 1 or patch[axis] / step > 2  # of at least 8 voxels before the last halving


def test_a_configuration_without_auto_is_returned_as_it_is() -> None:
    config = read_config("demo")
    assert config.resolve([]) == (config, {})


def test_derived_values_are_the_medians_and_replace_every_auto() -> None:
    config = read_config("folder_2d")
    assert config.automatic == ("preprocess.spacing_mm", "training.patch_size", "net.strides")
    scans = [
        ((10, 256, 216), (10.0, 1.5625, 1.5625)),
        ((9, 200, 200), (8.0, 1.25, 1.25)),
        ((8, 256, 256), (5, 1.8, 1.8)),
    ]
    resolved, found = config.resolve(geometries(*scans))
    assert resolved.preprocess.spacing_mm == (None, 1.56, 1.56)
    assert resolved.training.patch_size == (192, 192)
    assert resolved.net.strides == ((1, 1), *[(2, 2)] * 5)
    assert not resolved.automatic
    assert found["training.patch_size"] == [192, 192]
    resolved.check()


def test_small_images_get_fewer_stages_and_the_lists_are_cut() -> None:
    resolved, found = read_config("folder_2d").resolve(geometries(((1, 30, 40), (1.0, 1.0, 1.0))))
    assert resolved.net.strides == ((1, 1), (2, 2), (2, 2), (2, 2))
    assert found["net.features"] == [16, 32, 64, 128]
    assert resolved.net.decoder_blocks == (1, 1, 1)
    assert resolved.training.patch_size == (32, 40)  # 30 is padded to a multiple of 8
    resolved.check()


def test_spacing_of_prepared_cases_replaces_the_median() -> None:
    config = read_config("folder_3d")
    resolved, _ = config.resolve(geometries(((40, 90, 90), (2.0, 1.0, 1.0))), spacing_mm=(1.5, 1.0, 1.0))
    assert resolved.preprocess.spacing_mm == (1.5, 1.0, 1.0)
    resolved.check()


def test_strides_of_a_given_patch_divide_it() -> None:
    config = read_config("folder_2d", ["training.patch_size=[48, 80]"])
    resolved, found = config.resolve(geometries(((10, 256, 216), (10.0, 1.5, 1.5))))
    assert "training.patch_size" not in found
    assert resolved.net.strides == ((1, 1), (2, 2), (2, 2), (2, 2), (1, 2))


def test_a_derived_patch_fits_given_strides() -> None:
    config = read_config("demo", ["training.patch_size=auto"])
    resolved, found = config.resolve(geometries(((10, 100, 130), (10.0, 2.0, 2.0))))
    assert found == {"training.patch_size": [112, 144]}  # the whole image, padded to multiples of 16
    resolved.check()


def test_images_without_room_for_two_stages_are_refused(refused: Any) -> None:
    with refused("training.patch_size", got=(6, 7)):
        read_config("folder_2d").resolve(geometries(((10, 6, 7), (10.0, 1.0, 1.0))))


def test_auto_without_a_case_is_refused(refused: Any) -> None:
    with refused("preprocess.spacing_mm", got="auto without a readable case"):
        read_config("folder_2d").resolve([])


@pytest.mark.parametrize("key", ["optim.rho=0.1", "training.epochs=0", "loss.name=none", "net.features=3"])
def test_other_wrong_keys_of_an_automatic_configuration_are_refused(key: str) -> None:
    with pytest.raises(UsageError, match=key.partition("=")[0]):
        read_config("folder_2d", [key])


def test_a_resolved_configuration_is_stored_and_read_equal() -> None:
    resolved, _ = read_config("folder_3d").resolve(geometries(((40, 90, 90), (2.0, 1.0, 1.0))))
    assert RunConfig.model_validate(resolved.as_json()) == resolved


def test_a_cropped_case_counts_with_its_cropped_size() -> None:
    whole = geometries(((10, 100, 100), (5.0, 1.0, 1.0)))[0]
    cropped = replace(whole, crop_start=(0, 20, 20), crop_stop=(10, 68, 68))
    resolved, _ = read_config("folder_2d").resolve([cropped])
    assert resolved.training.patch_size == (48, 48)
