"""Outputs of prediction: formats, names, previews, page, finished cases and parts."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from tests.pipelines.run_files import Refused, contents, failed_in, last_of, read_json, save_nifti
from uumamba.pipelines.predict import PredictResult, predict
from uumamba.pipelines.prediction.case_record import read_records
from uumamba.pipelines.prediction.parts import Part, write_for_all_parts
from uumamba.training.checkpoint import save_checkpoint

SPACING = (3.0, 3.0, 8.0)


def save_scan(path: Path, *, seed: int = 0, value: int | None = None) -> Path:
    shape = (40, 44, 3)
    voxels = np.random.default_rng(seed).integers(1, 900, shape) if value is None else np.full(shape, value)
    return save_nifti(path, voxels.astype(np.int16), SPACING)


def save_folder(folder: Path, *, count: int = 5) -> Path:
    """Folder of scans; those with an odd number are blank and fail."""
    for number in range(count):
        save_scan(folder / f"case{number}.nii.gz", seed=number, value=5 if number % 2 else None)
    return folder


def names_in(folder: Path) -> set[str]:
    return {path.as_posix() for path in contents(folder)}


def read_itk(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    image = SimpleITK.ReadImage(path)
    return SimpleITK.GetArrayFromImage(image), (*image.GetOrigin(), *image.GetSpacing(), *image.GetDirection())


@pytest.mark.parametrize("suffix", ["mha", "nrrd", "seg.nrrd"])
def test_each_format_holds_the_same_label_map_as_nifti(tiny_run: Path, tmp_path: Path, suffix: str) -> None:
    scan = save_scan(tmp_path / "a.nii.gz")
    (nifti,) = predict(tiny_run, [scan], out=tmp_path / "out", preview=False).written
    values, grid = read_itk(nifti)
    (path,) = predict(tiny_run, [scan], out=tmp_path / "out", label_format=suffix, preview=False).written
    assert path == tmp_path / "out" / f"a.{suffix}"
    found, other = read_itk(path)
    assert np.array_equal(found, values)
    assert other == pytest.approx(grid, abs=1e-5)
    assert not nifti.exists(), "one label map of a case"


@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.mha", "mask.seg.nrrd"])
def test_a_named_file_is_the_only_output(tiny_run: Path, tmp_path: Path, name: str) -> None:
    scan = save_scan(tmp_path / "a.nii.gz")
    out = tmp_path / "new" / name
    result = predict(tiny_run, [scan], out=out, report=tmp_path / "page.html")
    assert result.written == (out,)
    assert names_in(tmp_path / "new") == {name}
    assert list((tmp_path / "new").iterdir()) == [out]
    (reference,) = predict(tiny_run, [scan], out=tmp_path / "folder").written
    assert np.array_equal(read_itk(out)[0], read_itk(reference)[0])
    assert "data:image/jpeg" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_probabilities_are_next_to_a_named_file(tiny_run: Path, tmp_path: Path) -> None:
    scan = save_scan(tmp_path / "a.nii.gz")
    predict(tiny_run, [scan], out=tmp_path / "new" / "mask.mha", save_probabilities=True)
    assert {name.partition(".")[2].partition(".")[0] for name in names_in(tmp_path / "new")} == {"mha", "probabilities"}


def test_a_failed_case_leaves_no_named_file(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "mask.nii.gz"
    out.write_bytes(b"old")
    result = predict(tiny_run, [save_scan(tmp_path / "in" / "a.nii.gz", value=5)], out=out)
    assert (len(result.failures), result.written) == (1, ())
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def test_a_named_file_is_refused_where_a_folder_is_necessary(tiny_run: Path, tmp_path: Path, refused: Refused) -> None:
    scans = [save_scan(tmp_path / "in" / f"{name}.nii.gz") for name in "ab"]
    before = contents(tmp_path)
    with refused("--out"):
        predict(tiny_run, scans, out=tmp_path / "mask.nii.gz")
    with refused("--out", got=scans[0].parent):
        predict(tiny_run, scans[:1], out=scans[0])
    for name in ("mask.nii", "mask.mhd", "mask.dcm"):
        with refused("--out", got=tmp_path / name):
            predict(tiny_run, scans[:1], out=tmp_path / name)
    with refused("--format", got="mha"):
        predict(tiny_run, scans[:1], out=tmp_path / "mask.nrrd", label_format="mha")
    with refused("--skip-existing"):
        predict(tiny_run, scans[:1], out=tmp_path / "mask.nrrd", skip_existing=True)
    with refused("--part"):
        predict(tiny_run, scans[:1], out=tmp_path / "mask.nrrd", part=Part(1, 1))
    assert contents(tmp_path) == before


def test_viewers_get_the_names_and_colours_of_the_values(tiny_run: Path, tmp_path: Path) -> None:
    predict(tiny_run, [save_scan(tmp_path / "a.nii.gz")], out=tmp_path / "out")
    listed = read_json(tmp_path / "out" / "labels.json")
    assert listed["labels"] == {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
    expected = {
        (value, *bytes.fromhex(listed["colours"][name][1:]), name) for name, value in [*listed["labels"].items()][1:]
    }
    snap = re.findall(
        r'^ *(\d+) +(\d+) +(\d+) +(\d+) +1 +1 +1 +"(.*)"$', (tmp_path / "out/labels.txt").read_text(), re.M
    )
    slicer = re.findall(r"^(\d+) (\S+) (\d+) (\d+) (\d+) 255$", (tmp_path / "out/labels.ctbl").read_text(), re.M)
    assert {(*map(int, numbers), name) for *numbers, name in snap} == expected
    assert {(int(value), *map(int, levels), name) for value, name, *levels in slicer} == expected


@pytest.mark.parametrize(
    "name", ["labels.txt", "labels.ctbl", "labels.json", "volumes.csv", "volumes.json", "failures.json"]
)
def test_a_file_of_another_origin_is_kept(tiny_run: Path, tmp_path: Path, name: str, refused: Refused) -> None:
    own = tmp_path / "out" / name
    own.parent.mkdir()
    own.write_text("mine", encoding="utf-8")
    with refused(str(own)):
        predict(tiny_run, [save_scan(tmp_path / "a.nii.gz")], out=tmp_path / "out")
    assert contents(tmp_path / "out") == {Path(name): b"mine"}


def test_a_page_shows_every_case_of_the_folder(tiny_run: Path, tmp_path: Path) -> None:
    evil, out = "<script>alert(1)<", tmp_path / "out"
    save_scan(tmp_path / "in" / f"{evil}.nii.gz")
    predict(tiny_run, [save_scan(tmp_path / "earlier.nii.gz")], out=out)
    save_scan(tmp_path / "in" / "bad<b>.nii.gz", value=5)
    predict(tiny_run, [tmp_path / "in"], out=out, report=tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "<b>" not in html
    assert all(shown in html for shown in ("earlier", "&lt;script&gt;alert(1)&lt;", "bad&lt;b&gt;", "Failed: 1"))
    assert html.count("data:image/jpeg;base64,") == 2
    assert not re.search(r"(src|href)=\"(?!data:|#)|@import|url\(", html), "offline"
    for record in read_records(out).values():
        assert all(f"{volume:.1f}" in html for volume in record.volumes_ml[0].values())


def test_a_page_has_the_name_of_an_html_file(tiny_run: Path, tmp_path: Path, refused: Refused) -> None:
    with refused("--report", got=tmp_path / "page.pdf"):
        predict(tiny_run, [save_scan(tmp_path / "a.nii.gz")], out=tmp_path / "out", report=tmp_path / "page.pdf")
    assert not (tmp_path / "out").exists()


def test_a_finished_case_is_skipped_until_its_origin_changes(tiny_run: Path, tmp_path: Path) -> None:
    folder, out = save_folder(tmp_path / "in"), tmp_path / "out"
    first = predict(tiny_run, [folder], out=out)
    before = contents(out)

    def again(model: Path = tiny_run, **given: bool) -> PredictResult:
        return predict(model, [folder], out=out, skip_existing=True, **given)

    result = again()
    assert (result.written, result.skipped, len(result.failures)) == ((), ("case0", "case2", "case4"), 2)
    assert contents(out) == before
    shutil.move(folder, tmp_path / "moved")
    folder = tmp_path / "moved"
    assert again().skipped == result.skipped, "the bytes count, not the path"
    save_scan(folder / "case2.nii.gz", seed=9)
    assert again().renewed == {"the input changed": ("case2",)}
    assert again(mirror=False).renewed == {"the options changed": ("case0", "case2", "case4")}
    other = last_of(tiny_run)
    changed = {name: tensor * 1.25 for name, tensor in other.net.items()}
    save_checkpoint(tmp_path / "other" / "last.safetensors", replace(other, net=changed, ema=None))
    result = again(tmp_path / "other")
    assert result.renewed == {"the model changed": ("case0", "case2", "case4")}
    assert [path.name for path in result.written] == [path.name for path in first.written]
    assert again(tmp_path / "other").written == ()


@pytest.mark.parametrize("damage", ["no record", "no label map", "half a record", "another record", "an older record"])
def test_a_case_without_label_map_and_valid_record_is_predicted_again(
    tiny_run: Path, tmp_path: Path, damage: str
) -> None:
    scans, out = [save_scan(tmp_path / f"{name}.nii.gz", seed=ord(name)) for name in "ab"], tmp_path / "out"
    predict(tiny_run, scans, out=out, preview=False)
    before, record = contents(out), out / "records" / "a.json"
    if damage == "no label map":
        (out / "a.nii.gz").unlink()
    elif damage == "no record":  # as after a kill between label map and record
        record.unlink()
    elif damage == "half a record":
        record.write_bytes(record.read_bytes()[:99])
    elif damage == "another record":
        shutil.copy(out / "records" / "b.json", record)
    else:
        text = record.read_text(encoding="utf-8")
        record.write_text(re.sub(r',\s*"structures".*', "}", text, flags=re.S), encoding="utf-8")
    result = predict(tiny_run, scans, out=out, skip_existing=True, preview=False)
    assert ([path.name for path in result.written], result.skipped) == (["a.nii.gz"], ("b",))
    assert contents(out) == before


def test_a_folder_goes_on_after_a_kill_between_label_map_and_record(
    tiny_run: Path, tmp_path: Path, forked_cli: Any
) -> None:
    for name in "ab":
        save_scan(tmp_path / "in" / f"{name}.nii.gz", seed=ord(name))
    predict(tiny_run, [tmp_path / "in"], out=tmp_path / "reference", label_format="mha")
    log, given = tmp_path / "log", ["predict", str(tiny_run), "--input", str(tmp_path / "in"), "--format", "mha"]
    given += ["--out", str(tmp_path / "out"), "--device", "cpu", "--skip-existing"]
    module = "uumamba.pipelines.prediction.case_outputs"
    kill = f"import os, {module} as outputs; outputs.write_record = lambda *_: os.kill(os.getpid(), 9)"
    assert forked_cli.run(*given, stderr=log, before=kill) == -9
    assert names_in(tmp_path / "out") == {"a.mha", "previews/a.png"}
    assert forked_cli.run(*given, "--part", "1/1", stderr=log) == 0
    made = {path: data for path, data in contents(tmp_path / "out").items() if path.parts[0] != ".parts"}
    assert {**made, Path("records/a.json"): b"", Path("records/b.json"): b""} == {
        **contents(tmp_path / "reference"),
        Path("records/a.json"): b"",
        Path("records/b.json"): b"",
    }
    assert forked_cli.run(*given, stderr=log) == 0
    assert "0 label maps" in log.read_text(encoding="utf-8")
    assert "2 cases finished before" in log.read_text(encoding="utf-8")


def test_voxels_in_a_file_of_their_own_belong_to_the_input(tiny_run: Path, tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(np.random.default_rng(0).integers(0, 200, (3, 40, 40)).astype(np.int16))
    for suffix in ("mhd", "nhdr"):
        scan, out = tmp_path / f"scan.{suffix}", tmp_path / suffix
        SimpleITK.WriteImage(image, scan)
        predict(tiny_run, [scan], out=out, preview=False)
        assert predict(tiny_run, [scan], out=out, skip_existing=True, preview=False).skipped == ("scan",)
        voxels = scan.with_suffix(".raw")
        voxels.write_bytes(voxels.read_bytes()[::-1])
        again = predict(tiny_run, [scan], out=out, skip_existing=True, preview=False)
        assert again.renewed == {"the input changed": ("scan",)}


def test_parts_give_what_one_call_gives(tiny_run: Path, tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "in")
    predict(tiny_run, [folder], out=tmp_path / "one", report=tmp_path / "one.html")
    for number in (3, 1, 4, 2):  # the last part has one case, and part 1 of the last two ends after part 2
        predict(tiny_run, [folder], out=tmp_path / "parts", part=Part(number, 4), report=tmp_path / "parts.html")
    own = {path: data for path, data in contents(tmp_path / "parts").items() if path.parts[0] != ".parts"}
    assert own == contents(tmp_path / "one")
    assert (tmp_path / "parts.html").read_bytes() == (tmp_path / "one.html").read_bytes()
    assert failed_in(tmp_path / "parts") == ["case1", "case3"]
    save_scan(folder / "case1.nii.gz")
    predict(tiny_run, [folder], out=tmp_path / "parts", part=Part(2, 4), skip_existing=True)
    assert failed_in(tmp_path / "parts") == ["case3"]
    assert predict(tiny_run, [folder], out=tmp_path / "parts", part=Part(9, 9)) == PredictResult((), ())


@pytest.mark.parametrize("given", ["0/3", "4/3", "1", "1/0", "a/b", "-1/3", "1/3/5", "01/3", ""])
def test_a_part_is_k_of_n(given: str, refused: Refused) -> None:
    with refused("--part", got=given):
        Part.parse(given)


def test_a_common_file_holds_what_another_part_adds_while_it_is_written(tmp_path: Path) -> None:
    (tmp_path / ".parts").mkdir()
    written: list[int] = []

    def write() -> None:
        ended = len([*(tmp_path / ".parts").iterdir()])
        if ended == 0:  # another part ends after this one has read, and writes before it
            (tmp_path / ".parts" / "2_of_2.json").write_text("[]", encoding="utf-8")
            written.append(1)
        written.append(ended)

    write_for_all_parts(tmp_path, write)
    assert written == [1, 0, 1]


def test_label_maps_of_another_model_are_named(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(tiny_run, [save_scan(tmp_path / "a.nii.gz")], out=out)
    record = out / "records" / "a.json"
    record.write_text(record.read_text(encoding="utf-8").replace('"RV": 1', '"RV": 4'), encoding="utf-8")
    with pytest.warns(UserWarning, match=r"this model's labels; not those of a, which another model predicted"):
        predict(tiny_run, [save_scan(tmp_path / "b.nii.gz")], out=out)


def test_strange_names_are_predicted_and_too_long_ones_fail(tiny_run: Path, tmp_path: Path) -> None:
    names, too_long = ["x" * 248, "..", "a  b'\"$&"], "y" * 250  # with .nii.gz a name may have 248 bytes
    scans = [save_scan(tmp_path / "in" / f"{name}.nii.gz") for name in names]
    scans.append(save_scan(tmp_path / "in" / f"{too_long}.nii"))
    result = predict(tiny_run, scans, out=tmp_path / "out", report=tmp_path / "page.html")
    assert [(failure.case_id, failure.key) for failure in result.failures] == [(too_long, "case_id")]
    assert {*read_records(tmp_path / "out")} == {*names}
    assert {path.parent for path in result.written} == {tmp_path / "out"}
    assert not any(too_long in name for name in names_in(tmp_path / "out"))


def test_an_unusable_folder_is_named_before_anything_is_predicted(
    tiny_run: Path, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "file").write_bytes(b"own")
    with refused(str(tmp_path / "file"), got=f"{tmp_path / 'file'}, not a folder"):
        predict(tiny_run, [save_scan(tmp_path / "a.nii.gz")], out=tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"own"


def test_a_damaged_record_is_left_out_of_the_page_with_a_warning(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(tiny_run, [save_scan(tmp_path / f"{name}.nii.gz") for name in "ab"], out=out)
    (out / "records" / "b.json").write_text("{", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"b\.json is damaged, so its case is left out"):
        assert [*read_records(out)] == ["a"]
