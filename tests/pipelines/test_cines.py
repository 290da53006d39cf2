"""Cines: prediction frame by frame, phases, and the tables of volumes."""

import csv
import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.pipelines.run_files import read_json, save_nifti
from uumamba.data.case import Case, Manifest
from uumamba.data.scan import Scan
from uumamba.pipelines.predict import predict
from uumamba.pipelines.prediction.case_record import CaseRecord, read_records, write_record
from uumamba.pipelines.prediction.cines import KnownPhases, add_phases, find_known_phases, read_manifest_cases
from uumamba.pipelines.prediction.input_scans import find_inputs
from uumamba.pipelines.prediction.page import write_page
from uumamba.pipelines.prediction.segmented_case import SegmentedCase
from uumamba.pipelines.prediction.volume_tables import describe_volumes, find_indices, write_volume_tables

STRUCTURES = {"RV": 1, "MYO": 2, "LV": 3}
CURVE_ML = (150, 140, 110, 80, 65, 70, 95, 115, 125, 130)
UNKNOWN = "ED and ES are unknown"


def phantom_frames(raw: Path) -> tuple[list[Path], np.ndarray, Any]:
    """Return ED and ES of one patient, and a cine of both in turn with the header of ED."""
    patient = min((raw / "training").glob("patient*"))
    stills = sorted(path for path in patient.glob("*_frame*.nii.gz") if "_gt" not in path.name)
    images = [nib.load(path) for path in stills]
    voxels = [np.asarray(image.dataobj) for image in images]
    return stills, np.stack([voxels[index % 2] for index in range(5)], axis=-1), images[0].header


def save_cine(path: Path, voxels: np.ndarray, header: Any) -> Path:
    kept = header.copy()
    kept.set_data_shape(voxels.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, None, kept), path)
    return path


def make_case(volumes_ml: Sequence[float], structure: str = "LV") -> SegmentedCase:
    """Label maps of one structure with these volumes, of voxels of 1 ml."""
    value, labels = STRUCTURES[structure], []
    for volume_ml in volumes_ml:
        label = np.zeros(400, np.uint8)
        label[:volume_ml] = value
        labels.append(label.reshape(20, 20, 1))
    scan = Scan(np.zeros((20, 20, 1), np.float32), np.diag([10.0, 10, 10, 1]), (10.0, 10.0, 10.0), None, Path("a"))
    return SegmentedCase("a", (scan,) * len(labels), tuple(labels), STRUCTURES)


def make_record(case_id: str, *volumes: dict[str, float], **changes: Any) -> CaseRecord:
    record = CaseRecord(case_id, (f"{case_id}.nii.gz",), f"{case_id}.nii.gz", "acdc", (1.0, 1.0, 1.0), volumes)
    return replace(record, **changes)


