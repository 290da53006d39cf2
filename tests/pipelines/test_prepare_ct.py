"""Preparation of CT: statistics, faults planted in real scans, and memory."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from tests.pipelines.run_files import contents, failed_in
from uumamba.cli import main
from uumamba.data.case import Case, Manifest
from uumamba.data.prepared import PreparedFolder, open_prepared
from uumamba.data.preprocess import CtStatistics, PreprocessRecipe, preprocess, restore_label
from uumamba.data.scan import AcdcSpacingWarning, read_label
from uumamba.data.warn import ScanWarning, warn_of_acdc_spacing
from uumamba.pipelines.prepare import prepare
from uumamba.runtime.errors import CaseError, UsageError

OPEN = PreprocessRecipe((2.0, 1.5, 1.5), normalisation="ct")
GIVEN = PreprocessRecipe((3.0, 3.0, 3.0), normalisation="ct", ct_statistics=CtStatistics(-50, 500, 250, 100))
SPACING_MM = (1.2, 1.2, 2.0)
MakeCt = Callable[..., Manifest]


def save(path: Path, array: np.ndarray, *, acdc: bool = False) -> None:
    image = nib.Nifti1Image(array, np.eye(4) if acdc else np.diag([*SPACING_MM, 1.0]))
    image.header["pixdim"][1:4] = SPACING_MM
    if acdc:
        image.header["qform_code"] = 0
    nib.save(image, path)


@pytest.fixture
def make_ct(tmp_path: Path) -> MakeCt:
    """``make_ct(cases=4)``: air, tissue and a vessel.

    The tissue has 40 HU, the vessel 300 HU and 20 HU more from case to case.
    """

    def make(cases: int = 4, *, acdc: bool = False) -> Manifest:
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
            save(paths[0], scan.round().astype(np.int16), acdc=acdc)
            save(paths[1], label, acdc=acdc)
            split: Any = "training" if number < 4 else "test"
            listed.append(Case(f"c{number}", f"c{number}", "here", *paths, fold=number % 2, split=split))
        return Manifest("toy", "CT", {"aorta": 1, "left": 2}, tuple(listed))

    return make


def foreground_of(manifest: Manifest) -> np.ndarray:
    """Collect the HU of all labelled voxels of the training cases."""
    pairs = [
        [np.asarray(nib.load(path).dataobj) for path in (case.image, case.label)]
        for case in manifest.select(split="training")
    ]
    return np.concatenate([scan[label > 0] for scan, label in pairs]).astype(np.float64)


# Statistics.


def test_statistics_are_those_of_the_training_cases_foreground_of_every_fold(make_ct: MakeCt, tmp_path: Path) -> None:
    manifest = make_ct(5)  # the last is a test case, brighter than all others
    result = prepare(manifest, recipe=OPEN, out=tmp_path / "out")
    assert result.prepared == ("c0", "c1", "c2", "c3")
    every, folder = foreground_of(manifest), PreparedFolder(tmp_path / "out")
    found = folder.recipe.ct_statistics
    assert found is not None
    assert folder.recipe.completes(OPEN)
    assert (found.mean_hu, found.std_hu) == pytest.approx((every.mean(), every.std()))
    assert (found.low_hu, found.high_hu) == pytest.approx(tuple(np.percentile(every, (0.5, 99.5))), abs=0.01)
    # The stored recipe prepares a new scan as it did the cases.
    scan = np.asarray(nib.load(manifest.by_id("c2").image).dataobj)
    array, _, geometry = preprocess(scan, spacing_mm=SPACING_MM, recipe=folder.recipe)
    assert geometry.cropped_shape == (14, 16, 18), "the tissue, without the air around it"
    assert np.array_equal(folder.case("c2").image, array.astype(np.float16))
    # A second call samples and prepares nothing.
    before = contents(tmp_path / "out")
    assert prepare(manifest, recipe=OPEN, out=tmp_path / "out").reused == ("c0", "c1", "c2", "c3")
    assert contents(tmp_path / "out") == before


def test_ct_is_clipped_to_the_percentiles_of_the_recipe(make_ct: MakeCt, tmp_path: Path) -> None:
    manifest = make_ct()
    wanted = PreprocessRecipe((None, None, None), normalisation="ct", clip_percentiles=(10.0, 75.0))
    prepare(manifest, recipe=wanted, out=tmp_path / "out")
    folder, every = PreparedFolder(tmp_path / "out"), foreground_of(manifest)
    found = folder.recipe.ct_statistics
    assert found is not None
    assert folder.recipe.completes(wanted)
    assert (found.low_hu, found.high_hu) == pytest.approx(tuple(np.percentile(every, (10, 75))), abs=0.01)
    assert found.mean_hu == pytest.approx(every.mean())
    brightest = (found.high_hu - found.mean_hu) / found.std_hu
    assert folder.case("c3").image.max() == pytest.approx(brightest, abs=1e-3)  # float16 has 11 bits


def test_two_workers_give_the_files_failures_and_single_warning_of_no_worker(make_ct: MakeCt, tmp_path: Path) -> None:
    manifest = make_ct(acdc=True)
    cut = manifest.by_id("c1").image
    cut.write_bytes(cut.read_bytes()[:500])
    for workers in (0, 2):
        warn_of_acdc_spacing.cache_clear()
        with pytest.warns(AcdcSpacingWarning) as caught:
            result = prepare(manifest, recipe=OPEN, out=tmp_path / str(workers), workers=workers)
        assert len(caught) == 1
        assert result.prepared == ("c0", "c2", "c3")
        assert [failure.case_id for failure in result.failures] == ["c1"]
    assert contents(tmp_path / "0") == contents(tmp_path / "2")
    assert open_prepared(tmp_path / "2", "c0").geometry.spacing_mm == pytest.approx(SPACING_MM)


def test_an_unreadable_case_is_neither_prepared_nor_counted(make_ct: MakeCt, tmp_path: Path) -> None:
    manifest, out = make_ct(), tmp_path / "out"
    cut = manifest.by_id("c3").image
    cut.write_bytes(cut.read_bytes()[:900])
    result = prepare(manifest, recipe=OPEN, out=out)
    assert [failure.case_id for failure in result.failures] == failed_in(out) == ["c3"]
    statistics = PreparedFolder(out).recipe.ct_statistics
    assert statistics is not None
    assert statistics.mean_hu == pytest.approx(320, abs=1)  # of 300, 320, 340
    # When no case can be read any more, the earlier recipe stays.
    before = (out / "recipe.json").read_bytes()
    for case in manifest.cases:
        case.image.write_bytes(b"")
    assert len(prepare(manifest, recipe=OPEN, out=out).failures) == 4
    assert (out / "recipe.json").read_bytes() == before
    assert not (out / "dataset.json").exists()


@pytest.mark.parametrize("refused_by", ["reader", "preparing"])
def test_when_no_case_can_be_read_each_is_listed_and_no_recipe_is_written(
    refused_by: str, make_ct: MakeCt, tmp_path: Path
) -> None:
    manifest, out, bad = make_ct(2), tmp_path / "out", list[CaseError]()
    for case in manifest.cases:
        case.image.write_bytes(b"")
    if refused_by == "reader":
        bad = [CaseError(name, "image", got="half", expected="whole", fix="restore it") for name in ("c1", "c0")]
        manifest = replace(manifest, cases=())
    result = prepare(manifest, bad, recipe=OPEN, out=out)
    assert result.prepared == ()
    assert [failure.case_id for failure in result.failures] == failed_in(out) == ["c0", "c1"]
    assert not (out / "recipe.json").exists()
    with pytest.raises(UsageError):
        PreparedFolder(out)


def test_without_foreground_in_any_case_there_are_no_statistics_and_failures_are_listed(
    make_ct: MakeCt, tmp_path: Path
) -> None:
    manifest, out = make_ct(2), tmp_path / "out"
    manifest.by_id("c0").image.write_bytes(b"")
    save(tmp_path / "raw" / "c1_gt.nii.gz", np.zeros((24, 22, 14), np.uint8))
    lost = CaseError("c9", "image", got="no file", expected="a scan", fix="find it")
    with pytest.raises(UsageError):
        prepare(manifest, [lost], recipe=OPEN, out=out)
    assert failed_in(out) == ["c0", "c9"]
    assert prepare(manifest, recipe=GIVEN, out=out).prepared == ("c1",)


@pytest.mark.parametrize("keep", ["part of the header", "the header and half of the voxels"])
@pytest.mark.parametrize("verb", [("prepare",), ("run", "--allow-missing", "--device", "cpu")], ids=" ".join)
def test_when_every_ct_is_truncated_the_verb_ends_with_1_and_lists_each_case(
    verb: tuple[str, ...], keep: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    volume = SimpleITK.GetImageFromArray(np.random.default_rng(0).integers(-1000, 500, (8, 9, 10)).astype(np.int16))
    for number in (1, 2):
        for kind, image in (("CTA", volume), ("label", SimpleITK.Cast(volume > 0, SimpleITK.sitkUInt8))):
            SimpleITK.WriteImage(image, raw / f"subject00{number}_{kind}.mha")
        path = raw / f"subject00{number}_CTA.mha"
        sound = path.read_bytes()
        path.write_bytes(sound[:40] if keep.startswith("part") else sound[: len(sound) - 8 * 9 * 10])
    with pytest.raises(SystemExit) as ended:
        main([*verb, "aorta_cpu", "--raw", str(raw), "--out", str(out), "--workers", "0"])
    assert ended.value.code == 1
    assert "subject001: " in capsys.readouterr().err
    folder = out if verb[0] == "prepare" else out / "prepared"
    assert failed_in(folder) == ["subject001", "subject002"]
    assert not (folder / "recipe.json").exists()
    assert not (folder / "dataset.json").exists()


# Faults, each planted in a real scan; the case without a fault is prepared.


@pytest.fixture
def aorta(real_data: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of a real arterial CT crop and of its aorta label."""
    folder = real_data / "totalsegmentator" / "aorta_dissection"
    if not folder.is_dir():
        pytest.skip(f"real data: {folder} is absent")
    paths = tmp_path / "ct.nii.gz", tmp_path / "aorta.nii.gz"
    for name, path in zip(("ct_cropped.nii.gz", "aorta.nii.gz"), paths, strict=True):
        shutil.copyfile(folder / name, path)
    return paths


