"""Left/right mirroring in training and averaging: labels are swapped or mirroring refused."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.pipelines.run_files import MakeConfig, Refused, job_of, last_of, save_nifti
from uumamba.config import RunConfig, read_config
from uumamba.data.case import Case, Manifest
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines import load_predictor
from uumamba.pipelines.build import build_trainer
from uumamba.pipelines.datasets import RawFolder
from uumamba.pipelines.mirrored_sides import MirroredSides, check_sides
from uumamba.pipelines.predict import predict
from uumamba.pipelines.prepare import prepare, prepare_dataset
from uumamba.pipelines.run import run
from uumamba.pipelines.train import train
from uumamba.runtime.errors import UsageError

AXIAL, SAGITTAL = (2.0, 2.0, 4.0), (4.0, 2.0, 2.0)
PAIRS = {"sides": {"RenalR": "right", "RenalL": "left"}, "mirror_pairs": [["RenalR", "RenalL"]]}
CHANCES = ("rotation", "scale", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma", "inverted_gamma")
QUIET = (*(f"augment.{name}_probability=0" for name in CHANCES), "augment.mirror_probability=1")
SWAP = "augment.swap_sides=true"
Spacing = tuple[float, float, float]


def mirror(*axes: int) -> str:
    return f"augment.mirror_axes={list(axes)}"


@pytest.fixture(scope="module")
def config(tiny_overrides: tuple[str, ...]) -> MakeConfig:
    """``config("augment.mirror_axes=[1]", ...)``: a small 2-D run on the two kidneys."""

    def make(*overrides: str) -> RunConfig:
        own = ("dataset.name=aorta", "preprocess.spacing_mm=[null,null,null]", "training.patch_size=[32,32]")
        return read_config("demo", (*tiny_overrides, *own, "training.epochs=1", mirror(), *overrides))

    return make


def find_sides(config: RunConfig, cases: RawFolder | PreparedFolder, *case_ids: str) -> MirroredSides | None:
    return check_sides(config, cases.manifest, cases.geometries(case_ids))


def write_kidneys(folder: Path, name: str, *, spacing_mm: Spacing) -> Case:
    """Write a scan with a bright block on each side.

    Its first axis points to the patient's right.
    """
    shape = (6, 32, 32) if spacing_mm == SAGITTAL else (32, 32, 6)
    label = np.zeros(shape, dtype=np.uint8)
    block = slice(10, 20)
    right, left = (slice(4, 6), slice(0, 2)) if shape[0] == 6 else (slice(20, 28), slice(4, 12))
    label[right, block, 1:5], label[left, block, 1:5] = 1, 2
    image = np.random.default_rng(len(name)).normal(100, 10, shape) + 300 * (label > 0)
    for kind, array in (("CTA", image.astype(np.int16)), ("label", label)):
        save_nifti(folder / f"{name}_{kind}.nii.gz", array, spacing_mm)
    fold = int(name[-1]) if name[-1].isdigit() else 1
    return Case(name, name, "x", folder / f"{name}_CTA.nii.gz", folder / f"{name}_label.nii.gz", fold=fold)


def prepared(folder: Path, *cuts: Spacing, extra: dict[str, object]) -> Path:
    cases = tuple(write_kidneys(folder / "raw", f"case{i}", spacing_mm=cut) for i, cut in enumerate(cuts))
    manifest = Manifest("AortaSeg24", "CT", {"RenalR": 1, "RenalL": 2}, cases, extra=extra)
    recipe = read_config("demo", ["preprocess.spacing_mm=[null,null,null]"]).preprocess.build()
    assert not prepare(manifest, recipe=recipe, out=folder / "prepared").failures
    return folder / "prepared"


@pytest.fixture(scope="module")
def kidneys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three prepared axial scans."""
    return prepared(tmp_path_factory.mktemp("kidneys"), AXIAL, AXIAL, AXIAL, extra=PAIRS)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sagittal and four prepared axial scans."""
    return prepared(tmp_path_factory.mktemp("mixed"), SAGITTAL, AXIAL, AXIAL, AXIAL, AXIAL, extra=PAIRS)


@pytest.fixture(scope="module")
def swapping_run(kidneys: Path, config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run with mirrored patches and swapped labels."""
    folder = tmp_path_factory.mktemp("run")
    train(config(mirror(0, 1), SWAP), data=kidneys, out=folder)
    return folder


