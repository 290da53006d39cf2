"""Preparing: safe to kill and run again, stale cases made anew, one bad case leaves the others alone."""

import gzip
import json
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
from uumamba.data.case import Case, Manifest
from uumamba.data.prepared import PreparedFolder, open_prepared, write_prepared
from uumamba.data.preprocess import PreprocessRecipe, restore_label
from uumamba.data.scan import AcdcSpacingWarning, read_label
from uumamba.data.warn import warn_of_acdc_spacing
from uumamba.pipelines.prepare import prepare
from uumamba.runtime.errors import CaseError, UsageError
from uumamba.runtime.parallel_cases import each_case
from uumamba.runtime.stop import StoppedOnRequest

RECIPE = PreprocessRecipe((None, 1.5, 1.5))
MakeRaw = Callable[..., Manifest]


@pytest.fixture
def make_raw(tmp_path: Path) -> MakeRaw:
    """``make_raw(cases=4, acdc=False, tests=0)``: scans of random noise with a box of each structure."""

    def write(path: Path, array: np.ndarray, acdc: bool) -> Path:
        image = nib.Nifti1Image(array, np.diag([-1.0, -1, 1, 1]) if acdc else np.diag([1.25, 1.25, 8, 1]))
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
            truth = write(raw / f"p{number}_gt.nii.gz", label, acdc)
            split = "training" if number < cases else "test"
            listed.append(Case(f"p{number}", f"p{number}", "here", image, truth, split=split))  # type: ignore[arg-type]  # a literal
        return Manifest("toy", "MRI", {"RV": 1, "MYO": 2, "LV": 3}, tuple(listed))

    return make


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_prepared_cases_and_the_list_of_them(make_raw: MakeRaw, tmp_path: Path) -> None:
    manifest = make_raw(3)
    result = prepare(manifest, recipe=RECIPE, out=tmp_path / "out")
    assert result.prepared == ("p0", "p1", "p2")
    assert result.reused == ()
    assert result.failures == ()
    folder = PreparedFolder(tmp_path / "out")
    assert folder.manifest == manifest
    assert folder.recipe == RECIPE
    case = folder.case("p0")
    # 28 x 1.25 / 1.5 = 23.3 and 24 x 1.25 / 1.5 = 20.
    assert case.image.shape == (1, 4, 23, 20)
    assert restore_label(np.asarray(case.label), case.geometry).shape == (24, 28, 4)
    assert not (tmp_path / "out" / "failures.json").exists()


def test_two_workers_give_the_same_bytes_failures_and_warning_as_none(make_raw: MakeRaw, tmp_path: Path) -> None:
    manifest = make_raw(5, acdc=True)
    cut = manifest.by_id("p1").image
    cut.write_bytes(cut.read_bytes()[:500])
    for workers in (0, 2):
        warn_of_acdc_spacing.cache_clear()
        with pytest.warns(AcdcSpacingWarning) as caught:
            result = prepare(manifest, recipe=RECIPE, out=tmp_path / str(workers), workers=workers)
        assert len(caught) == 1
        assert result.prepared == ("p0", "p2", "p3", "p4")
        assert [failure.case_id for failure in result.failures] == ["p1"]
    assert content(tmp_path / "0") == content(tmp_path / "2")
    assert open_prepared(tmp_path / "2", "p0").geometry.spacing_mm == (1.25, 1.25, 8.0)