def write_changed(path: Path, change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray | None = None) -> Path:
    """Write a copy of a scan with other voxels or another affine."""
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    target = path.with_name(f"changed_{path.name}")
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine if affine is None else affine), target)
    return target


def fails(out: Path, sound: tuple[Path, Path], image: Path, label: Path, **structures: int) -> bool:
    """Return whether a changed case fails next to a sound one."""
    cases = Case("sound", "a", "here", *sound), Case("changed", "b", "here", image, label)
    result = prepare(Manifest("toy", "CT", structures or {"aorta": 1}, cases), recipe=GIVEN, out=out)
    assert "sound" in result.prepared
    assert [failure.case_id for failure in result.failures] in ([], ["changed"])
    return bool(result.failures)


def has_equal_arrays(out: Path) -> bool:
    sound, other = open_prepared(out, "sound"), open_prepared(out, "changed")
    return np.array_equal(sound.image, other.image) and np.array_equal(sound.label, other.label)


def test_a_real_crop_is_prepared_with_its_label_in_place(aorta: tuple[Path, Path], tmp_path: Path) -> None:
    assert not fails(tmp_path / "out", aorta, *aorta)
    case = open_prepared(tmp_path / "out", "sound")
    label = read_label(aorta[1], structures={"aorta": 1}).array
    restored = restore_label(np.asarray(case.label), case.geometry)
    assert 2 * np.count_nonzero(restored & label) / (np.count_nonzero(restored) + np.count_nonzero(label)) > 0.93
    # The aorta has contrast agent, and 250 HU became 0.
    assert -1 < np.median(case.image[0][case.label == 1]) < 2.5


