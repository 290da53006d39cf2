"""Preparation of MRI: kills, stale cases and bad cases."""

import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from operator import call
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from data_prep.acdc import read_acdc
from tests.pipelines.run_files import MakeConfig, Refused, contents, failed_in, read_json
from uumamba.data.case import Case, Manifest
from uumamba.data.prepared import PreparedFolder, open_prepared, write_prepared
from uumamba.data.preprocess import PreprocessRecipe, restore_label
from uumamba.data.scan import AcdcSpacingWarning, read_label
from uumamba.data.source_key import FORMAT_VERSION
from uumamba.data.warn import warn_of_acdc_spacing
from uumamba.pipelines.datasets import read_dataset
from uumamba.pipelines.prepare import prepare
from uumamba.runtime.errors import CaseError, UsageError
from uumamba.runtime.parallel_cases import each_case
from uumamba.runtime.stop import StoppedOnRequest

RECIPE, COARSE = PreprocessRecipe((None, 1.5, 1.5)), PreprocessRecipe((None, 2.0, 2.0))
MakeRaw = Callable[..., Manifest]
AFFINE = np.diag([1.25, 1.25, 8, 1])


@pytest.fixture
def make_raw(tmp_path: Path) -> MakeRaw:
    """``make_raw(cases=4, acdc=False, tests=0)``: noise with a box of each structure."""

    def write(path: Path, array: np.ndarray, acdc: bool) -> Path:
        image = nib.Nifti1Image(array, np.diag([-1.0, -1, 1, 1]) if acdc else AFFINE)
        image.header["pixdim"][1:4] = 1.25, 1.25, 8
        nib.save(image, path)
        return path

    def make(cases: int = 4, *, acdc: bool = False, tests: int = 0, shape: tuple[int, ...] = (24, 28, 4)) -> Manifest:
        raw = tmp_path / "raw"
        raw.mkdir()
        listed = []
        for number in range(cases + tests):
            generator = np.random.default_rng(number)
            label = np.zeros(shape, dtype=np.uint8)
            for value in (1, 2, 3):
                label[5 * value : 5 * value + 4, 8:20, 1:3] = value
            image = write(raw / f"p{number}.nii.gz", generator.integers(1, 900, shape).astype(np.int16), acdc)
            reference = write(raw / f"p{number}_gt.nii.gz", label, acdc)
            split: Any = "training" if number < cases else "test"
            fold = number % 5 if split == "training" else None
            listed.append(Case(f"p{number}", f"p{number}", "here", image, reference, fold=fold, split=split))
        return Manifest("toy", "MRI", {"RV": 1, "MYO": 2, "LV": 3}, tuple(listed))

    return make


def test_prepared_cases_are_listed_with_test_cases_that_are_never_opened(make_raw: MakeRaw, tmp_path: Path) -> None:
    manifest = make_raw(3, tests=1)
    manifest.by_id("p3").image.write_bytes(b"")
    before = contents(tmp_path / "raw")
    result = prepare(manifest, recipe=RECIPE, out=tmp_path / "out")
    assert (result.prepared, result.reused, result.failures) == (("p0", "p1", "p2"), (), ())
    folder = PreparedFolder(tmp_path / "out")
    assert (folder.manifest, folder.recipe) == (manifest, RECIPE)
    case = folder.case("p0")
    # 28 x 1.25 / 1.5 = 23.3 and 24 x 1.25 / 1.5 = 20.
    assert case.image.shape == (1, 4, 23, 20)
    assert restore_label(np.asarray(case.label), case.geometry).shape == (24, 28, 4)
    assert not (tmp_path / "out" / "failures.json").exists()
    assert not (tmp_path / "out" / "cases" / "p3").exists()
    assert contents(tmp_path / "raw") == before


def test_a_second_call_prepares_only_stale_and_damaged_cases(make_raw: MakeRaw, tmp_path: Path) -> None:
    manifest, out = make_raw(3), tmp_path / "out"
    again = partial(prepare, manifest, recipe=RECIPE, out=out)
    again()
    before = {path: path.stat().st_mtime_ns for path in (out / "cases").rglob("*.*")}
    assert (again().prepared, again().reused) == ((), ("p0", "p1", "p2"))
    assert before == {path: path.stat().st_mtime_ns for path in (out / "cases").rglob("*.*")}
    complete = contents(out)
    (out / "cases" / "p0" / "case.json").write_text('{"format": 1}')
    (out / "cases" / "p1" / "image.npy").write_bytes(b"")
    assert again().prepared == ("p0", "p1")
    assert contents(out) == complete
    source = manifest.by_id("p1").image
    voxels = bytearray(gzip.decompress(source.read_bytes()))
    voxels[-1] ^= 1
    source.write_bytes(gzip.compress(bytes(voxels)))
    assert again().prepared == ("p1",), "one byte of its source changed"
    assert again(recipe=COARSE).prepared == ("p0", "p1", "p2"), "another recipe"
    assert PreparedFolder(out).recipe == COARSE


