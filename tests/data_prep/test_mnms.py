"""M&Ms in its exact layout, generated tiny: 4-D cines, labels in their own order, and the official sheet's columns."""

import gzip
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_prep.mnms import main, read_mnms
from data_prep.mnms_frames import cut_frames, read_frames
from uumamba.data.scan import read_image, read_label
from uumamba.pipelines.datasets import is_dataset, read_dataset
from uumamba.runtime.errors import CaseError, UsageError

SHEET = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
HEADING = ",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight"
VENDORS = {"A": "Siemens", "B": "Philips", "C": "GE", "D": "Canon"}
SHAPE, FRAMES = (6, 5, 3), 4
AFFINE = np.diag([-1.25, -1.25, 9.6, 1.0])


@dataclass(frozen=True)
class Patient:
    code: str
    part: str
    vendor: str
    ed: int = 0
    es: int = 2
    pathology: str = "NOR"


PATIENTS = (
    Patient("A0S9V9", "Training/Labeled", "A", 0, 2, "HCM"),
    Patient("A1D0Q7", "Training/Labeled", "B", 3, 1),
    Patient("B9O3A3", "Training/Labeled", "A"),
    Patient("C0S7W0", "Training/Unlabeled", "C"),
    Patient("D1J5P6", "Validation", "D"),
    Patient("E4W8Z7", "Testing", "D", 1, 3, "DCM"),
)


def cine(code):
    """Intensities that name their frame and voxel."""
    generator = np.random.default_rng(sum(code.encode()))
    return generator.integers(0, 500, (*SHAPE, FRAMES)).astype(np.int16)


def cine_label(patient):
    """Empty but in the two frames: 1 LV, 2 MYO, 3 RV side by side, as many voxels as their value."""
    label = np.zeros((*SHAPE, FRAMES), np.uint8)
    for frame in (patient.ed, patient.es):
        for value in (1, 2, 3):
            label[value, :value, 1, frame] = value
    return label


