"""A folder with many kinds of bad cases: the good ones are done, each bad one is named once.

The errors come from real files; those of any type are in ``tests/runtime/test_case_boundary.py``.
"""

import gzip
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from tests.data.formats.test_dicom_faults import FAULTS
from tests.data.test_bad_inputs import ROWS
from tests.pipelines.run_files import failed_in, read_json, save_nifti
from uumamba.data.case import Case, Manifest
from uumamba.data.cine import is_cine
from uumamba.data.dicom_cine import is_dicom_cine
from uumamba.data.preprocess import PreprocessRecipe
from uumamba.data.scan import read_image
from uumamba.data.warn import ScanWarning
from uumamba.pipelines.evaluate import evaluate_folder
from uumamba.pipelines.predict import predict
from uumamba.pipelines.prepare import prepare
from uumamba.runtime.errors import EXIT_FAILED, EXIT_SOME_CASES_FAILED

SHAPE = (40, 44, 3)
STRUCTURES = {"RV": 1, "MYO": 2, "LV": 3}
GOOD = ("good1", "good2")


def save_good(path: Path) -> Path:
    return save_nifti(path, np.random.default_rng(0).integers(1, 900, SHAPE).astype(np.int16), (3.0, 3.0, 8.0))


def label_of_good() -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    for value in STRUCTURES.values():
        label[5 * value : 5 * value + 4, 8:20] = value
    return label


def write_cut(path: Path) -> None:
    path.write_bytes(save_good(path).read_bytes()[:700])


def write_announcing(path: Path, size: int) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((size, size, size))
    path.write_bytes(gzip.compress(header.binaryblock + bytes(400)))


def write_wide(path: Path) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ones((2, 2, 40_000), np.int16)), path)


