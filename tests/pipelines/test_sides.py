"""Left and right through the whole way: no mirrored side under its old name, in training or in averaging."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from uumamba.config import RunConfig, read_config
from uumamba.data.case import Case, Manifest
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines import load_predictor
from uumamba.pipelines.build import build_trainer
from uumamba.pipelines.datasets import is_dataset
from uumamba.pipelines.predict import predict
from uumamba.pipelines.prepare import prepare
from uumamba.pipelines.run import run
from uumamba.pipelines.sides import check_sides, sided_run
from uumamba.pipelines.train import train
from uumamba.runtime.errors import UsageError
from uumamba.training.checkpoint import read_checkpoint

AXIAL, SAGITTAL = (2.0, 2.0, 4.0), (4.0, 2.0, 2.0)
PAIRS = {"sides": {"RenalR": "right", "RenalL": "left"}, "mirror_pairs": [["RenalR", "RenalL"]]}
CHANCES = ("rotation", "scale", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma", "inverted_gamma")
QUIET = (*(f"augment.{name}_probability=0" for name in CHANCES), "augment.mirror_probability=1")
Make = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def config(tiny_overrides: tuple[str, ...]) -> Make:
    """``config("augment.mirror_axes=[1]", ...)``: a small 2-D run on the two kidneys."""

    def make(*overrides: str) -> RunConfig:
        own = ("dataset.name=aorta", "preprocess.spacing_mm=[null,null,null]", "training.patch_size=[32,32]")
        return read_config("demo", (*tiny_overrides, *own, "augment.mirror_axes=[]", *overrides))

    return make


def write_kidneys(folder: Path, name: str, *, spacing_mm: tuple[float, float, float]) -> Case:
    """A scan of which each side has a bright block, stored so that its first axis runs to the patient's right."""
    shape = (6, 32, 32) if spacing_mm == SAGITTAL else (32, 32, 6)
    label = np.zeros(shape, dtype=np.uint8)
    block = slice(10, 20)
    right, left = (slice(4, 6), slice(0, 2)) if shape[0] == 6 else (slice(20, 28), slice(4, 12))
    label[right, block, 1:5], label[left, block, 1:5] = 1, 2
    image = np.random.default_rng(len(name)).normal(100, 10, shape) + 300 * (label > 0)
    for kind, array in (("CTA", image.astype(np.int16)), ("label", label)):
        nib.save(nib.Nifti1Image(array, np.diag([*spacing_mm, 1.0])), folder / f"{name}_{kind}.nii.gz")
    fold = int(name[-1]) if name[-1].isdigit() else 1
    return Case(name, name, "x", folder / f"{name}_CTA.nii.gz", folder / f"{name}_label.nii.gz", fold=fold)


def prepared(folder: Path, *cuts: tuple[float, float, float], extra: dict[str, object]) -> Path:
    (folder / "raw").mkdir()
    cases = tuple(write_kidneys(folder / "raw", f"case{i}", spacing_mm=cut) for i, cut in enumerate(cuts))
    manifest = Manifest("AortaSeg24", "CT", {"RenalR": 1, "RenalL": 2}, cases, extra=extra)
    recipe = read_config("demo", ["preprocess.spacing_mm=[null,null,null]"]).preprocess.build()
    result = prepare(manifest, recipe=recipe, out=folder / "prepared")
    assert not result.failures
    return folder / "prepared"


@pytest.fixture(scope="module")
def kidneys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three prepared axial scans."""
    return prepared(tmp_path_factory.mktemp("kidneys"), AXIAL, AXIAL, AXIAL, extra=PAIRS)


@pytest.fixture(scope="module")
def swapping_run(kidneys: Path, config: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fold trained with mirrored patches whose labels were exchanged."""
    folder = tmp_path_factory.mktemp("run")
    train(config("augment.mirror_axes=[0,1]", "augment.swap_sides=true"), data=kidneys, out=folder)
    return folder