def test_values_1024_too_high_are_shifted_back(aorta: tuple[Path, Path], tmp_path: Path) -> None:
    stored = write_changed(aorta[0], lambda scan: np.maximum(scan.astype(np.int32) + 1024, 0).astype(np.uint16))
    with pytest.warns(ScanWarning, match="1024"):
        assert not fails(tmp_path / "out", aorta, stored, aorta[1])
    assert has_equal_arrays(tmp_path / "out")


def test_padding_of_3024_below_0_becomes_air(aorta: tuple[Path, Path], tmp_path: Path) -> None:
    def padded(value: int) -> Path:
        def pad(scan: np.ndarray) -> np.ndarray:
            scan = scan.copy()
            scan[:9, :9] = value
            return scan

        return write_changed(aorta[0], pad)

    sound = padded(-1024).rename(tmp_path / "air.nii.gz"), aorta[1]
    with pytest.warns(ScanWarning, match="-3024"):
        assert not fails(tmp_path / "out", sound, padded(-3024), aorta[1])
    assert has_equal_arrays(tmp_path / "out")


@pytest.mark.parametrize(("value", "dtype"), [(24, "uint8"), (1000, "int16"), (-1, "int16")])
def test_swapped_image_and_label_and_a_label_value_out_of_range_are_refused(
    aorta: tuple[Path, Path], tmp_path: Path, value: int, dtype: str
) -> None:
    def spoil(label: np.ndarray) -> np.ndarray:
        spoilt = label.astype(dtype)
        spoilt[60, 60, 80] = value
        return spoilt

    assert fails(tmp_path / "out", aorta, aorta[0], write_changed(aorta[1], spoil))
    assert fails(tmp_path / "swapped", aorta, aorta[1], aorta[0])