def save(path, array, affine=AFFINE, *, slope=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.header.set_zooms((1.25, 1.25, 9.6, 0.03)[: array.ndim])
    image.header.set_xyzt_units("mm", "sec")
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    nib.save(image, path)


def add(raw, patient):
    folder = raw / patient.part / patient.code
    save(folder / f"{patient.code}_sa.nii.gz", cine(patient.code))
    if patient.part != "Training/Unlabeled":
        save(folder / f"{patient.code}_sa_gt.nii.gz", cine_label(patient))


def write_sheet(raw, patients, *, name=SHEET, heading=HEADING):
    rows = [
        f"{at},{each.code},{VENDORS.get(each.vendor, '')},{each.vendor},1,{each.ed},{each.es},44,{each.pathology},F,1,1"
        for at, each in enumerate(patients)
    ]
    (raw / name).write_text("\n".join([heading, *rows]) + "\n")


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "OpenDataset"
    for patient in PATIENTS:
        add(folder, patient)
    write_sheet(folder, PATIENTS)
    return folder


@pytest.fixture
def frames(tmp_path):
    return tmp_path / "frames"


def case_ids(manifest, **which):
    return [case.case_id for case in manifest.select(**which)]


def file_bytes(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_cases_are_both_frames_of_the_labelled_patients_with_the_vendor_as_domain(raw, frames):
    manifest, errors = read_mnms(raw, frames=frames)

    assert errors == []
    assert case_ids(manifest, split="training") == [
        *("A0S9V9_frame00", "A0S9V9_frame02", "A1D0Q7_frame01", "A1D0Q7_frame03"),
        *("B9O3A3_frame00", "B9O3A3_frame02"),
    ]
    assert case_ids(manifest, split="test") == ["E4W8Z7_frame01", "E4W8Z7_frame03"]
    es = manifest.by_id("A1D0Q7_frame01")
    assert (es.patient_id, es.phase, es.domain, es.group) == ("A1D0Q7", "ES", "B", "NOR")
    assert manifest.by_id("A1D0Q7_frame03").phase == "ED"
    assert manifest.by_id("E4W8Z7_frame01").fold is None
    assert manifest.extra == {"domains": {"A": "Siemens", "B": "Philips", "D": "Canon"}, "test_parts": ["Testing"]}
    assert is_dataset(manifest, "mnms")


def test_an_image_is_its_frame_of_the_cine_bit_for_bit_on_the_same_grid(raw, frames):
    manifest, _ = read_mnms(raw, frames=frames)
    case = manifest.by_id("A0S9V9_frame02")
    scan = read_image(case.image, keep_integers=True)

    np.testing.assert_array_equal(scan.array, cine("A0S9V9")[..., 2])
    np.testing.assert_allclose(scan.affine, AFFINE, atol=1e-6)
    assert scan.spacing_mm == pytest.approx((1.25, 1.25, 9.6))
    assert nib.load(case.image).shape == SHAPE


def test_labels_are_in_the_order_of_acdc(raw, frames):
    manifest, _ = read_mnms(raw, frames=frames)
    label = read_label(manifest.by_id("A0S9V9_frame02").label, structures=manifest.structures).array

    assert manifest.structures == {"RV": 1, "MYO": 2, "LV": 3}
    # There 1 LV, 2 MYO, 3 RV, as many voxels as their value.
    assert [np.count_nonzero(label == manifest.structures[name]) for name in ("LV", "MYO", "RV")] == [1, 2, 3]
    assert (label[1, 0, 1], label[2, 0, 1], label[3, 0, 1]) == (3, 2, 1)


def test_another_way_of_storing_a_label_means_the_same(raw, frames, tmp_path):
    expected = file_bytes(Path(read_mnms(raw, frames=frames)[0].by_id("A0S9V9_frame00").label).parent)
    path = raw / "Training/Labeled/A0S9V9/A0S9V9_sa_gt.nii.gz"
    save(path, (cine_label(PATIENTS[0]) * 2.0).astype(np.float64), slope=0.5)

    manifest, errors = read_mnms(raw, frames=tmp_path / "again")

    assert errors == []
    again = read_label(manifest.by_id("A0S9V9_frame00").label, structures=manifest.structures).array
    path = frames / "Training/Labeled/A0S9V9/A0S9V9_frame00_gt.nii.gz"
    assert expected[Path(path.name)] == path.read_bytes()
    np.testing.assert_array_equal(again, read_label(path, structures=manifest.structures).array)


def test_the_folds_hold_the_labelled_patients_alone_and_never_split_one(raw, frames):
    manifest, _ = read_mnms(raw, frames=frames)
    folds = {case.patient_id: case.fold for case in manifest.select(split="training")}

    assert len(manifest.select(split="training")) == 2 * len(folds)
    assert sorted(folds.values()) == [0, 1, 2]


def test_every_fold_has_as_many_patients_of_each_vendor(tmp_path):
    patients = [Patient(f"{vendor}{n}", "Training/Labeled", vendor) for vendor in "AB" for n in range(10)]
    for patient in patients:
        for path in (f"{patient.code}_frame00", f"{patient.code}_frame02"):
            save(tmp_path / patient.part / patient.code / f"{path}.nii.gz", np.ones(SHAPE, np.uint8))
            save(tmp_path / patient.part / patient.code / f"{path}_gt.nii.gz", np.ones(SHAPE, np.uint8))
    write_sheet(tmp_path, patients)

    manifest, errors = read_mnms(tmp_path)

    assert errors == []
    for fold in range(5):
        assert [case.domain for case in manifest.select(fold=fold)] == ["A"] * 4 + ["B"] * 4


def test_the_official_validation_patients_join_the_test_split_on_request(raw, frames):
    manifest, _ = read_mnms(raw, frames=frames, test=("Validation", "Testing"))

    assert case_ids(manifest, split="test")[:2] == ["D1J5P6_frame00", "D1J5P6_frame02"]
    with pytest.raises(UsageError, match=r"no test part Training/Labeled; name some of Validation, Testing\.$"):
        read_mnms(raw, frames=frames, test=("Training/Labeled",))


def test_equal_cines_give_equal_bytes_and_the_download_is_not_written_to(raw, frames, tmp_path):
    before = file_bytes(raw)
    cut_frames(raw, frames)
    cut_frames(raw, tmp_path / "again")

    assert file_bytes(frames) == file_bytes(tmp_path / "again")
    assert len(file_bytes(frames)) == 1 + 4 * 5  # the sheet, and two images and labels of five labelled patients
    assert file_bytes(raw) == before
    with pytest.raises(UsageError, match="lies in the raw folder"):
        cut_frames(raw, raw / "frames")


def test_frames_that_stand_are_left_alone_until_their_cine_changes(raw, frames):
    cut_frames(raw, frames)
    path = frames / "Testing/E4W8Z7/E4W8Z7_frame01.nii.gz"
    stamp = path.stat().st_mtime_ns
    cut_frames(raw, frames)
    assert path.stat().st_mtime_ns == stamp

    source = raw / "Testing/E4W8Z7/E4W8Z7_sa.nii.gz"
    save(source, cine("another"))
    os.utime(source, ns=(stamp + 10**9, stamp + 10**9))
    cut_frames(raw, frames)
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), cine("another")[..., 1])