def test_mirroring_left_and_right_is_refused_before_anything_is_made(
    kidneys: Path, config: MakeConfig, tmp_path: Path, refused: Refused
) -> None:
    with refused("augment.mirror_axes", got=[0, 1]) as error:
        train(config(mirror(0, 1)), data=kidneys, out=tmp_path / "run")
    assert error.value.expected.startswith("[0]")
    assert "augment.swap_sides=true" in error.value.fix
    assert not (tmp_path / "run").exists()


def test_the_checkpoint_states_axes_and_swapped_labels(
    kidneys: Path, swapping_run: Path, config: MakeConfig, tmp_path: Path
) -> None:
    train(config(mirror(0)), data=kidneys, out=tmp_path)
    for folder, swapped in ((tmp_path, []), (swapping_run, [[1, 2]])):
        assert last_of(folder).config["sides"] == {"left_right_axes": [2], "swapped": swapped}


@pytest.mark.parametrize("swap", [True, False])
def test_a_mirrored_patch_has_the_label_of_each_side_swapped(kidneys: Path, config: MakeConfig, swap: bool) -> None:
    quiet = config(mirror(0, 1), SWAP, "training.foreground_fraction=1", *QUIET)
    trainer = build_trainer(job_of(quiet, kidneys), PreparedFolder(kidneys), run_dir=None)
    augment = trainer.prefetcher.augment
    assert augment is not None
    if not swap:  # the control: the same mirror without the swap
        augment.transforms["mirror"].tables = {}  # type: ignore[attr-defined]  # an Augment
    for batch in trainer.prefetcher.batches(0):
        mirrored = augment(batch)
        assert torch.equal(mirrored["image"], batch["image"].flip(2, 3))
        for before, after in zip(batch["label"], mirrored["label"], strict=True):
            assert set(before.unique().tolist()) == {0, 1, 2}
            for value in (1, 2):
                sides = {bool((each == value).nonzero()[:, -1].float().mean() > 16) for each in (before, after)}
                assert len(sides) == (1 if swap else 2)


def test_mirror_averaging_swaps_the_probabilities_of_the_sides(swapping_run: Path) -> None:
    image = np.random.default_rng(0).normal(100, 50, (32, 32, 6)).astype(np.float32)
    plain, mirrored = load_predictor(swapping_run, mirror=False), load_predictor(swapping_run, mirror=True)

    def segment(predictor: Any, flips: tuple[int, ...]) -> np.ndarray:
        found = predictor(np.flip(image, flips).copy(), spacing_mm=AXIAL, probabilities=True).probabilities
        found = np.flip(found, tuple(axis + 1 for axis in flips))
        return found[[0, 2, 1]] if 0 in flips else found  # native axis 0 points to the right

    expected = np.mean([segment(plain, flips) for flips in ((), (0,), (1,), (0, 1))], axis=0)
    np.testing.assert_allclose(segment(mirrored, ()), expected, atol=1e-4)
    assert np.abs(expected - expected[[0, 2, 1]]).max() > 1e-3, "the classes differ"


def test_a_scan_with_slices_of_another_orientation_than_training_fails(swapping_run: Path, tmp_path: Path) -> None:
    write_kidneys(tmp_path, "same", spacing_mm=AXIAL)
    write_kidneys(tmp_path, "other", spacing_mm=SAGITTAL)
    scans = [tmp_path / f"{name}_CTA.nii.gz" for name in ("same", "other")]
    result = predict(swapping_run, scans, out=tmp_path / "out")
    assert [path.name for path in result.written] == ["same_CTA.nii.gz"]
    [failure] = result.failures
    assert (failure.case_id, failure.key, failure.got) == ("other_CTA", "left/right axis", 0)


def test_training_slices_of_two_orientations_forbid_both_axes_and_every_swap(
    mixed: Path, config: MakeConfig, refused: Refused
) -> None:
    cases = PreparedFolder(mixed)
    found = find_sides(config(mirror(0)), cases, "case0", "case1")
    assert found is not None
    assert found.left_right_axes == (0, 2)
    with refused("augment.mirror_axes", got=[1]):
        find_sides(config(mirror(1)), cases, "case0", "case1")
    with refused("augment.swap_sides"):
        find_sides(config(mirror(1), SWAP), cases, "case0", "case1")


def test_a_swap_without_a_mirror_or_without_sides_is_refused(
    kidneys: Path, config: MakeConfig, tiny_prepared: Path, tiny_config: MakeConfig, refused: Refused
) -> None:
    with refused("augment.swap_sides"):
        find_sides(config(mirror(0), SWAP), PreparedFolder(kidneys), "case0")
    with refused("augment.swap_sides", got=True):
        train(tiny_config(SWAP), data=tiny_prepared, out="never made")