def test_times_of_sources_mean_nothing_and_another_label_structure_or_version_prepares_again(
    make_raw: MakeRaw, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    manifest, out = make_raw(2), tmp_path / "out"
    again = partial(prepare, recipe=RECIPE, out=out)
    again(manifest)
    for path, seconds in ((manifest.by_id("p0").image, 0), (manifest.by_id("p1").image, 2**33)):
        os.utime(path, (seconds, seconds))
    assert again(manifest).reused == ("p0", "p1")
    label = manifest.by_id("p1").label
    assert label is not None
    stored = label.stat()
    nib.save(nib.Nifti1Image(read_label(label, structures=manifest.structures).array[::-1].copy(), AFFINE), label)
    os.utime(label, ns=(stored.st_atime_ns, stored.st_mtime_ns))
    assert again(manifest).prepared == ("p1",), "another label of the same time"
    renamed = Manifest("toy", "MRI", {"MYO": 1, "RV": 2, "LV": 3}, manifest.cases)
    assert again(renamed).prepared == ("p0", "p1")
    monkeypatch.setattr("uumamba.data.prepared.FORMAT_VERSION", FORMAT_VERSION + 1)
    assert again(renamed).prepared == ("p0", "p1")
    assert again(renamed).reused == ("p0", "p1")


@pytest.mark.filterwarnings("error::uumamba.data.warn.AcdcSpacingWarning")
def test_a_folder_interrupted_with_another_recipe_is_unfinished(make_raw: MakeRaw, tmp_path: Path) -> None:
    manifest = make_raw(2, acdc=True)
    warn_of_acdc_spacing.cache_clear()
    with pytest.warns(AcdcSpacingWarning):
        prepare(manifest, recipe=RECIPE, out=tmp_path / "out")
    warn_of_acdc_spacing.cache_clear()
    with pytest.raises(AcdcSpacingWarning, match="pixdim"):  # warnings are errors here: stopped after one case
        prepare(manifest, recipe=COARSE, out=tmp_path / "out")
    with pytest.raises(UsageError):
        PreparedFolder(tmp_path / "out")


def test_bad_cases_are_listed_and_prepared_after_their_correction(make_raw: MakeRaw, tmp_path: Path) -> None:
    manifest, out = make_raw(5), tmp_path / "out"
    scan = manifest.by_id("p1").image
    sound = scan.read_bytes()
    scan.write_bytes(sound[:500])
    for name, array in (("p2", np.full((24, 28, 4), 7, np.uint8)), ("p4", np.zeros((24, 28, 3), np.uint8))):
        nib.save(nib.Nifti1Image(array, AFFINE), manifest.by_id(name).label)
    unlabelled = Case("p5", "p5", "here", manifest.by_id("p0").image)
    manifest = Manifest("toy", "MRI", manifest.structures, (*manifest.cases, unlabelled))
    refused = CaseError("p9", "Info.cfg", got="no file", expected="Info.cfg", fix="restore it")
    result = prepare(manifest, [refused], recipe=RECIPE, out=out)
    assert result.prepared == ("p0", "p3")
    failed = ["p1", "p2", "p4", "p5", "p9"]
    assert [failure.case_id for failure in result.failures] == failed
    assert failed_in(out) == failed
    fields = {"key": "Info.cfg", "got": "no file", "expected": "Info.cfg", "fix": "restore it"}
    assert read_json(out / "failures.json")[-1] == {"case_id": "p9"} | fields
    assert [case.case_id for case in PreparedFolder(out).manifest.cases] == ["p0", "p3"]
    scan.write_bytes(sound)
    corrected = Manifest("toy", "MRI", manifest.structures, manifest.select(case_ids=["p0", "p1", "p3"]))
    assert prepare(corrected, recipe=RECIPE, out=out).prepared == ("p1",)
    assert not (out / "failures.json").exists()
    for case in corrected.cases:
        case.image.write_bytes(b"")
    assert prepare(corrected, recipe=RECIPE, out=out).prepared == ()
    with pytest.raises(UsageError):
        PreparedFolder(out)


def test_an_output_in_a_file_or_in_the_raw_folder_is_refused(
    make_raw: MakeRaw, tmp_path: Path, refused: Refused
) -> None:
    manifest, raw = make_raw(1), tmp_path / "raw"
    before = contents(raw)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError):
        prepare(manifest, recipe=RECIPE, out=tmp_path / "file" / "out")
    (tmp_path / "link").symlink_to(raw)
    for out in (raw, raw / "deep" / "prepared", tmp_path / "link" / "prepared"):
        with refused("--out", got=out):
            prepare(manifest, recipe=RECIPE, out=out, raw=raw)
    assert contents(raw) == before


