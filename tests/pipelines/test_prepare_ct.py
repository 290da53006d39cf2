"""Preparing CT: its statistics, its known faults planted in real scans, and memory far below a volume of floats."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from uumamba.cli import main
from uumamba.data.case import Case, Manifest
from uumamba.data.prepared import PreparedFolder, open_prepared
from uumamba.data.preprocess import CtStatistics, PreprocessRecipe, preprocess, restore_label
from uumamba.data.scan import read_label
from uumamba.data.warn import ScanWarning
from uumamba.pipelines.prepare import prepare
from uumamba.runtime.errors import CaseError, UsageError

OPEN = PreprocessRecipe((2.0, 1.5, 1.5), normalisation="ct")
GIVEN = PreprocessRecipe((3.0, 3.0, 3.0), normalisation="ct", ct_statistics=CtStatistics(-50, 500, 250, 100))
MakeCt = Callable[..., Manifest]


@pytest.fixture
def make_ct(tmp_path: Path) -> MakeCt:
    """``make_ct(cases=4)``: air, tissue of 40 HU and a vessel whose contrast rises by 20 HU from case to case."""

    def make(cases: int = 4) -> Manifest:
        folder = tmp_path / "raw"
        folder.mkdir()
        listed = []
        for number in range(cases):
            scan = np.full((24, 22, 14), -1000.0)
            scan[3:21, 3:19] = 40
            label = np.zeros(scan.shape, dtype=np.uint8)
            label[9:14, 9:13], label[15:17, 9:11] = 1, 2
            scan[label > 0] = 300 + 20 * number
            scan += np.random.default_rng(number).normal(0, 10, scan.shape)
            paths = folder / f"c{number}.nii.gz", folder / f"c{number}_gt.nii.gz"
            for path, array in zip(paths, (scan.round().astype(np.int16), label), strict=True):
                nib.save(nib.Nifti1Image(array, np.diag([1.2, 1.2, 2.0, 1.0])), path)
            split = "training" if number < 4 else "test"
            listed.append(Case(f"c{number}", f"c{number}", "here", *paths, fold=number % 2, split=split))  # type: ignore[arg-type]  # a literal
        return Manifest("toy", "CT", {"aorta": 1, "left": 2}, tuple(listed))

    return make


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Statistics.


def test_statistics_are_those_of_the_training_cases_foreground_of_every_fold(make_ct: MakeCt, tmp_path: Path) -> None:
    manifest = make_ct(5)  # the last is a test case, brighter than all others
    result = prepare(manifest, recipe=OPEN, out=tmp_path / "out")
    assert result.prepared == ("c0", "c1", "c2", "c3")
    values = [
        np.asarray(nib.load(case.image).dataobj)[np.asarray(nib.load(case.label).dataobj) > 0]
        for case in manifest.select(split="training")
        if case.label is not None
    ]
    every = np.concatenate(values).astype(np.float64)
    recipe = PreparedFolder(tmp_path / "out").recipe
    found = recipe.ct_statistics
    assert found is not None
    assert recipe.completes(OPEN)
    assert (found.mean_hu, found.std_hu) == pytest.approx((every.mean(), every.std()))
    assert (found.low_hu, found.high_hu) == pytest.approx(tuple(np.percentile(every, (0.5, 99.5))), abs=0.01)


def test_the_percentiles_of_the_recipe_are_those_that_ct_is_clipped_to(make_ct: MakeCt, tmp_path: Path) -> None:
    manifest = make_ct()
    wanted = PreprocessRecipe((None, None, None), normalisation="ct", clip_percentiles=(10.0, 75.0))
    prepare(manifest, recipe=wanted, out=tmp_path / "out")
    folder = PreparedFolder(tmp_path / "out")
    found = folder.recipe.ct_statistics
    values = [
        np.asarray(nib.load(case.image).dataobj)[np.asarray(nib.load(case.label).dataobj) > 0]
        for case in manifest.cases
        if case.label is not None
    ]
    every = np.concatenate(values).astype(np.float64)
    assert found is not None
    assert folder.recipe.completes(wanted)
    assert (found.low_hu, found.high_hu) == pytest.approx(tuple(np.percentile(every, (10, 75))), abs=0.01)
    assert found.mean_hu == pytest.approx(every.mean())
    brightest = (found.high_hu - found.mean_hu) / found.std_hu
    assert folder.case("c3").image.max() == pytest.approx(brightest, abs=1e-3)  # float16 has 11 bits


def test_the_stored_recipe_prepares_a_new_scan_as_it_did_the_cases(make_ct: MakeCt, tmp_path: Path) -> None:
    manifest = make_ct()
    prepare(manifest, recipe=OPEN, out=tmp_path / "out")
    folder = PreparedFolder(tmp_path / "out")
    scan = np.asarray(nib.load(manifest.by_id("c2").image).dataobj)
    array, _, geometry = preprocess(scan, spacing_mm=(1.2, 1.2, 2.0), recipe=folder.recipe)
    assert geometry.cropped_shape == (14, 16, 18)  # the tissue, without the air around it
    assert np.array_equal(folder.case("c2").image, array.astype(np.float16))


def test_two_workers_find_the_same_statistics_and_give_the_same_bytes(make_ct: MakeCt, tmp_path: Path) -> None:
    manifest = make_ct()
    for workers in (0, 2):
        prepare(manifest, recipe=OPEN, out=tmp_path / str(workers), workers=workers)
    assert content(tmp_path / "0") == content(tmp_path / "2")


def test_a_second_call_samples_and_prepares_nothing_anew(make_ct: MakeCt, tmp_path: Path) -> None:
    manifest, out = make_ct(), tmp_path / "out"
    prepare(manifest, recipe=OPEN, out=out)
    before = {path: path.stat().st_mtime_ns for name in ("cases", "foreground") for path in (out / name).rglob("*.*")}
    assert prepare(manifest, recipe=OPEN, out=out).reused == ("c0", "c1", "c2", "c3")
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_case_that_cannot_be_read_is_neither_prepared_nor_counted(make_ct: MakeCt, tmp_path: Path) -> None:
    manifest = make_ct()
    cut = manifest.by_id("c3").image
    cut.write_bytes(cut.read_bytes()[:900])
    result = prepare(manifest, recipe=OPEN, out=tmp_path / "out")
    assert [failure.case_id for failure in result.failures] == ["c3"]
    statistics = PreparedFolder(tmp_path / "out").recipe.ct_statistics
    assert statistics is not None
    assert statistics.mean_hu == pytest.approx(320, abs=1)  # of 300, 320, 340
    assert json.loads((tmp_path / "out" / "failures.json").read_text(encoding="utf-8"))[0]["case_id"] == "c3"


def test_when_no_case_can_be_read_each_is_listed_and_no_recipe_is_written(make_ct: MakeCt, tmp_path: Path) -> None:
    manifest, out = make_ct(2), tmp_path / "out"
    for case in manifest.cases:
        case.image.write_bytes(b"")
    result = prepare(manifest, recipe=OPEN, out=out)
    assert result.prepared == ()
    assert ["is empty" in failure.problem for failure in result.failures] == [True, True]
    assert [entry["case_id"] for entry in json.loads((out / "failures.json").read_text(encoding="utf-8"))] == [
        "c0",
        "c1",
    ]
    assert not (out / "recipe.json").exists()
    with pytest.raises(UsageError, match="holds no prepared cases"):
        PreparedFolder(out)


def test_when_no_case_can_be_read_any_more_the_earlier_recipe_stays_whole(make_ct: MakeCt, tmp_path: Path) -> None:
    manifest, out = make_ct(2), tmp_path / "out"
    prepare(manifest, recipe=OPEN, out=out)
    before = (out / "recipe.json").read_bytes()
    for case in manifest.cases:
        case.image.write_bytes(b"")
    assert len(prepare(manifest, recipe=OPEN, out=out).failures) == 2
    assert (out / "recipe.json").read_bytes() == before
    assert not (out / "dataset.json").exists()


def test_when_the_reader_refused_every_case_each_is_listed(make_ct: MakeCt, tmp_path: Path) -> None:
    bad = [CaseError(name, "its image is cut", "restore it") for name in ("c1", "c0")]
    result = prepare(replace(make_ct(2), cases=()), bad, recipe=OPEN, out=tmp_path / "out")
    assert [failure.case_id for failure in result.failures] == ["c0", "c1"]
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {".lock", "failures.json"}


def test_a_case_that_cannot_be_read_is_listed_also_when_the_others_have_no_foreground(
    make_ct: MakeCt, tmp_path: Path
) -> None:
    manifest = make_ct(2)
    manifest.by_id("c0").image.write_bytes(b"")
    label = manifest.by_id("c1").label
    assert label is not None
    nib.save(nib.Nifti1Image(np.zeros((24, 22, 14), np.uint8), np.diag([1.2, 1.2, 2.0, 1.0])), label)
    with pytest.raises(UsageError, match="no voxel is labelled"):
        prepare(manifest, [CaseError("c9", "it is lost", "find it")], recipe=OPEN, out=tmp_path / "out")
    listed = json.loads((tmp_path / "out" / "failures.json").read_text(encoding="utf-8"))
    assert [entry["case_id"] for entry in listed] == ["c0", "c9"]


@pytest.mark.parametrize("keep", ["part of the header", "the header and half of the voxels"])
@pytest.mark.parametrize("verb", [("prepare",), ("run",), ("run", "--allow-missing")], ids=" ".join)
def test_a_user_whose_every_ct_is_cut_is_told_of_each(
    verb: tuple[str, ...], keep: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    volume = SimpleITK.GetImageFromArray(np.random.default_rng(0).integers(-1000, 500, (8, 9, 10)).astype(np.int16))
    for number in (1, 2):
        for kind, image in (("CTA", volume), ("label", SimpleITK.Cast(volume > 0, SimpleITK.sitkUInt8))):
            SimpleITK.WriteImage(image, raw / f"subject00{number}_{kind}.mha")
        path = raw / f"subject00{number}_CTA.mha"
        content = path.read_bytes()
        path.write_bytes(content[:40] if keep.startswith("part") else content[: len(content) - 8 * 9 * 10])
    options = () if verb[0] == "prepare" else ("--device", "cpu")
    with pytest.raises(SystemExit) as ended:
        main([*verb, "aorta_cpu", "--raw", str(raw), "--out", str(out), "--workers", "0", *options])
    assert ended.value.code == 1
    assert "subject001: " in capsys.readouterr().err
    folder = out if verb[0] == "prepare" else out / "prepared"
    listed = json.loads((folder / "failures.json").read_text(encoding="utf-8"))
    assert [entry["case_id"] for entry in listed] == ["subject001", "subject002"]
    assert not (folder / "recipe.json").exists()
    assert not (folder / "dataset.json").exists()


def test_without_foreground_in_any_case_there_are_no_statistics(make_ct: MakeCt, tmp_path: Path) -> None:
    manifest = make_ct(1)
    label = manifest.by_id("c0").label
    assert label is not None
    nib.save(nib.Nifti1Image(np.zeros((24, 22, 14), np.uint8), np.diag([1.2, 1.2, 2.0, 1.0])), label)
    with pytest.raises(UsageError, match="no voxel is labelled; correct the data set, or give ct_statistics"):
        prepare(manifest, recipe=OPEN, out=tmp_path / "out")
    assert prepare(manifest, recipe=GIVEN, out=tmp_path / "out").prepared == ("c0",)


# Faults, each planted in a real scan; the sound case beside it goes on.


@pytest.fixture
def aorta(real_data: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of a real arterial CT crop and of its aorta."""
    folder = real_data / "totalsegmentator" / "aorta_dissection"
    if not folder.is_dir():
        pytest.skip(f"real data: {folder} is absent")
    paths = tmp_path / "ct.nii.gz", tmp_path / "aorta.nii.gz"
    for name, path in zip(("ct_cropped.nii.gz", "aorta.nii.gz"), paths, strict=True):
        shutil.copyfile(folder / name, path)
    return paths


