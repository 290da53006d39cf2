"""Prediction on the grid of an image, by one network or several."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from uumamba.inference import MemoryWarning, Predictor
from uumamba.inference.memory_plan import GB
from uumamba.nets import ResEncUNet
from uumamba.runtime.errors import CaseError
from uumamba.runtime.memory_shortage import OutOfMemoryError, measure_resident_bytes

Array = NDArray[Any]


class Thresholds(nn.Module):
    """Network with class 1 for voxels above a threshold."""

    def __init__(self, threshold: float, sharpness: float = 50.0) -> None:
        super().__init__()
        self.threshold, self.sharpness = threshold, sharpness

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), self.sharpness * (x - self.threshold)], dim=1)


SPACING_MM = (1.5, 1.5, 10.0)


def move_last_axis_first(image: Array, *, spacing_mm: Any, affine: Any, case_id: str) -> tuple[Array, str]:
    assert (tuple(spacing_mm), affine, case_id) == (SPACING_MM, None, "image")
    return np.moveaxis(image, -1, 0)[None], "moved"


def move_first_axis_last(
    predict: Any, geometry: str, *, strips: int, probabilities: bool
) -> tuple[Array, Array | None]:
    assert (geometry, strips) == ("moved", 1)
    found = np.stack([plane.copy() for plane in predict(None)], axis=-1)
    return found.argmax(axis=0).astype(np.uint8), found if probabilities else None


WAYS: dict[str, Any] = {"preprocess": move_last_axis_first, "restore_planes": move_first_axis_last}


@pytest.mark.parametrize("patch_size", [(8, 8), (4, 8, 8)])
def test_label_and_probabilities_are_on_the_grid_of_the_image(patch_size: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).normal(size=(13, 9, 5)).astype(np.float32)
    predictor = Predictor([Thresholds(0.3)], patch_size=patch_size, structures={"LV": 1}, **WAYS)
    found = predictor(image, spacing_mm=SPACING_MM)
    assert (found.label.dtype, found.probabilities) == (np.uint8, None)
    np.testing.assert_array_equal(found.label, image > 0.3)
    with_probabilities = predictor(image, spacing_mm=SPACING_MM, probabilities=True)
    np.testing.assert_array_equal(with_probabilities.probabilities.argmax(axis=0), found.label)


def test_without_restoring_the_label_is_on_the_grid_of_the_prepared_array(refused: Any) -> None:
    image = np.random.default_rng(0).normal(size=(13, 9, 5)).astype(np.float32)
    predictor = Predictor(Thresholds(0.3), patch_size=(8, 8), preprocess=move_last_axis_first)
    np.testing.assert_array_equal(predictor(image, spacing_mm=SPACING_MM).label, np.moveaxis(image, -1, 0) > 0.3)
    with refused("restore_planes", got=None):
        predictor(image, spacing_mm=SPACING_MM, probabilities=lambda *_: None)


def test_an_array_in_strips_for_a_small_limit_has_the_label_and_probabilities_of_the_whole() -> None:
    image = np.random.default_rng(0).normal(size=(1, 20, 256, 256)).astype(np.float32)
    net = nn.Conv3d(1, 24, kernel_size=1)
    options: dict[str, Any] = {"patch_size": (16, 32, 32), "overlap": 0.25}
    options["structures"] = {f"structure{value}": value for value in range(1, 24)}
    sizes: list[int] = []
    net.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    whole = Predictor(net, **options)(image, probabilities=True)
    windows = sum(sizes)
    sizes.clear()
    limit_gb = measure_resident_bytes() / GB + 0.2
    found = Predictor(net, memory_limit_gb=limit_gb, **options)(image, probabilities=True)
    assert (max(sizes), sum(sizes) > windows) == (2, True), "strips repeat windows, and have at most two at a time"
    assert (found.label == whole.label).mean() > 0.9999
    np.testing.assert_allclose(found.probabilities, whole.probabilities, atol=1e-5)


def test_an_array_needs_neither_preprocess_nor_restore() -> None:
    image = np.random.default_rng(0).normal(size=(1, 5, 13, 9))
    found = Predictor(Thresholds(0.0), patch_size=(8, 8))(image, probabilities=True)
    np.testing.assert_array_equal(found.label, image[0] > 0)
    np.testing.assert_allclose(found.probabilities.sum(axis=0), 1.0, rtol=1e-5)


def test_probabilities_of_several_networks_are_averaged() -> None:
    nets = [Thresholds(threshold, sharpness=1.0) for threshold in (-1.0, 0.0, 2.0)]
    image = np.random.default_rng(0).normal(size=(1, 12, 10)).astype(np.float32)
    alone = [Predictor(net, patch_size=(8, 8))(image, probabilities=True).probabilities for net in nets]
    together = Predictor(nets, patch_size=(8, 8))(image, probabilities=True).probabilities
    np.testing.assert_allclose(together, np.mean(alone, axis=0), atol=1e-6)


def test_mirror_averaging_is_over_the_axes_of_the_patch() -> None:
    torch.manual_seed(0)
    net, image = nn.Conv2d(1, 2, 3, padding=1), np.random.default_rng(0).normal(size=(1, 3, 8, 8))
    predictor = Predictor(net, patch_size=(8, 8), mirror_axes=(1,))
    straight, mirrored, other = (
        predictor(each, probabilities=True).probabilities for each in (image, image[..., ::-1], image[..., ::-1, :])
    )
    np.testing.assert_allclose(mirrored[..., ::-1], straight, atol=1e-6)
    assert not np.allclose(other[..., ::-1, :], straight, atol=1e-3)


def test_a_network_with_deep_supervision_is_set_to_evaluation_mode() -> None:
    net = ResEncUNet(2, 1, 3, features=(4, 8, 8), strides=(1, 2, 2)).train()
    found = Predictor(net, patch_size=(8, 8))(np.ones((1, 2, 9, 9)), probabilities=True)
    assert not net.training
    assert found.probabilities.shape == (3, 2, 9, 9)


def test_bfloat16_and_channels_last_change_only_rounding() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
    image = np.random.default_rng(0).normal(size=(1, 2, 9, 9))
    plain, last, rough = (
        Predictor(net, patch_size=(8, 8), **options)(image, probabilities=True).probabilities
        for options in ({}, {"channels_last": True}, {"precision": "bfloat16"})
    )
    assert next(net.parameters()).is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(last, plain, atol=1e-5)
    np.testing.assert_allclose(rough, plain, atol=0.01, err_msg="bfloat16 rounds logits of about 1 by 2**-9")
    assert not np.array_equal(rough, plain)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_probabilities_that_are_not_finite_are_an_error_of_the_case(value: float, refused: Any) -> None:
    image = np.zeros((1, 9, 9))
    image[0, 4, 4] = value
    with refused("probabilities", case_id="patient001_frame01"):
        Predictor(Thresholds(0.0), patch_size=(8, 8))(image, case_id="patient001_frame01")


def test_a_network_that_diverged_is_not_an_error_of_the_case(refused: Any) -> None:
    net = nn.Conv2d(1, 2, 1)
    nn.init.constant_(net.weight, float("nan"))
    with refused("nets", case_id=None):
        Predictor(net, patch_size=(8, 8))(np.ones((1, 9, 9)))


def test_preprocess_gets_the_id_of_the_case(refused: Any) -> None:
    def refuse(image: Array, *, spacing_mm: Any, affine: Any, case_id: str) -> tuple[Array, str]:
        raise CaseError(case_id, "image", got=0, expected="voxels", fix="scan again")

    with refused("image", case_id="patient001_frame01"):
        Predictor(Thresholds(0.0), patch_size=(8, 8), preprocess=refuse)(np.ones((9, 9)), case_id="patient001_frame01")


@pytest.mark.parametrize(
    ("options", "key", "got"),
    [
        ({"nets": []}, "nets", []),
        ({"mirror_axes": (2,)}, "mirror_axes", (2,)),
        ({"structures": {"RV": 1, "LV": 3}}, "structures", {"RV": 1, "LV": 3}),
    ],
)
def test_options_that_do_not_match_the_networks_are_refused(
    options: dict[str, Any], key: str, got: Any, refused: Any
) -> None:
    with refused(key, got=got):
        Predictor(**({"nets": Thresholds(0.0), "patch_size": (8, 8)} | options))(np.zeros((1, 8, 8)))


class SmallMemory(nn.Module):
    """Network that runs out of memory with more than ``windows`` windows."""

    def __init__(self, windows: int) -> None:
        super().__init__()
        self.windows = windows
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if len(x) > self.windows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return torch.cat([x, -x, x**2], dim=1)


def test_if_memory_runs_out_batches_get_smaller_and_the_label_is_the_same() -> None:
    image = np.random.default_rng(0).normal(size=(1, 5, 24, 20)).astype(np.float32)
    whole = Predictor(SmallMemory(100), patch_size=(16, 16), sw_batch_size=8)(image, probabilities=True)
    net = SmallMemory(2)
    predictor = Predictor(net, patch_size=(16, 16), sw_batch_size=8)
    with pytest.warns(MemoryWarning, match="from here on") as warned:
        found = predictor(image, probabilities=True)
    assert re.findall(r"gets (\d+) windows", str([warning.message for warning in warned])) == ["4", "2"]
    assert np.array_equal(found.label, whole.label)
    assert np.array_equal(found.probabilities, whole.probabilities)
    assert net.sizes[:3] == [8, 4, 2]
    assert np.array_equal(predictor(image).label, whole.label), "without another warning"


def test_a_window_too_large_for_memory_is_an_error_with_a_fix() -> None:
    predictor = Predictor(SmallMemory(0), patch_size=(16, 16), sw_batch_size=2)
    with pytest.warns(MemoryWarning), pytest.raises(OutOfMemoryError, match=r"one window of \(16, 16\).*smaller patch"):
        predictor(np.zeros((1, 16, 16), dtype=np.float32))


def test_without_a_limit_windows_do_not_depend_on_what_else_the_process_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uumamba.inference.predictor.measure_resident_bytes", lambda: 10**12)
    net = SmallMemory(100)
    Predictor(net, patch_size=(16, 16), sw_batch_size=8)(np.zeros((1, 5, 24, 20)))
    assert max(net.sizes) == 8


@pytest.mark.gpu
def test_windows_of_an_image_too_large_for_the_device_are_blended_on_the_cpu() -> None:
    net, image = nn.Conv3d(1, 24, 1), np.random.default_rng(0).normal(size=(1, 64, 128, 128)).astype(np.float32)
    expected = Predictor(net, patch_size=(32, 64, 64))(image).label
    total = torch.cuda.get_device_properties("cuda").total_memory
    torch.cuda.set_per_process_memory_fraction(8e7 / total)  # 24 classes of it are 100 MB
    try:
        with pytest.warns(MemoryWarning, match="blended on the CPU"):
            found = Predictor(net, patch_size=(32, 64, 64), device="cuda")(image).label
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert (found == expected).mean() > 0.9999


def test_prediction_imports_no_monai(repository: Path) -> None:
    code = """