def test_the_name_of_a_config_reads_a_folder_of_frames_and_asks_for_it_in_place_of_the_download(raw, frames):
    expected = read_mnms(raw, frames=frames)

    assert read_dataset("mnms", frames) == expected
    with pytest.raises(UsageError, match=r"cut out the labelled ones with `python -m data_prep\.mnms .*OpenDataset"):
        read_dataset("mnms", raw)


def test_the_folder_above_and_a_sheet_beside_the_data_are_found(raw, frames, tmp_path):
    (raw / SHEET).rename(tmp_path / SHEET)
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    (tmp_path / "cut").mkdir()

    assert cut_frames(tmp_path / "OpenDataset", frames) == []
    manifest, errors = read_mnms(frames)
    assert (len(manifest.cases), errors) == (8, [])


def test_an_older_sheet_with_fewer_columns_will_do_and_the_latest_wins(raw, frames):
    (raw / "201014_M&Ms_Dataset_Information_-_opendataset.csv").write_text("External code,Vendor,ED,ES\nA0S9V9,A,9,9")
    assert cut_frames(raw, frames) == []
    (raw / SHEET).write_text("External code,Vendor,ED,ES\n" + "\n".join(f"{p.code},{p.vendor},0,2" for p in PATIENTS))
    assert [error.case_id for error in read_mnms(raw, frames=frames)[1]] == ["A1D0Q7", "E4W8Z7"]


def patient_file(raw, kind="_sa"):
    return raw / f"Training/Labeled/A0S9V9/A0S9V9{kind}.nii.gz"


def changed(**fields):
    return [Patient(**{**vars(PATIENTS[0]), **fields}), *PATIENTS[1:]]