def changed(path: Path, change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray | None = None) -> Path:
    """A copy of a scan with other voxels, or on another grid."""
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    target = path.with_name(f"changed_{path.name}")
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine if affine is None else affine), target)
    return target


def prepared(out: Path, sound: tuple[Path, Path], image: Path, label: Path, **structures: int) -> dict[str, str]:
    """Problem of each case that failed, of a sound one and the one that was changed."""
    cases = Case("sound", "a", "here", *sound), Case("changed", "b", "here", image, label)
    manifest = Manifest("toy", "CT", structures or {"aorta": 1}, cases)
    result = prepare(manifest, recipe=GIVEN, out=out)
    assert {"sound", *(failure.case_id for failure in result.failures)} | set(result.prepared) == {"sound", "changed"}
    assert "sound" in result.prepared
    return {failure.case_id: str(failure) for failure in result.failures}


def same_arrays(out: Path) -> bool:
    sound, other = open_prepared(out, "sound"), open_prepared(out, "changed")
    return np.array_equal(sound.image, other.image) and np.array_equal(sound.label, other.label)


def test_a_real_crop_comes_through_with_its_label_in_place(aorta: tuple[Path, Path], tmp_path: Path) -> None:
    assert prepared(tmp_path / "out", aorta, *aorta) == {}
    case = open_prepared(tmp_path / "out", "sound")
    label = read_label(aorta[1], structures={"aorta": 1}).array
    restored = restore_label(np.asarray(case.label), case.geometry)
    assert 2 * np.count_nonzero(restored & label) / (np.count_nonzero(restored) + np.count_nonzero(label)) > 0.93
    # The aorta is full of contrast, and 250 HU became 0.
    assert -1 < np.median(case.image[0][case.label == 1]) < 2.5