def test_a_structure_with_a_side_and_no_partner_is_named(kidneys: Path, config: MakeConfig, refused: Refused) -> None:
    folder = PreparedFolder(kidneys)
    alone = replace(folder.manifest, extra={"sides": {"RenalR": "right"}})
    object.__setattr__(folder, "manifest", alone)
    for overrides, key in (((mirror(1),), "augment.mirror_axes"), ((mirror(1), SWAP), "augment.swap_sides")):
        with refused(key) as error:
            find_sides(config(*overrides), folder, "case0")
        assert "swap_sides" not in error.value.fix
    sides = PAIRS | {"sides": {"LCC": "left"}}
    third = replace(alone, structures={"RenalR": 1, "RenalL": 2, "LCC": 3}, extra=sides)
    object.__setattr__(folder, "manifest", third)
    with pytest.warns(UserWarning, match="LCC"):
        run = find_sides(config(mirror(1), SWAP), folder, "case0")
    assert run is not None
    assert run.swapped == ((1, 2),)


@pytest.mark.parametrize(
    ("overrides", "cut", "key"),
    [
        ((mirror(0, 1),), AXIAL, "augment.mirror_axes"),
        ((mirror(0), SWAP), AXIAL, "augment.swap_sides"),
        ((mirror(1), SWAP), SAGITTAL, "augment.swap_sides"),
        (("training.sampling.class_weights={Kidney: 2}",), AXIAL, None),
    ],
)
@pytest.mark.parametrize("bad", [False, True], ids=["all sound", "one cut"])
@pytest.mark.parametrize("verb", [run, prepare_dataset])
def test_mirroring_and_classes_that_do_not_fit_the_structures_are_refused_before_preparing(
    verb: Callable[..., object],
    overrides: tuple[str, ...],
    cut: Spacing,
    key: str | None,
    bad: bool,
    config: MakeConfig,
    tmp_path: Path,
) -> None:
    raw = tmp_path / "raw"
    cases = [write_kidneys(raw, f"subject00{number}", spacing_mm=cut) for number in range(1, 6)]
    if bad:
        cases[0].image.write_bytes(b"")
    with pytest.raises(UsageError) as error:
        verb(config(*overrides), raw=raw, out=tmp_path / "out")
    assert key in (None, error.value.key)
    assert not (tmp_path / "out").exists()


def test_raw_headers_give_the_result_of_prepared_scans(mixed: Path, config: MakeConfig, tmp_path: Path) -> None:
    prepared = PreparedFolder(mixed)
    raw = raw_folder(prepared.manifest)
    for axis in (0, 1):
        for swap in ("true", "false"):
            wanted = config(mirror(axis), f"augment.swap_sides={swap}")
            for case_ids in (["case0"], ["case1"], ["case0", "case1"]):
                found = error_of(partial(find_sides, wanted, raw, *case_ids))
                assert found == error_of(partial(find_sides, wanted, prepared, *case_ids))
    # A case with an unreadable header is left to preparing.
    (tmp_path / "cut.nii.gz").write_bytes(b"cut")
    cut = replace(prepared.manifest.by_id("case1"), image=tmp_path / "cut.nii.gz")
    raw = raw_folder(replace(prepared.manifest, cases=(prepared.manifest.by_id("case0"), cut)))
    assert find_sides(config(mirror(1)), raw, "case0", "case1") is not None
    assert find_sides(config(mirror(0), SWAP), raw, "case1") is None


def raw_folder(manifest: Manifest) -> RawFolder:
    """Make raw cases that are already listed."""
    cases = RawFolder("aorta", "raw", out=Path("out"))
    vars(cases)["listed"] = (manifest, [])
    return cases


def error_of(check: Callable[[], object]) -> str:
    try:
        check()
    except UsageError as error:
        return str(error)
    return ""


def test_an_error_of_the_second_fold_comes_before_the_first_is_trained(
    mixed: Path, config: MakeConfig, tmp_path: Path, refused: Refused
) -> None:
    swapping = config(mirror(1), SWAP)
    assert find_sides(swapping, PreparedFolder(mixed), "case1", "case2") is not None, "fold 0"
    with refused("augment.swap_sides"):
        train(swapping, data=mixed, out=tmp_path / "run", fold="cv")
    assert not (tmp_path / "run").exists()


def test_a_heart_may_be_mirrored_along_every_axis(tiny_prepared: Path, tiny_config: MakeConfig) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert job_of(tiny_config(), tiny_prepared).sides is None