def read_table(out: Path) -> list[dict[str, str]]:
    with (out / "volumes.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_every_frame_of_a_cine_is_segmented_as_its_still_scan(tiny_run: Path, tiny_raw: Path, tmp_path: Path) -> None:
    stills, voxels, header = phantom_frames(tiny_raw)
    still_maps = predict(tiny_run, stills, out=tmp_path / "still").written
    cine = save_cine(tmp_path / "heart_4d.nii.gz", voxels, header)
    out = tmp_path / "out"
    with pytest.warns(UserWarning, match=f"heart_4d: {UNKNOWN}"):
        result = predict(tiny_run, [cine], out=out, save_probabilities=True)
    assert [path.name for path in result.written] == ["heart_4d.nii.gz"]
    label, image = nib.load(result.written[0]), nib.load(cine)
    assert label.shape == voxels.shape
    assert np.array_equal(label.affine, image.affine)
    assert label.header["pixdim"].tolist() == image.header["pixdim"].tolist()
    expected = [np.asarray(nib.load(path).dataobj) for path in still_maps]
    for index in range(5):
        assert np.array_equal(label.dataobj[..., index], expected[index % 2]), index
    for index in (0, 4):
        probabilities = nib.load(out / "probabilities" / "heart_4d" / f"frame_{index + 1:02d}.nii.gz")
        assert probabilities.shape == (*voxels.shape[:3], 4)
    record = read_json(out / "records" / "heart_4d.json")
    assert len(record["volumes_ml"]) == 5
    assert record["phases"] == {}
    assert UNKNOWN in record["warnings"][0]
    assert (out / "curves" / "heart_4d.png").read_bytes().startswith(b"\x89PNG")
    assert [row["frame"] for row in read_table(out)][::3] == ["1", "2", "3", "4", "5"]


def test_still_scans_get_phases_and_patients_of_info_cfg_and_the_table_ejection_fractions(
    tiny_run: Path, tiny_raw: Path, tmp_path: Path
) -> None:
    stills, _, _ = phantom_frames(tiny_raw)
    predict(tiny_run, stills, out=tmp_path)
    [patient] = read_json(tmp_path / "volumes.json")["patients"]
    volumes = {row["structure"] + row["phase"]: float(row["volume_ml"]) for row in read_table(tmp_path)}
    assert patient["patient_id"] == stills[0].parent.name
    assert patient["lv_sv_ml"] == pytest.approx(volumes["LVED"] - volumes["LVES"], abs=2e-3)
    assert patient["lv_mass_g"] == pytest.approx(1.05 * volumes["MYOED"], abs=2e-3)


@pytest.mark.parametrize("fill", [np.nan, 0.0])
def test_a_frame_that_cannot_be_segmented_fails_the_case_by_name(
    tiny_run: Path, tiny_raw: Path, tmp_path: Path, fill: float
) -> None:
    _, voxels, header = phantom_frames(tiny_raw)
    voxels = voxels.astype(np.float32)
    voxels[..., 3] = fill
    header = header.copy()
    header.set_data_dtype(np.float32)
    result = predict(tiny_run, [save_cine(tmp_path / "a_4d.nii.gz", voxels, header)], out=tmp_path / "out")
    [failure] = result.failures
    assert failure.key.startswith("frame 4 of 5: ")
    assert not list((tmp_path / "out").glob("*.nii.gz"))
    assert read_table(tmp_path / "out") == []


def test_a_format_that_cannot_hold_a_label_map_fails_its_case_before_it_is_segmented(
    tiny_run: Path, tmp_path: Path
) -> None:
    voxels = np.random.default_rng(0).integers(1, 900, (40, 44, 3, 5)).astype(np.int16)
    cine = save_nifti(tmp_path / "cine.nii.gz", voxels, (3.0, 3.0, 8.0))
    still = save_nifti(tmp_path / "still.nii.gz", voxels[..., 0], (3.0, 3.0, 8.0))
    result = predict(tiny_run, [cine, still], out=tmp_path / "out", label_format="seg.nrrd")
    assert [path.name for path in result.written] == ["still.seg.nrrd"]
    [failure] = result.failures
    assert (failure.case_id, failure.key, failure.got) == ("cine", "--format", "seg.nrrd for 5 frames of 3 slices")
    [failure] = predict(tiny_run, [still], out=tmp_path / "mask.png").failures
    assert (failure.case_id, failure.key, failure.got) == ("still", "--out", "png for 1 frames of 3 slices")


def test_a_cine_is_an_input_unless_its_frames_are_next_to_it(tmp_path: Path) -> None:
    voxels = np.ones((8, 8, 3, 5), np.uint8)
    for name in ("patient001/patient001_4d", "patient002/patient002_4d"):
        save_nifti(tmp_path / f"{name}.nii.gz", voxels, (1.0, 1.0, 8.0))
    for number in ("01", "12", "12_gt"):
        save_nifti(tmp_path / f"patient001/patient001_frame{number}.nii.gz", voxels[..., 0], (1.0, 1.0, 8.0))
    with pytest.warns(UserWarning, match=r"left out are cines next to their frames: patient001_4d\. To segment one"):
        found = find_inputs([tmp_path])
    assert list(found) == ["patient001_frame01", "patient001_frame12", "patient002_4d"]
    assert list(find_inputs([tmp_path / "patient001" / "patient001_4d.nii.gz"])) == ["patient001_4d"]


def test_phases_are_those_of_info_cfg_of_the_same_patient_only(tmp_path: Path) -> None:
    for name in ("heart_4d", "heart_frame04", "heart_frame04_gt", "heart_frame11", "heart_frame05"):
        (tmp_path / f"{name}.nii.gz").touch()
    assert find_known_phases(tmp_path / "heart_4d.nii.gz") == KnownPhases()
    (tmp_path / "Info.cfg").write_text("ED: 4\nES: 11\n")
    assert find_known_phases(tmp_path / "heart_4d.nii.gz") == KnownPhases("heart", {"ED": 3, "ES": 10})
    assert find_known_phases(tmp_path / "heart_frame04.nii.gz") == KnownPhases("heart", {"ED": 0})
    assert find_known_phases(tmp_path / "heart_frame11.nii.gz") == KnownPhases("heart", {"ES": 0})
    assert find_known_phases(tmp_path / "heart_frame05.nii.gz") == KnownPhases("heart", {})
    (tmp_path / "other_4d.nii.gz").touch()  # then the patient of Info.cfg is not known
    assert find_known_phases(tmp_path / "heart_4d.nii.gz") == KnownPhases()
    (tmp_path / "other_4d.nii.gz").unlink()
    (tmp_path / "Info.cfg").write_text("ED: first\nES: 11\n")
    broken = find_known_phases(tmp_path / "heart_4d.nii.gz")
    assert (broken.patient_id, broken.phases, broken.warnings) == ("heart", {}, ("Info.cfg is not used (ED: first).",))


def test_a_manifest_gives_the_patient_and_the_phase_of_a_still_scan(tmp_path: Path) -> None:
    scan = save_nifti(tmp_path / "x.nii.gz", np.ones((8, 8, 3), np.uint8), (1.0, 1.0, 8.0))
    Manifest("toy", "MRI", STRUCTURES, (Case("x", "p", "d", scan, phase="ES"),)).write(tmp_path / "toy.json")
    listed = read_manifest_cases([tmp_path / "toy.json", scan])
    known = find_known_phases(scan, listed["x"])
    assert known == KnownPhases("p", {"ES": 0})
    assert add_phases(make_case([50]), known).phases == {"ES": 0}
    assert add_phases(make_case(CURVE_ML), known).phases == {"ED": 0, "ES": 4}, "no phase of a cine"


def test_the_curve_of_the_left_ventricle_gives_the_phases_that_info_cfg_does_not() -> None:
    assert add_phases(make_case(CURVE_ML), KnownPhases()).phases == {"ED": 0, "ES": 4}
    assert add_phases(make_case(CURVE_ML), KnownPhases("p", {"ED": 1, "ES": 5})).phases == {"ED": 1, "ES": 5}
    beyond = add_phases(make_case(CURVE_ML), KnownPhases("p", {"ED": 1, "ES": 10}))
    assert (beyond.phases, beyond.patient_id) == ({"ED": 0, "ES": 4}, "p")
    assert beyond.warnings == ("ED in frame 2 and ES in frame 11 cannot be: the scan has 10 frames.",)


def test_without_a_left_ventricle_a_cine_has_no_phases_and_no_warning() -> None:
    aorta = replace(make_case(CURVE_ML, "RV"), structures={"aorta": 1})
    found = add_phases(aorta, KnownPhases())
    assert (found.phases, found.warnings) == ({}, ())


def test_a_curve_that_is_no_cycle_names_its_extreme_frames_and_an_outlier_is_said() -> None:
    half = add_phases(make_case([150, 140, 120, 100, 80, 60]), KnownPhases())
    assert half.phases == {}
    [note] = half.warnings
    assert "its ends differ by 90 ml without a minimum" in note
    assert note.endswith("it is from 60 ml in frame 6 of 6 to 150 ml in frame 1.")
    missed = add_phases(make_case([*CURVE_ML[:8], 0, CURVE_ML[9]]), KnownPhases())
    assert missed.phases == {"ED": 0, "ES": 4}
    assert missed.warnings == ("Outliers of the LV volume curve of 10 frames: 0 ml in frame 9.",)
    noisy, _ = add_phases(make_case([60, 150] * 10), KnownPhases()).warnings
    assert noisy.endswith(": 60 ml in frame 1, 150 ml in frame 2, 60 ml in frame 3, 150 ml in frame 4 and 16 more.")


def test_the_tables_hold_hand_computed_indices_of_cines_and_of_pairs_of_still_scans(tmp_path: Path) -> None:
    ed, es = {"RV": 120.0, "MYO": 100.0, "LV": 150.0}, {"RV": 60.0, "MYO": 105.0, "LV": 60.0}
    between = {"RV": 90.0, "MYO": 102.0, "LV": 100.00049}
    write_record(tmp_path, make_record("c_4d", es, between, ed, phases={"ED": 2, "ES": 0}, times_ms=(0.0, 35.5, 71.0)))
    write_record(tmp_path, make_record("p_frame12", es, phases={"ES": 0}, patient_id="p"))
    write_record(tmp_path, make_record("p_frame01", ed, phases={"ED": 0}, patient_id="p"))
    write_record(tmp_path, make_record("q", ed, patient_id="q", warnings=("a", "b")))
    write_volume_tables(tmp_path)
    rows = read_table(tmp_path)
    assert list(rows[0]) == [
        "case_id", "patient_id", "frame", "time_ms", "phase", "structure", "volume_ml",
        "edv_ml", "esv_ml", "sv_ml", "ef_percent", "mass_g",
    ]  # fmt: skip
    assert len(rows) == 18
    assert list(rows[5].values()) == ["c_4d", "", "2", "35.5", "", "LV", "100.0", "", "", "", "", ""]
    assert list(rows[8].values()) == ["c_4d", "", "3", "71.0", "ED", "LV", "150.0", "150.0", "60.0", "90.0", "60.0", ""]
    assert list(rows[7].values())[4:] == ["ED", "MYO", "100.0", "", "", "", "", "105.0"]
    filled = {(row["case_id"], row["structure"]): row["ef_percent"] for row in rows if row["ef_percent"]}
    assert filled == {
        (case, name): ef for case in ("c_4d", "p_frame01") for name, ef in (("LV", "60.0"), ("RV", "50.0"))
    }
    stored = read_json(tmp_path / "volumes.json")
    assert [(each["patient_id"], each["lv_ef_percent"]) for each in stored["patients"]] == [("c_4d", 60.0), ("p", 60.0)]
    assert stored["patients"][1]["case_ids"] == {"ED": "p_frame01", "ES": "p_frame12"}
    assert stored["cases"][0]["phases"] == {"ED": 3, "ES": 1}
    assert stored["cases"][3]["warnings"] == ["a", "b"]
    lines = list(describe_volumes([*read_records(tmp_path).values()]))
    assert lines == [
        "c_4d: 3 frames, ED in frame 3, ES in frame 1, LV EDV 150.0 ml, LV ESV 60.0 ml, LV EF 60.0 %, RV EDV 120.0 ml, "
        "RV ESV 60.0 ml, RV EF 50.0 %, LV mass 105.0 g",
        "p_frame01: ED, RV 120.0 ml, MYO 100.0 ml, LV 150.0 ml, LV EF 60.0 %, RV EF 50.0 %, LV mass 105.0 g",
        "p_frame12: ES, RV 60.0 ml, MYO 105.0 ml, LV 60.0 ml",
        "q: RV 120.0 ml, MYO 100.0 ml, LV 150.0 ml, 2 warnings",
    ]


def test_the_page_has_the_ejection_fractions_of_the_tables(tmp_path: Path) -> None:
    at = {"patient_id": "p"}
    write_record(tmp_path, make_record("still_ed", {"LV": 150.0, "MYO": 100.0}, phases={"ED": 0}, **at))
    write_record(tmp_path, make_record("still_es", {"LV": 60.0, "MYO": 90.0}, phases={"ES": 0}, **at))
    write_record(tmp_path, make_record("cine", {"LV": 100.0}, {"LV": 75.0}, phases={"ED": 0, "ES": 1}))
    write_page(tmp_path, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    rows = {
        name: re.findall(r"<td>(.*?)</td>", cells) for name, cells in re.findall(r'"row">(\w+)</th>(.*)</tr>', html)
    }
    assert (rows["still_ed"][-2:], rows["cine"][-2]) == (["60.0", "105.0"], "25.0")
    assert "ED, ml" in html
    assert re.findall(r"LV ejection fraction</th><td[^>]*>(.*?)</td>", html) == ["25.0 %", "60.0 %"]


def test_scans_that_do_not_belong_together_have_no_ejection_fraction() -> None:
    ed, es = {"LV": 150.0}, {"LV": 60.0}
    first = make_record("a", ed, phases={"ED": 0}, patient_id="p")
    second = make_record("b", es, phases={"ES": 0}, patient_id="p")
    assert [each.indices["lv_ef_percent"] for each in find_indices([first, second])] == [60.0]
    again = make_record("c", ed, phases={"ED": 0}, patient_id="p")
    assert find_indices([first, second, again]) == []
    for other in ({"patient_id": "q"}, {"model": "mine"}, {"patient_id": None}):
        [alone] = find_indices([first, replace(second, **other)])
        assert (alone.indices["lv_edv_ml"], alone.indices["lv_ef_percent"]) == (150.0, None)
    empty = replace(first, volumes_ml=({"LV": 0.0},))
    assert [each.indices["lv_ef_percent"] for each in find_indices([empty, second])] == [None]


def test_a_cine_without_phases_is_described_by_its_extremes() -> None:
    record = make_record("a", {"LV": 60.0, "RV": 80.0}, {"LV": 150.0, "RV": 70.0})
    assert list(describe_volumes([record])) == ["a: 2 frames, LV 60.0 to 150.0 ml, RV 70.0 to 80.0 ml"]


def test_a_long_list_of_cases_or_structures_is_cut_on_the_terminal(tmp_path: Path) -> None:
    many = {f"s{number}": 1.0 for number in range(24)}
    for number in range(25):
        write_record(tmp_path, make_record(f"case{number:02d}", many))
    lines = list(describe_volumes([*read_records(tmp_path).values()]))
    assert lines[0] == "case00: s0 1.0 ml, s1 1.0 ml, s2 1.0 ml, s3 1.0 ml, 20 more structures"
    assert lines[-1] == "and 5 more cases"
    assert len(lines) == 21


def test_a_damaged_record_is_left_out_with_a_warning_and_unfinished_files_without(tmp_path: Path) -> None:
    write_record(tmp_path, make_record("a", {"LV": 1.0}))
    (tmp_path / "records" / "b.json").write_text("{}")
    (tmp_path / "records" / ".unfinished-1-c.json").write_text("{")
    with pytest.warns(UserWarning, match=r"b\.json is damaged, so its case is left out"):
        write_volume_tables(tmp_path)
    assert [row["case_id"] for row in read_table(tmp_path)] == ["a"]


@pytest.mark.parametrize(
    "change",
    [{"volumes_ml": []}, {"phases": {"ED": 2}}, {"times_ms": [0.0]}, {"volumes_ml": [{"LV": 1.0}, {"RV": 1.0}]}],
)
def test_a_record_whose_parts_do_not_belong_together_is_damaged(tmp_path: Path, change: dict[str, Any]) -> None:
    record = make_record("a", {"LV": 1.0}, {"LV": 2.0})
    write_record(tmp_path, record)
    assert read_records(tmp_path) == {"a": record}
    (tmp_path / "records" / "a.json").write_text(json.dumps(record.to_json() | change))
    with pytest.warns(UserWarning, match=r"a\.json is damaged"):
        assert read_records(tmp_path) == {}


def test_volumes_of_earlier_calls_stay_in_the_tables(tiny_run: Path, tiny_raw: Path, tmp_path: Path) -> None:
    stills, _, _ = phantom_frames(tiny_raw)
    for still in stills:
        predict(tiny_run, [still], out=tmp_path)
    assert len({row["case_id"] for row in read_table(tmp_path)}) == 2
    assert math.isfinite(read_json(tmp_path / "volumes.json")["patients"][0]["lv_edv_ml"])


@pytest.mark.slow
def test_the_shipped_model_finds_the_phases_of_a_real_cine_within_one_frame(acdc_raw: Path, tmp_path: Path) -> None:
    source = acdc_raw / "training" / "patient090" / "patient090_4d.nii.gz"
    cine = Path(shutil.copy(source, tmp_path))  # without Info.cfg, which says ED 4 and ES 11
    predict("acdc", [cine], out=tmp_path / "out", mirror=False)
    phases = read_json(tmp_path / "out" / "volumes.json")["cases"][0]["phases"]
    assert abs(phases["ED"] - 4) <= 1
    assert abs(phases["ES"] - 11) <= 1