def test_values_1024_too_high_are_shifted_back(aorta: tuple[Path, Path], tmp_path: Path) -> None:
    stored = changed(aorta[0], lambda scan: np.maximum(scan.astype(np.int32) + 1024, 0).astype(np.uint16))
    with pytest.warns(ScanWarning, match="changed: its values lie 1024 above Hounsfield units"):
        assert prepared(tmp_path / "out", aorta, stored, aorta[1]) == {}
    assert same_arrays(tmp_path / "out")


def test_padding_of_3024_below_0_becomes_air(aorta: tuple[Path, Path], tmp_path: Path) -> None:
    def outside(value: int) -> Callable[[np.ndarray], np.ndarray]:
        def pad(scan: np.ndarray) -> np.ndarray:
            padded = scan.copy()
            padded[:9, :9] = value
            return padded

        return pad

    sound = changed(aorta[0], outside(-1024)).rename(tmp_path / "air.nii.gz"), aorta[1]
    with pytest.warns(ScanWarning, match="changed: its padding of -3024 HU, below any air, is set to -1024"):
        assert prepared(tmp_path / "out", sound, changed(aorta[0], outside(-3024)), aorta[1]) == {}
    assert same_arrays(tmp_path / "out")


@pytest.mark.parametrize(("value", "dtype"), [(24, "uint8"), (1000, "int16"), (-1, "int16")])
def test_a_label_value_out_of_range_is_refused(
    aorta: tuple[Path, Path], tmp_path: Path, value: int, dtype: str
) -> None:
    def spoil(label: np.ndarray) -> np.ndarray:
        spoilt = label.astype(dtype)
        spoilt[60, 60, 80] = value
        return spoilt

    problem = prepared(tmp_path / "out", aorta, aorta[0], changed(aorta[1], spoil))["changed"]
    assert f"its label holds the value {value}, known are 0 background, 1 aorta; correct" in problem