def write_broken_series(path: Path) -> None:
    path.mkdir()
    image = SimpleITK.GetImageFromArray(np.ones((1, 8, 8), np.int16))
    SimpleITK.WriteImage(image, path / "slice.dcm")
    content = (path / "slice.dcm").read_bytes()
    (path / "slice.dcm").write_bytes(content[: len(content) * 2 // 3])


BAD: dict[str, Callable[[Path], object]] = {
    "empty.nii.gz": Path.touch,
    "cut.nii.gz": write_cut,
    "text.nii": lambda path: path.write_text("no scan"),
    "words.mha": lambda path: path.write_text("ObjectType = Image\nNDims = 10000000\n"),
    "few.nrrd": lambda path: path.write_text("NRRD0004\ntype: float\n"),
    "huge.nii.gz": lambda path: write_announcing(path, 32_000),
    "fifo.nii.gz": os.mkfifo,
    "device.nii.gz": lambda path: path.symlink_to("/dev/zero"),
    "dangling.nii.gz": lambda path: path.symlink_to("nowhere"),
    "folder.nii.gz": Path.mkdir,
    "series": write_broken_series,
    "wide.mha": write_wide,
    f"{'n' * 250}.nii": save_good,
    "two\nlines.nii.gz": write_cut,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good scans and one of each bad kind."""
    raw = tmp_path / "raw"
    for name in GOOD:
        save_good(raw / f"{name}.nii.gz")
    for name, write in BAD.items():
        write(raw / name)
    return raw


def list_scans(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.iterdir()):
        yield re.sub(r"\.(nii(\.gz)?|mha|nrrd)$", "", path.name), path


def list_names(folder: Path) -> list[tuple[str, Path]]:
    """List the scans that a manifest can name; it refuses the newline."""
    return [(name, path) for name, path in list_scans(folder) if name.isprintable()]


def check_failures(out: Path, expected: set[str]) -> None:
    assert sorted(failed_in(out)) == sorted(expected), "each once"
    for row in read_json(out / "failures.json"):
        assert row["got"], row
        assert row["fix"], row
        assert len(row["got"]) < 1000, row
        assert row["got"].isprintable(), row


def test_prepare_writes_the_good_cases_and_names_each_bad_one_once(folder: Path, tmp_path: Path) -> None:
    label = save_nifti(tmp_path / "label.nii.gz", label_of_good(), (3.0, 3.0, 8.0))
    cases = tuple(Case(name[:250], name[:250], "x", path, label) for name, path in list_names(folder))
    bad = {case.case_id for case in cases} - set(GOOD) - {"n" * 250}  # of this file the scan is good
    manifest = Manifest("toy", "MRI", STRUCTURES, cases)
    result = prepare(manifest, recipe=PreprocessRecipe((None, 3.0, 3.0)), out=tmp_path / "out")
    assert set(result.prepared) == {*GOOD, "n" * 250}
    check_failures(tmp_path / "out", bad)


def test_a_name_that_the_disk_does_not_take_is_its_cases_failure(folder: Path, tmp_path: Path) -> None:
    label = save_nifti(tmp_path / "label.nii.gz", label_of_good(), (3.0, 3.0, 8.0))
    image = folder / "good1.nii.gz"
    cases = tuple(Case(name, name, "x", image, label) for name in ("good1", "n" * 256))
    prepare(Manifest("toy", "MRI", STRUCTURES, cases), recipe=PreprocessRecipe((None, 3.0, 3.0)), out=tmp_path / "out")
    check_failures(tmp_path / "out", {"n" * 256})


def test_predict_writes_the_good_cases_and_names_each_bad_one_once(
    tiny_run: Path, folder: Path, tmp_path: Path
) -> None:
    with pytest.warns(ScanWarning, match="raw: left out are series"):
        result = predict(tiny_run, [folder, folder / "series"], out=tmp_path / "out")
    assert {path.name for path in result.written} == {f"{name}.nii.gz" for name in GOOD}
    check_failures(tmp_path / "out", {name for name, _ in list_scans(folder)} - set(GOOD))


def test_evaluate_scores_the_good_cases_and_names_each_bad_one_once(folder: Path, tmp_path: Path) -> None:
    label = save_nifti(tmp_path / "label.nii.gz", label_of_good(), (3.0, 3.0, 8.0))
    for name in GOOD:
        label_path = folder / f"{name}.nii.gz"
        label_path.write_bytes(label.read_bytes())
    listed = list_names(folder)
    for key, paths in (("labels", [label] * len(listed)), ("predictions", [path for _, path in listed])):
        cases = tuple(Case(name, name, "x", path, path) for (name, _), path in zip(listed, paths, strict=True))
        Manifest("toy", "MRI", STRUCTURES, cases).write(tmp_path / f"{key}.json")
    scores = evaluate_folder(tmp_path / "predictions.json", tmp_path / "labels.json", tmp_path / "out")
    assert {row.case_id for row in scores.rows} == set(GOOD)
    check_failures(tmp_path / "out", {name for name, _ in listed} - set(GOOD))


def test_the_command_ends_with_exit_code_3_and_a_line_for_each_bad_case(
    tiny_run: Path, folder: Path, forked_cli: Any, tmp_path: Path
) -> None:
    scans = ["--input", str(folder), "--input", str(folder / "series")]
    out = ["--out", str(tmp_path / "out"), "--device", "cpu"]
    code = forked_cli.run("predict", str(tiny_run), *scans, *out, stderr=tmp_path / "stderr")
    said = (tmp_path / "stderr").read_text(encoding="utf-8")
    assert code == EXIT_SOME_CASES_FAILED, said
    assert said.count("uumamba: failed: ") == len(BAD)
    assert "Traceback" not in said


@pytest.fixture
def every_kind(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A folder with every refused kind of volume and of DICOM series, and the key of each one's error."""
    raw, scratch, keys = tmp_path / "every", tmp_path / "scratch", {}
    (raw / "volumes").mkdir(parents=True)
    (raw / "series").mkdir()
    for param in ROWS:
        [row] = param.values
        if row.verdict == "refuse" and row.read is read_image:
            scratch.mkdir()
            made = row.make(scratch)
            if is_cine(made):  # refused as one image, but segmented frame by frame
                shutil.rmtree(scratch)
                continue
            case_id = param.id.replace(".", " ").strip()
            made.rename(raw / "volumes" / f"{case_id}{made.name.removeprefix('a')}")
            shutil.rmtree(scratch)
            keys[case_id] = row.key
    for fault, (write, key, _) in FAULTS.items():
        write(scratch)
        if is_dicom_cine(scratch):
            shutil.rmtree(scratch)
            continue
        scratch.rename(raw / "series" / fault)
        keys[fault] = key
    for number in range(5):
        save_good(raw / "volumes" / f"good{number}.nii.gz")
    return raw, keys


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # of the writer
def test_of_a_folder_with_every_refused_kind_all_good_scans_are_written_and_each_bad_one_has_a_cure(
    tiny_run: Path, every_kind: tuple[Path, dict[str, str]], forked_cli: Any, tmp_path: Path
) -> None:
    raw, keys = every_kind
    out = tmp_path / "out"
    arguments = ("predict", str(tiny_run), "--input", str(raw), "--out", str(out), "--device", "cpu")
    code = forked_cli.run(*arguments, stderr=tmp_path / "stderr")
    said = (tmp_path / "stderr").read_text(encoding="utf-8")
    assert code == EXIT_SOME_CASES_FAILED, said
    assert {path.name for path in out.glob("*.nii.gz")} == {f"good{number}.nii.gz" for number in range(5)}
    check_failures(out, set(keys))
    assert {row["case_id"]: row["key"] for row in read_json(out / "failures.json")} == keys
    assert said.count("uumamba: failed: ") == len(keys) > 100
    assert "Traceback" not in said


FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))"


@pytest.mark.parametrize("before", [FULL, "obey_permissions()"])
def test_a_full_disk_or_a_read_only_folder_ends_predict_with_one_sentence(
    tiny_run: Path, folder: Path, forked_cli: Any, tmp_path: Path, before: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "good1.nii.gz").write_bytes(b"old")
    if before != FULL:
        before = f"import os; os.chmod({str(out)!r}, 0o555); {before}"
    scans = [word for name in GOOD for word in ("--input", str(folder / f"{name}.nii.gz"))]
    arguments = ("predict", str(tiny_run), *scans, "--out", str(out), "--device", "cpu")
    code = forked_cli.run(*arguments, stderr=tmp_path / "stderr", before=before)
    said = (tmp_path / "stderr").read_text(encoding="utf-8")
    assert code in (EXIT_FAILED, 2), said
    assert "Traceback" not in said
    assert len(re.findall("^uumamba: (?!warning)", said, re.MULTILINE)) == 1, said
    assert re.search("could not be written|expected a writable folder", said)
    assert not list(out.glob(".unfinished*"))