def with_value_7(raw):
    label = cine_label(PATIENTS[0])
    label[0, 0, 0, 2] = 7
    save(patient_file(raw, "_sa_gt"), label)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda raw: os.truncate(patient_file(raw), 300), "A0S9V9: A0S9V9_sa.nii.gz cannot be read (Compressed file"),
        (
            lambda raw: patient_file(raw).write_bytes(gzip.compress(bytes(400))),
            "A0S9V9: A0S9V9_sa.nii.gz is no NIfTI-1 file; restore it",
        ),
        (lambda raw: patient_file(raw).write_bytes(b""), "A0S9V9: A0S9V9_sa.nii.gz cannot be read"),
        (
            lambda raw: save(patient_file(raw), cine("a")[..., 0]),
            "A0S9V9: A0S9V9_sa.nii.gz has the shape (6, 5, 3), expected a cine of four axes; restore it",
        ),
        (lambda raw: patient_file(raw).unlink(), "A0S9V9: its image A0S9V9_sa.nii.gz is missing; restore it"),
        (
            lambda raw: patient_file(raw, "_sa_gt").unlink(),
            "A0S9V9: its label A0S9V9_sa_gt.nii.gz is missing; restore it from the M&Ms download.",
        ),
        (
            with_value_7,
            "A0S9V9: its label holds the value 7 in frame 2, the ES of the sheet, known are 0 background, 1 LV, 2 MYO, "
            "3 RV; correct the label.",
        ),
        (
            lambda raw: write_sheet(raw, changed(es=1)),
            "A0S9V9: its label is empty in frame 1, the ES of the sheet; correct the frame numbers in the sheet.",
        ),
        (
            lambda raw: write_sheet(raw, changed(es=4)),
            "A0S9V9: the information sheet gives frame 4 but A0S9V9_sa.nii.gz has 4, counted from 0; correct",
        ),
        (
            lambda raw: write_sheet(raw, changed(es=0)),
            "A0S9V9: the information sheet gives frame 0 as both ED and ES; correct",
        ),
        (
            lambda raw: write_sheet(raw, changed(es="?")),
            "A0S9V9: the information sheet gives ES as '?', not a whole number from 0 on; write",
        ),
        (lambda raw: write_sheet(raw, changed(vendor="")), "A0S9V9: the information sheet gives no Vendor; write"),
        *(
            (
                lambda raw, vendor=vendor: write_sheet(raw, changed(vendor=vendor)),
                f"A0S9V9: the information sheet gives the Vendor '{vendor}'; write its letter, A to D, into the sheet.",
            )
            for vendor in ("a", "Siemens", "Z")
        ),
        (
            lambda raw: write_sheet(raw, PATIENTS[1:]),
            "A0S9V9: the information sheet does not list it; add a row for A0S9V9, or move its folder away.",
        ),
        (
            lambda raw: save(patient_file(raw, "_sa_gt"), cine_label(PATIENTS[0]), AFFINE @ np.diag([-1, 1, 1, 1])),
            "A0S9V9_frame00: image and label lie up to 10.0 voxels apart by their affines; resample",
        ),
    ],
)
def test_a_bad_patient_is_reported_by_name_and_the_others_keep_their_folds(raw, frames, spoil, problem):
    whole, _ = read_mnms(raw, frames=frames)
    spoil(raw)
    for path in patient_file(raw).parent.glob("*.nii.gz"):
        os.utime(path, ns=(2**62, 2**62))  # newer than the frames that were cut of it

    manifest, errors = read_mnms(raw, frames=frames)

    assert str(errors[0]).startswith(problem)
    assert {error.case_id.partition("_")[0] for error in errors} == {"A0S9V9"}
    of_others = [(case.case_id, case.fold) for case in whole.cases if case.patient_id != "A0S9V9"]
    if not ("does not list" in problem or "gives the Vendor" in problem):  # the sheet says whom to deal, and by what
        assert [(case.case_id, case.fold) for case in manifest.cases] == of_others


def test_a_patient_of_the_sheet_without_a_folder_is_reported_where_the_download_is_whole(raw, frames):
    write_sheet(raw, [*PATIENTS, Patient("Z9Z9Z9", "Testing", "C")])
    _, errors = read_mnms(raw, frames=frames)
    assert [str(error) for error in errors] == [
        "Z9Z9Z9: the information sheet lists it, but it has no folder; restore it from the M&Ms download, or take the "
        "row out of the sheet."
    ]

    (raw / "Validation").rename(raw / ".Validation")
    assert read_mnms(raw, frames=frames)[1] == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Code,Vendor,ED,ES\nA0S9V9,A,0,2\n", "No information sheet was found in .*OpenDataset; put 211230_M&Ms_"),
        ("External code,ED\nA0S9V9,0\n", r"has no column Vendor, ES; restore it"),
        ("External code,Vendor,ED,ES\nA0S9V9,A,0,2\nA0S9V9,A,0,2\n", "lists the patient A0S9V9 twice; delete"),
        ("External code,Vendor,ED,ES\n", "lists no patient; restore it"),
    ],
)
def test_a_sheet_that_cannot_be_meant_is_refused(raw, frames, text, problem):
    (raw / SHEET).write_text(text)
    with pytest.raises(UsageError, match=problem):
        cut_frames(raw, frames)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_sheet_in_another_encoding_is_named_with_the_cure(raw, frames, encoding):
    text = (raw / SHEET).read_text().replace("HCM", "Cardiomyopathie hypertrophiqu\u00e9")
    (raw / SHEET).write_text(text, encoding=encoding)
    with pytest.raises(
        UsageError, match=r"OpenDataset/211230_M&Ms_.*\.csv cannot be read \(Unicode.*; .* save it as CSV UTF-8\.$"
    ):
        read_mnms(raw, frames=frames)