def test_swapped_image_and_label_are_refused(aorta: tuple[Path, Path], tmp_path: Path) -> None:
    problem = prepared(tmp_path / "out", aorta, aorta[1], aorta[0])["changed"]
    assert "different values from -1078 to 3343, as an image does" in problem
    assert "image and label may be swapped" in problem


def test_a_label_on_the_mirrored_grid_is_refused(aorta: tuple[Path, Path], tmp_path: Path) -> None:
    image = nib.load(aorta[1])
    assert isinstance(image, nib.Nifti1Image)
    mirrored = image.affine @ np.diag([-1.0, 1, 1, 1])
    mirrored[:3, 3] = image.affine[:3, 3] + image.affine[:3, 0] * (image.shape[0] - 1)
    flipped = changed(aorta[1], lambda label: label, mirrored)
    problem = prepared(tmp_path / "out", aorta, aorta[0], flipped)["changed"]
    assert "image and label lie up to 119.0 voxels apart by their affines" in problem
    # Turned with its affine, the same label lies where it lay.
    turned = changed(aorta[1], lambda label: label[::-1], mirrored)
    assert prepared(tmp_path / "again", aorta, aorta[0], turned) != {}
    both = changed(aorta[0], lambda scan: scan[::-1], mirrored), turned
    assert prepared(tmp_path / "both", aorta, *both) == {}
    assert same_arrays(tmp_path / "both")