def test_a_second_call_touches_nothing(make_raw: MakeRaw, tmp_path: Path) -> None:
    manifest = make_raw(3)
    prepare(manifest, recipe=RECIPE, out=tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cases").rglob("*.*")}
    result = prepare(manifest, recipe=RECIPE, out=tmp_path / "out")
    assert (result.prepared, result.reused) == ((), ("p0", "p1", "p2"))
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cases").rglob("*.*")}


def test_one_changed_byte_of_a_source_makes_that_case_anew(make_raw: MakeRaw, tmp_path: Path) -> None:
    manifest = make_raw(3)
    prepare(manifest, recipe=RECIPE, out=tmp_path / "out")
    source = manifest.by_id("p1").image
    voxels = bytearray(gzip.decompress(source.read_bytes()))
    voxels[-1] ^= 1
    source.write_bytes(gzip.compress(bytes(voxels)))
    result = prepare(manifest, recipe=RECIPE, out=tmp_path / "out")
    assert (result.prepared, result.reused) == (("p1",), ("p0", "p2"))


def test_another_recipe_makes_every_case_anew(make_raw: MakeRaw, tmp_path: Path) -> None:
    manifest = make_raw(2)
    prepare(manifest, recipe=RECIPE, out=tmp_path / "out")
    result = prepare(manifest, recipe=PreprocessRecipe((None, 2.0, 2.0)), out=tmp_path / "out")
    assert result.prepared == ("p0", "p1")
    assert PreparedFolder(tmp_path / "out").recipe.spacing_mm == (None, 2.0, 2.0)


@pytest.mark.filterwarnings("error::uumamba.data.warn.AcdcSpacingWarning")
def test_interrupted_under_another_recipe_the_folder_is_unfinished(make_raw: MakeRaw, tmp_path: Path) -> None:
    manifest = make_raw(2, acdc=True)
    warn_of_acdc_spacing.cache_clear()
    with pytest.warns(AcdcSpacingWarning):
        prepare(manifest, recipe=RECIPE, out=tmp_path / "out")
    warn_of_acdc_spacing.cache_clear()
    with pytest.raises(AcdcSpacingWarning, match="pixdim"):  # warnings are errors here: stopped after one case
        prepare(manifest, recipe=PreprocessRecipe((None, 2.0, 2.0)), out=tmp_path / "out")
    with pytest.raises(UsageError, match="holds no prepared cases"):
        PreparedFolder(tmp_path / "out")


def test_the_raw_files_are_not_written_to(make_raw: MakeRaw, tmp_path: Path) -> None:
    manifest = make_raw(2)
    before = content(tmp_path / "raw")
    prepare(manifest, recipe=RECIPE, out=tmp_path / "out")
    assert content(tmp_path / "raw") == before


def test_test_cases_are_listed_and_never_opened(make_raw: MakeRaw, tmp_path: Path) -> None:
    manifest = make_raw(2, tests=1)
    manifest.by_id("p2").image.write_bytes(b"")
    result = prepare(manifest, recipe=RECIPE, out=tmp_path / "out")
    assert result.failures == ()
    assert PreparedFolder(tmp_path / "out").manifest == manifest
    assert not (tmp_path / "out" / "cases" / "p2").exists()


def test_bad_cases_are_listed_with_reason_and_cure_and_the_others_go_on(make_raw: MakeRaw, tmp_path: Path) -> None:
    manifest = make_raw(4)
    cut, wrong, out = manifest.by_id("p1").image, manifest.by_id("p2").label, tmp_path / "out"
    cut.write_bytes(cut.read_bytes()[:500])
    assert wrong is not None
    nib.save(nib.Nifti1Image(np.full((24, 28, 4), 7, np.uint8), np.diag([1.25, 1.25, 8, 1])), wrong)
    refused = CaseError("p9", "its Info.cfg is missing", "restore it")
    result = prepare(manifest, [refused], recipe=RECIPE, out=out)
    assert result.prepared == ("p0", "p3")
    assert [failure.case_id for failure in result.failures] == ["p1", "p2", "p9"]
    listed = json.loads((out / "failures.json").read_text(encoding="utf-8"))
    assert [set(entry) for entry in listed] == [{"case_id", "problem", "cure"}] * 3
    assert "cut off" in listed[0]["problem"]
    assert "holds the value 7" in listed[1]["problem"]
    assert [case.case_id for case in PreparedFolder(out).manifest.cases] == ["p0", "p3"]


def test_a_mended_case_joins_and_leaves_the_list_of_failures(make_raw: MakeRaw, tmp_path: Path) -> None:
    manifest = make_raw(2)
    source = manifest.by_id("p1").image
    whole = source.read_bytes()
    source.write_bytes(whole[:500])
    prepare(manifest, recipe=RECIPE, out=tmp_path / "out")
    source.write_bytes(whole)
    assert prepare(manifest, recipe=RECIPE, out=tmp_path / "out").prepared == ("p1",)
    assert not (tmp_path / "out" / "failures.json").exists()
    assert len(PreparedFolder(tmp_path / "out").manifest.cases) == 2


def test_image_and_label_of_different_shape_or_no_label_fail_by_name(make_raw: MakeRaw, tmp_path: Path) -> None:
    manifest = make_raw(3)
    label = manifest.by_id("p1").label
    assert label is not None
    nib.save(nib.Nifti1Image(np.zeros((24, 28, 3), np.uint8), np.diag([1.25, 1.25, 8, 1])), label)
    unlabelled = Case("p3", "p3", "here", manifest.by_id("p0").image)
    manifest = Manifest("toy", "MRI", manifest.structures, (*manifest.cases, unlabelled))
    result = prepare(manifest, recipe=RECIPE, out=tmp_path / "out")
    problems = {failure.case_id: failure.problem for failure in result.failures}
    assert problems["p1"] == "the image has the shape (24, 28, 4), its label (24, 28, 3)"
    assert problems["p3"] == "it has no label"


def test_when_every_case_fails_nothing_is_prepared(make_raw: MakeRaw, tmp_path: Path) -> None:
    manifest = make_raw(1)
    manifest.by_id("p0").image.write_bytes(b"")
    assert prepare(manifest, recipe=RECIPE, out=tmp_path / "out").prepared == ()
    with pytest.raises(UsageError, match="holds no prepared cases"):
        PreparedFolder(tmp_path / "out")


def test_an_output_below_a_file_is_refused(make_raw: MakeRaw, tmp_path: Path) -> None:
    manifest = make_raw(1)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file, which is no folder"):
        prepare(manifest, recipe=RECIPE, out=tmp_path / "file" / "out")


def test_an_output_in_the_raw_folder_is_refused(make_raw: MakeRaw, tmp_path: Path) -> None:
    manifest, raw = make_raw(1), tmp_path / "raw"
    before = content(raw)
    (tmp_path / "link").symlink_to(raw)
    for out in (raw, raw / "deep" / "prepared", tmp_path / "link" / "prepared"):
        with pytest.raises(UsageError, match=r"lies in the raw folder .*raw, which is never written to; choose"):
            prepare(manifest, recipe=RECIPE, out=out, raw=raw)
    assert content(raw) == before


def test_a_damaged_case_is_made_anew(make_raw: MakeRaw, tmp_path: Path) -> None:
    manifest = make_raw(3)
    prepare(manifest, recipe=RECIPE, out=tmp_path / "out")
    whole = content(tmp_path / "out")
    (tmp_path / "out" / "cases" / "p0" / "case.json").write_text('{"format": 1}')
    (tmp_path / "out" / "cases" / "p1" / "image.npy").write_bytes(b"")
    assert prepare(manifest, recipe=RECIPE, out=tmp_path / "out").prepared == ("p0", "p1")
    assert content(tmp_path / "out") == whole


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
        with pytest.raises(UsageError, match=r"out: got a lock of .*, expected no other process preparing"):
            prepare(manifest, recipe=RECIPE, out=out)
        other.kill()
    assert unfinished.exists()
    assert prepare(manifest, recipe=RECIPE, out=out).prepared == ("p0",)
    assert not unfinished.exists()


def test_a_request_to_stop_is_followed_after_the_case_and_the_next_call_goes_on(
    make_raw: MakeRaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_and_stop(*arguments: Any, **options: Any) -> None:
        write_prepared(*arguments, **options)
        signal.raise_signal(signal.SIGTERM)

    manifest = make_raw(3)
    with monkeypatch.context() as patched:
        patched.setattr("uumamba.pipelines.prepare.write_prepared", write_and_stop)
        with pytest.raises(StoppedOnRequest, match="Stopped by SIGTERM after preparing 1 of 3 cases; the same command"):
            prepare(manifest, recipe=RECIPE, out=tmp_path / "out")
    result = prepare(manifest, recipe=RECIPE, out=tmp_path / "out")
    assert (len(result.prepared), len(result.reused)) == (2, 1)


def test_progress_is_a_line_in_a_log(make_raw: MakeRaw, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(make_raw(2), recipe=RECIPE, out=tmp_path / "out", progress=False)
    assert capsys.readouterr().err == "prepare: 2 of 2 cases\n"


# Killing.

KILLABLE = """
import sys
from uumamba.data.case import Manifest
from uumamba.data.preprocess import PreprocessRecipe
from uumamba.pipelines.prepare import prepare

if __name__ == "__main__":
    prepare(Manifest.read(sys.argv[1]), recipe=PreprocessRecipe((None, 1.5, 1.5)), out=sys.argv[2], workers=0)
"""


def test_after_a_kill_the_next_call_finishes_and_the_result_is_that_of_no_kill(
    make_raw: MakeRaw, tmp_path: Path, repository: Path
) -> None:
    manifest = make_raw(24, shape=(120, 140, 8))
    manifest.write(tmp_path / "list.json")
    script, out = tmp_path / "killable.py", tmp_path / "killed"
    script.write_text(KILLABLE)
    command = [sys.executable, str(script), str(tmp_path / "list.json"), str(out)]
    half_written = out / "cases" / "p23" / ".unfinished-1-image.npy"
    half_written.parent.mkdir(parents=True)
    half_written.write_bytes(b"half")
    with subprocess.Popen(command, cwd=repository, env=os.environ | {"PYTHONPATH": str(repository)}) as process:
        while len(list(out.glob("cases/*/case.json"))) < 3 and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(UsageError, match="holds no prepared cases"):
        PreparedFolder(out)
    result = prepare(manifest, recipe=RECIPE, out=out)
    assert len(result.reused) >= 3
    assert len(result.prepared) + len(result.reused) == 24
    prepare(manifest, recipe=RECIPE, out=tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


def test_a_killed_workers_case_is_named_and_the_others_go_on() -> None:
    work = {"good1": partial(int, 1), "bad": partial(signal.raise_signal, signal.SIGKILL), "good2": partial(int, 2)}
    results = dict(each_case(call, work, workers=2))
    assert results["good1"] == 1
    assert results["good2"] == 2
    assert isinstance(results["bad"], CaseError)
    assert (results["bad"].case_id, results["bad"].got) == ("bad", "killed twice")


def test_an_error_that_is_no_cases_fault_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError, match="division"):
        list(each_case(call, {"a": partial(divmod, 1, 0)}, workers=1))


# Real scans.


def test_a_real_acdc_patient_is_prepared_and_its_label_comes_back(acdc_raw: Path, tmp_path: Path) -> None:
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