import sys
import numpy as np
from uumamba.inference import Predictor
from uumamba.nets import UMambaBot
net = UMambaBot(2, 1, 3, features=(4, 8), strides=(1, 2))
Predictor(net, patch_size=(8, 8), mirror_axes=(0, 1))(np.zeros((1, 2, 9, 9)))
assert not {"monai", "nibabel", "SimpleITK"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


class TwoThresholds(nn.Module):
    """Network with one output for each of two nested regions."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([50.0 * x, 50.0 * (x - 0.7)], dim=1)


def test_networks_of_regions_have_sigmoid_probabilities_and_are_painted_in_order(refused: Any) -> None:
    image = np.random.default_rng(0).normal(size=(1, 12, 10)).astype(np.float32)
    predictor = Predictor([TwoThresholds(), TwoThresholds()], patch_size=(8, 8), structures={"a": 1}, painted=(3, 1))
    found = predictor(image, probabilities=True)
    np.testing.assert_array_equal(found.label, np.where(image[0] > 0.7, 1, np.where(image[0] > 0, 3, 0)))
    expected = torch.from_numpy(50.0 * np.concatenate([image, image - 0.7])).sigmoid()
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
    with refused("painted", got=(1, 2, 3)):
        Predictor(TwoThresholds(), patch_size=(8, 8), painted=(1, 2, 3))(image)