def test_a_real_series_without_one_of_its_slices_is_refused(
    aorta: tuple[Path, Path], real_data: Path, tmp_path: Path
) -> None:
    source = real_data / "totalsegmentator" / "example_ct_dicom"
    if not source.is_dir():
        pytest.skip(f"real data: {source} is absent")
    slices = sorted(source.iterdir())
    for gap, problem in ((9, "slices of the DICOM series lie 2.00 to 4.00 mm apart"), (0, "the image has the shape")):
        folder = tmp_path / f"without_{gap}"
        folder.mkdir()
        for number, path in enumerate(slices):
            if number != gap:
                shutil.copyfile(path, folder / path.name)
        label = real_data / "totalsegmentator" / "example_seg_dicom.nii.gz"
        structures = {f"s{value}": value for value in range(1, 118)}
        assert problem in prepared(tmp_path / f"out_{gap}", aorta, folder, label, **structures)["changed"]


def test_a_real_label_that_is_stored_flipped_against_its_series_is_refused(
    aorta: tuple[Path, Path], real_data: Path, tmp_path: Path
) -> None:
    folder = real_data / "totalsegmentator"
    if not (folder / "example_ct_dicom").is_dir():
        pytest.skip(f"real data: {folder / 'example_ct_dicom'} is absent")
    structures = {f"s{value}": value for value in range(1, 118)}
    pair = folder / "example_ct_dicom", folder / "example_seg_dicom.nii.gz"
    problem = prepared(tmp_path / "out", aorta, *pair, **structures)["changed"]
    assert "image and label lie up to 511.0 voxels apart by their affines" in problem


# Memory.

MEASURED = """
import sys, tempfile, warnings
from pathlib import Path
import torch
from benchmarks.memory import peak_mb
from uumamba.data import chunks
from uumamba.data.case import Manifest
from uumamba.data.preprocess import CtStatistics, PreprocessRecipe
from uumamba.pipelines.prepare import prepare

torch.set_num_threads(1)
chunks.CHUNK_VOXELS = 2**18
statistics = CtStatistics(-50, 500, 250, 100)
recipe = PreprocessRecipe((2.0, 1.1, 1.1), normalisation="ct", ct_statistics=statistics)
manifest = Manifest.read(Path(sys.argv[1]))

def work():
    with tempfile.TemporaryDirectory() as out:
        assert not prepare(manifest, recipe=recipe, out=out, workers=0, progress=False).failures

print(peak_mb(work))
"""
# Arrays give their memory back when they are freed. The C library's own threshold grows while a process runs, and then
# freed ones stay: 4.4 to 6.4 bytes a voxel from run to run, with this 4.0 in every one.
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}


def test_preparing_holds_what_is_stored_and_some_slabs(tmp_path: Path, repository: Path) -> None:
    peaks = {}
    for planes in (16, 144):
        shape = (192, 192, planes)
        scan = np.random.default_rng(0).integers(-200, 400, shape).astype(np.int16)
        label = (scan > 300).astype(np.uint8)
        paths = tmp_path / f"{planes}.nii.gz", tmp_path / f"{planes}_gt.nii.gz"
        for path, array in zip(paths, (scan, label), strict=True):
            nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), path)
        Manifest("toy", "CT", {"aorta": 1}, (Case("c", "c", "here", *paths),)).write(tmp_path / "list.json")
        command = [sys.executable, "-c", MEASURED, str(tmp_path / "list.json")]
        environment = os.environ | {"PYTHONPATH": str(repository)} | GIVEN_BACK
        done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks[planes] = float(done.stdout)
    voxels = 192 * 192 * (144 - 16) / 2**20
    # int16 and uint8 as they are stored are 3 bytes a voxel, and the buffer that grows while a file is unpacked an
    # eighth more; one volume of float32 would be 4 on top.
    assert peaks[144] - peaks[16] < 4.5 * voxels