def test_a_table_that_cannot_be_read_beside_a_sheet_that_can_is_no_matter(raw, frames):
    (raw / "zz_notes.csv").write_text("Qualit\u00e9\n", encoding="latin-1")
    (raw / "zz_open_quote.csv").write_text('"' + "a" * 2**18)  # more than the csv module takes for a cell
    assert read_mnms(raw, frames=frames)[1] == []


@pytest.mark.parametrize("part", ["Testing", "Validation"])
def test_a_patient_in_two_parts_is_left_out_with_both_folders_named_and_the_others_keep_their_folds(raw, frames, part):
    whole, _ = read_mnms(raw, frames=frames)
    shutil.copytree(raw / "Training/Labeled/A0S9V9", raw / part / "A0S9V9")

    for folder, found in ((raw, read_mnms(raw, frames=frames)), (frames, read_mnms(frames))):
        manifest, errors = found
        assert [str(error) for error in errors] == [
            f"A0S9V9: 2 parts of M&Ms have a folder of it, {folder}/Training/Labeled/A0S9V9 and "
            f"{folder}/{part}/A0S9V9, so its split is not known; move those away that the M&Ms download does not have."
        ]
        of_others = [(case.case_id, case.fold) for case in whole.cases if case.patient_id != "A0S9V9"]
        assert [(case.case_id, case.fold) for case in manifest.cases] == of_others

    shutil.rmtree(raw / part / "A0S9V9")
    assert read_mnms(raw, frames=frames) == (whole, [])
    assert read_mnms(frames) == (whole, [])


def test_a_missing_frame_is_reported_with_the_cure(raw, frames):
    cut_frames(raw, frames)
    (frames / "Testing/E4W8Z7/E4W8Z7_frame03_gt.nii.gz").unlink()

    manifest, errors = read_mnms(frames)

    assert case_ids(manifest, split="test") == ["E4W8Z7_frame01"]
    assert [str(error) for error in errors] == [
        "E4W8Z7_frame03: its label E4W8Z7_frame03_gt.nii.gz (ES in the sheet) is missing; cut the frames again from "
        "the M&Ms download."
    ]


def test_a_file_that_ends_early_is_refused_even_uncompressed(tmp_path):
    path = tmp_path / "short.nii"
    save(path, cine("a"))
    os.truncate(path, path.stat().st_size - 10)
    with pytest.raises(CaseError, match=r"^a: short\.nii ends within its frame 3; restore"):
        read_frames(path, [0, 3], case_id="a")
    assert read_frames(path, [0], case_id="a")[1][0].shape == SHAPE


def test_frames_of_a_real_cine_are_those_that_its_owner_cut(real_acdc):
    patient = real_acdc / "training" / "patient090"
    _, volumes = read_frames(patient / "patient090_4d.nii.gz", [10, 3], case_id="patient090")
    for volume, number in zip(volumes, (11, 4), strict=True):  # ACDC counts from 1
        np.testing.assert_array_equal(
            volume, np.asarray(nib.load(patient / f"patient090_frame{number:02d}.nii.gz").dataobj)
        )


def test_the_command_ends_with_the_exit_code_of_its_outcome(raw, frames, capsys):
    assert main([str(raw), str(frames)]) == 0
    assert capsys.readouterr().out == "frames: 5 of 5 patients\n"
    patient_file(raw).unlink()
    assert main([str(raw), str(frames)]) == 3
    assert "A0S9V9: its image" in capsys.readouterr().err
    assert main([str(raw / "absent"), str(frames)]) == 2
    assert "does not exist; expected Training/Labeled" in capsys.readouterr().err