def test_another_programs_dataset_json_is_never_replaced(make_raw: MakeRaw, tmp_path: Path, refused: Any) -> None:
    foreign = tmp_path / "nnunet" / "dataset.json"
    foreign.parent.mkdir()
    foreign.write_text('{"channel_names": {"0": "MRI"}, "labels": {"background": 0}}')
    with refused("--out", got=foreign):
        prepare(make_raw(), recipe=RECIPE, out=foreign.parent)
    assert [path.name for path in foreign.parent.iterdir()] == ["dataset.json"]
    assert "channel_names" in foreign.read_text()


def test_a_second_process_is_refused_and_deletes_nothing(make_raw: MakeRaw, tmp_path: Path) -> None:
    manifest, out = make_raw(1), tmp_path / "out"
    unfinished = out / "cases" / "p0" / ".unfinished-1-image.npy"
    unfinished.parent.mkdir(parents=True)
    unfinished.touch()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'a+'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True)"
    command = [sys.executable, "-c", f"{hold}; input()", str(out / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="process"):
            prepare(manifest, recipe=RECIPE, out=out)
        other.kill()
    assert unfinished.exists()
    assert prepare(manifest, recipe=RECIPE, out=out).prepared == ("p0",)
    assert not unfinished.exists()


def test_a_stop_request_ends_preparing_after_a_case_and_the_next_call_continues(
    make_raw: MakeRaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_and_stop(*arguments: Any, **options: Any) -> None:
        write_prepared(*arguments, **options)
        signal.raise_signal(signal.SIGTERM)

    manifest = make_raw(3)
    with monkeypatch.context() as patched:
        patched.setattr("uumamba.pipelines.prepare.write_prepared", write_and_stop)
        with pytest.raises(StoppedOnRequest, match="SIGTERM after preparing 1 of 3 cases"):
            prepare(manifest, recipe=RECIPE, out=tmp_path / "out")
    capsys.readouterr()
    result = prepare(manifest, recipe=RECIPE, out=tmp_path / "out", progress=False)
    assert (len(result.prepared), len(result.reused)) == (2, 1)
    assert capsys.readouterr().err == "prepare: 2 of 2 cases\n"


# Killing.


def test_after_a_kill_the_next_call_gives_the_result_of_an_uninterrupted_one(
    forked_cli: Any, tiny_raw: Path, tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    out, recipe = tmp_path / "killed", tiny_config().preprocess.build()
    half_written = out / "cases" / "patient005_frame15" / ".unfinished-1-image.npy"
    half_written.parent.mkdir(parents=True)
    half_written.write_bytes(b"half")
    options = ["--workers", "0", "--set", "preprocess.spacing_mm=[null,3.0,3.0]"]
    arguments = ["prepare", "demo", "--raw", str(tiny_raw), "--out", str(out), *options]
    pid = forked_cli.start(*arguments, stderr=tmp_path / "stderr")
    while len(list(out.glob("cases/*/case.json"))) < 2:
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    assert forked_cli.wait(pid) == -signal.SIGKILL
    with pytest.raises(UsageError):
        PreparedFolder(out)
    manifest, bad = read_dataset("phantom", tiny_raw)
    result = prepare(manifest, bad, recipe=recipe, out=out)
    assert len(result.reused) >= 2
    assert len(result.prepared) + len(result.reused) == 10
    assert contents(out / "cases") == contents(tiny_prepared / "cases")
    assert PreparedFolder(out).manifest == PreparedFolder(tiny_prepared).manifest


def test_the_case_of_a_killed_worker_fails_the_others_continue_and_other_errors_are_raised() -> None:
    work = {"good1": partial(int, 1), "bad": partial(signal.raise_signal, signal.SIGKILL), "good2": partial(int, 2)}
    results = dict(each_case(call, work, workers=2))
    assert (results["good1"], results["good2"]) == (1, 2)
    assert isinstance(results["bad"], CaseError)
    assert results["bad"].case_id == "bad"
    with pytest.raises(ZeroDivisionError, match="division"):
        list(each_case(call, {"a": partial(divmod, 1, 0)}, workers=1))


# Real scans.


def test_a_real_acdc_patient_is_prepared_and_its_label_is_restored(acdc_raw: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw" / "training"
    shutil.copytree(acdc_raw / "training" / "patient090", raw / "patient090")
    warn_of_acdc_spacing.cache_clear()
    manifest, bad = read_acdc(tmp_path / "raw")
    with pytest.warns(AcdcSpacingWarning):
        result = prepare(manifest, bad, recipe=RECIPE, out=tmp_path / "out")
    assert result.prepared == ("patient090_frame04", "patient090_frame11")
    for case in manifest.cases:
        assert case.label is not None
        prepared = open_prepared(tmp_path / "out", case.case_id)
        restored = restore_label(np.asarray(prepared.label), prepared.geometry)
        label = read_label(case.label, structures=manifest.structures).array
        assert prepared.geometry.spacing_mm == pytest.approx((1.78571, 1.78571, 10.0))
        for value in (1, 2, 3):
            both = np.count_nonzero((restored == value) & (label == value))
            assert 2 * both / (np.count_nonzero(restored == value) + np.count_nonzero(label == value)) > 0.97