def test_a_label_on_the_mirrored_grid_is_refused(aorta: tuple[Path, Path], tmp_path: Path) -> None:
    image = nib.load(aorta[1])
    assert isinstance(image, nib.Nifti1Image)
    mirrored = image.affine @ np.diag([-1.0, 1, 1, 1])
    mirrored[:3, 3] = image.affine[:3, 3] + image.affine[:3, 0] * (image.shape[0] - 1)
    assert fails(tmp_path / "out", aorta, aorta[0], write_changed(aorta[1], lambda label: label, mirrored))
    # Flipped voxels with the flipped affine keep their place, but image and label must have one grid.
    turned = write_changed(aorta[1], lambda label: label[::-1], mirrored)
    assert fails(tmp_path / "again", aorta, aorta[0], turned)
    assert not fails(tmp_path / "both", aorta, write_changed(aorta[0], lambda scan: scan[::-1], mirrored), turned)
    assert has_equal_arrays(tmp_path / "both")


def test_a_real_series_without_a_slice_and_a_label_stored_flipped_are_refused(
    aorta: tuple[Path, Path], real_data: Path, tmp_path: Path
) -> None:
    folder = real_data / "totalsegmentator"
    source, label = folder / "example_ct_dicom", folder / "example_seg_dicom.nii.gz"
    if not source.is_dir():
        pytest.skip(f"real data: {source} is absent")
    structures = {f"s{value}": value for value in range(1, 118)}
    assert fails(tmp_path / "flipped", aorta, source, label, **structures)
    for gap in (9, 0):
        series = tmp_path / f"without_{gap}"
        series.mkdir()
        for number, path in enumerate(sorted(source.iterdir())):
            if number != gap:
                shutil.copyfile(path, series / path.name)
        assert fails(tmp_path / f"out_{gap}", aorta, series, label, **structures)


# Memory.

MEASURED = """
import sys, tempfile
from pathlib import Path
import torch
from benchmarks.memory import measure_peak_mb
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

print(measure_peak_mb(work))
"""
# Freed arrays return their memory to the system. The C library's default threshold grows while a process runs, and
# then freed arrays stay in its memory: 4.4 to 6.4 bytes per voxel from run to run, with this setting always 4.0.
RETURN_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}


def test_preparing_needs_memory_for_the_stored_arrays_and_some_slabs(tmp_path: Path, repository: Path) -> None:
    processes = {}
    for planes in (16, 144):
        shape = (192, 192, planes)
        scan = np.random.default_rng(0).integers(-200, 400, shape).astype(np.int16)
        paths = tmp_path / f"{planes}.nii.gz", tmp_path / f"{planes}_gt.nii.gz"
        for path, array in zip(paths, (scan, (scan > 300).astype(np.uint8)), strict=True):
            nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), path)
        listed = tmp_path / f"{planes}.json"
        Manifest("toy", "CT", {"aorta": 1}, (Case("c", "c", "here", *paths),)).write(listed)
        command = [sys.executable, "-c", MEASURED, str(listed)]
        environment = os.environ | {"PYTHONPATH": str(repository)} | RETURN_FREED_MEMORY
        pipe = subprocess.PIPE
        processes[planes] = subprocess.Popen(
            command, cwd=repository, env=environment, stdout=pipe, stderr=pipe, text=True
        )
    peaks = {}
    for planes, process in processes.items():
        printed, errors = process.communicate()
        assert process.returncode == 0, errors
        peaks[planes] = float(printed)
    voxels = 192 * 192 * (144 - 16) / 2**20
    # The stored int16 and uint8 are 3 bytes per voxel, and the growing buffer of unpacking adds an eighth; a volume of
    # float32 would add 4 bytes per voxel.
    assert peaks[144] - peaks[16] < 4.5 * voxels