def test_mirroring_left_and_right_is_refused_before_anything_is_made(
    kidneys: Path, config: Make, tmp_path: Path
) -> None:
    sentence = (
        r"augment\.mirror_axes \[0, 1\] mirrors left and right \(axis 1 of the patch\), but RenalR, RenalL have sides; "
        r"leave that axis out \(augment\.mirror_axes=\[0\]\), or exchange their labels with the mirror by augment\.swap"
    )
    with pytest.raises(UsageError, match=sentence):
        train(config("augment.mirror_axes=[0,1]"), data=kidneys, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_axes_may_be_mirrored_and_the_checkpoint_says_what_was(
    kidneys: Path, config: Make, tmp_path: Path
) -> None:
    (fold,) = train(config("augment.mirror_axes=[0]"), data=kidneys, out=tmp_path / "run")
    stored = read_checkpoint(fold / "last.safetensors").config
    assert stored["sides"] == {"left_right_axes": [2], "swapped": []}
    assert stored["run"]["augment"]["mirror_axes"] == [0]


@pytest.mark.parametrize("swap", [True, False])
def test_a_mirrored_patch_has_each_side_under_its_own_name(kidneys: Path, config: Make, swap: bool) -> None:
    quiet = config("augment.mirror_axes=[0,1]", "augment.swap_sides=true", "training.foreground_fraction=1", *QUIET)
    trainer = build_trainer(quiet, PreparedFolder(kidneys), fold="0", run_dir=None)
    assert trainer.augment is not None
    if not swap:  # what the check is for: the same mirror without the exchange
        trainer.augment.mirror.tables = {}  # type: ignore[attr-defined]  # an Augment
    for batch in trainer.batches(0):
        mirrored = trainer.augment(batch)
        assert torch.equal(mirrored["image"], batch["image"].flip(2, 3))
        for before, after in zip(batch["label"], mirrored["label"], strict=True):
            assert set(before.unique().tolist()) == {0, 1, 2}
            for value in (1, 2):
                sides = {bool((each == value).nonzero()[:, -1].float().mean() > 16) for each in (before, after)}
                assert len(sides) == (1 if swap else 2)


def test_averaging_gives_each_side_its_own_probability_back(swapping_run: Path) -> None:
    image = np.random.default_rng(0).normal(100, 50, (32, 32, 6)).astype(np.float32)
    plain, mirrored = load_predictor(swapping_run, mirror=False), load_predictor(swapping_run, mirror=True)

    def segment(predictor: object, flips: tuple[int, ...]) -> np.ndarray:
        found = predictor(np.flip(image, flips).copy(), spacing_mm=AXIAL, probabilities=True).probabilities  # type: ignore[operator]  # a Predictor
        found = np.flip(found, tuple(axis + 1 for axis in flips))
        return found[[0, 2, 1]] if 0 in flips else found  # native axis 0 runs to the right

    expected = np.mean([segment(plain, flips) for flips in ((), (0,), (1,), (0, 1))], axis=0)
    np.testing.assert_allclose(segment(mirrored, ()), expected, atol=1e-4)
    assert np.abs(expected - expected[[0, 2, 1]]).max() > 1e-3  # the exchange is visible


def test_a_checkpoint_says_which_labels_were_exchanged(swapping_run: Path) -> None:
    stored = read_checkpoint(swapping_run / "fold_0" / "last.safetensors").config
    assert stored["sides"] == {"left_right_axes": [2], "swapped": [[1, 2]]}


def test_a_scan_cut_in_another_plane_than_training_is_refused(swapping_run: Path, tmp_path: Path) -> None:
    write_kidneys(tmp_path, "same", spacing_mm=AXIAL)
    write_kidneys(tmp_path, "other", spacing_mm=SAGITTAL)
    scans = [tmp_path / f"{name}_CTA.nii.gz" for name in ("same", "other")]
    result = predict(swapping_run, scans, out=tmp_path / "out")
    assert [path.name for path in result.written] == ["same_CTA.nii.gz"]
    assert [str(failure) for failure in result.failures] == [
        "other_CTA: its slices are cut so that prepared axis 0 runs left to right, in training it was 2, and the "
        "structures have sides; resample it to slices cut as in training."
    ]


def test_cases_cut_in_different_planes_forbid_both_axes_and_every_exchange(config: Make, tmp_path: Path) -> None:
    folder = PreparedFolder(prepared(tmp_path, AXIAL, SAGITTAL, extra=PAIRS))
    cases = ["case0", "case1"]
    flat = sided_run(config("augment.mirror_axes=[0]"), folder, cases)
    assert flat is not None
    assert flat.left_right_axes == (0, 2)
    with pytest.raises(UsageError, match=r"axis 1 of the patch"):
        sided_run(config("augment.mirror_axes=[1]"), folder, cases)
    with pytest.raises(UsageError, match=r"swap_sides cannot be: AortaSeg24 lists 1 mirror_pairs, .* needs pairs, one"):
        sided_run(config("augment.mirror_axes=[1]", "augment.swap_sides=true"), folder, cases)


def test_an_exchange_without_a_mirror_or_without_sides_is_refused(
    kidneys: Path, config: Make, tiny_prepared: Path, tiny_config: Make
) -> None:
    with pytest.raises(UsageError, match=r"axis 1 of the patch, and augment\.mirror_axes is \[0\]"):
        sided_run(config("augment.mirror_axes=[0]", "augment.swap_sides=true"), PreparedFolder(kidneys), ["case0"])
    with pytest.raises(UsageError, match="swap_sides is on, but no structure of phantom has a side; leave it out"):
        train(tiny_config("augment.swap_sides=true"), data=tiny_prepared, out="never made")


def test_a_structure_on_one_side_without_a_partner_is_named(config: Make, tmp_path: Path) -> None:
    folder = PreparedFolder(prepared(tmp_path, AXIAL, extra={"sides": {"RenalR": "right"}}))
    with pytest.raises(UsageError, match=r"RenalR have sides; leave that axis out \(augment\.mirror_axes=\[\]\)\."):
        sided_run(config("augment.mirror_axes=[1]"), folder, ["case0"])
    with pytest.raises(UsageError, match="lists 0 mirror_pairs"):
        sided_run(config("augment.mirror_axes=[1]", "augment.swap_sides=true"), folder, ["case0"])
    manifest = replace(folder.manifest, structures={"RenalR": 1, "RenalL": 2, "LCC": 3}, extra=PAIRS)
    replace(manifest, extra=PAIRS | {"sides": {"LCC": "left"}}).write(folder.path / "dataset.json")
    swapping = config("augment.mirror_axes=[1]", "augment.swap_sides=true")
    with pytest.warns(UserWarning, match="exchange the labels of 1 pairs; LCC lie on one side without a partner"):
        run = sided_run(swapping, PreparedFolder(folder.path), ["case0"])
    assert run is not None
    assert run.swapped == ((1, 2),)


def read_nothing(case: Case, **_: object) -> None:
    raise AssertionError(f"{case.case_id} was read")


@pytest.mark.parametrize(
    ("overrides", "cut", "sentence"),
    [
        (("augment.mirror_axes=[0,1]",), AXIAL, r"mirrors left and right \(axis 1 of the patch\), but RenalR"),
        (("augment.mirror_axes=[0]", "augment.swap_sides=true"), AXIAL, r"swap_sides cannot be: AortaSeg24"),
        (("augment.mirror_axes=[1]", "augment.swap_sides=true"), SAGITTAL, r"along axis -1 of the patch"),
        (
            ("training.sampling.class_weights={Kidney: 2}",),
            AXIAL,
            "class_weights names Kidney, which the data set lacks",
        ),
    ],
)
@pytest.mark.parametrize("bad", [False, True], ids=["all sound", "one cut"])
def test_run_refuses_what_the_structures_forbid_before_any_scan_is_read(
    overrides: tuple[str, ...],
    cut: tuple[float, float, float],
    sentence: str,
    bad: bool,
    config: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    cases = [write_kidneys(raw, f"subject00{number}", spacing_mm=cut) for number in range(1, 6)]
    if bad:
        cases[0].image.write_bytes(b"")
    monkeypatch.setattr("uumamba.pipelines.prepare.read_case", read_nothing)
    with pytest.raises(UsageError, match=sentence):
        run(config(*overrides), raw=raw, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_run_refuses_an_exchange_where_nothing_has_a_side_before_any_scan_is_read(
    tiny_raw: Path, tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uumamba.pipelines.prepare.read_case", read_nothing)
    with pytest.raises(UsageError, match="swap_sides is on, but no structure of phantom has a side; leave it out"):
        run(tiny_config("augment.swap_sides=true"), raw=tiny_raw, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_headers_tell_of_the_axis_what_prepared_scans_do(config: Make, tmp_path: Path) -> None:
    folder = PreparedFolder(prepared(tmp_path, AXIAL, SAGITTAL, extra=PAIRS))
    for axis in (0, 1):
        for swap in ("true", "false"):
            wanted = config(f"augment.mirror_axes=[{axis}]", f"augment.swap_sides={swap}")
            for cases in (["case0"], ["case1"], ["case0", "case1"]):
                raw = problem_of(partial(check_sides, wanted, folder.manifest, cases))
                assert raw == problem_of(partial(sided_run, wanted, folder, cases))


def problem_of(check: Callable[[], object]) -> str:
    try:
        check()
    except UsageError as error:
        return str(error)
    return ""


def test_a_scan_whose_header_cannot_be_read_forbids_nothing(config: Make, tmp_path: Path) -> None:
    folder = PreparedFolder(prepared(tmp_path, AXIAL, SAGITTAL, extra=PAIRS))
    folder.manifest.by_id("case0").image.write_bytes(b"cut")
    check_sides(config("augment.mirror_axes=[1]"), folder.manifest, ["case0", "case1"])
    check_sides(config("augment.mirror_axes=[0]", "augment.swap_sides=true"), folder.manifest, ["case0"])


def test_what_the_second_fold_is_refused_for_is_refused_before_the_first_is_trained(
    config: Make, tmp_path: Path
) -> None:
    data = prepared(tmp_path, SAGITTAL, AXIAL, AXIAL, AXIAL, AXIAL, extra=PAIRS)
    swapping = config("augment.mirror_axes=[1]", "augment.swap_sides=true")
    assert sided_run(swapping, PreparedFolder(data), ["case1", "case2"]) is not None  # fold 0 alone could be trained
    with pytest.raises(
        UsageError, match=r"swap_sides cannot be: .* run left to right along axis -1 and 1 of the patch"
    ):
        train(swapping, data=data, out=tmp_path / "run", fold="cv")
    assert not (tmp_path / "run").exists()


def test_a_heart_may_be_mirrored_along_every_axis(tiny_prepared: Path, tiny_config: Make) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sided_run(tiny_config(), PreparedFolder(tiny_prepared), ["patient001_frame01"]) is None


@pytest.mark.parametrize(
    ("name", "listed", "split", "same"),
    [
        ("aorta", "AortaSeg24", None, True),
        ("acdc", "ACDC", None, True),
        ("phantom", "phantom", None, True),
        ("imagecas", "ImageCAS", "Split-1", True),
        ("imagecas_split3", "ImageCAS", "Split-3", True),
        ("imagecas", "ImageCAS", "Split-2", False),
        ("aorta", "ACDC", None, False),
    ],
)
def test_a_manifest_is_known_by_name_and_official_split(name: str, listed: str, split: str | None, same: bool) -> None:
    manifest = Manifest(listed, "CT", {"a": 1}, (), extra={} if split is None else {"official_split": split})
    assert is_dataset(manifest, name) is same
