"""M&Ms: 4-D cines and labels, the information sheet, and cut frames."""

import gzip
import os
import shutil
from collections import namedtuple

import nibabel as nib
import numpy as np
import pytest

from data_prep.mnms import main, read_mnms
from data_prep.mnms_frames import cut_frames, read_frames
from tests.data_prep.raw_layouts import (
    AFFINE,
    MNMS_SHEET,
    Mnms,
    case_ids,
    file_bytes,
    read_all,
    save_nifti,
    write_mnms_sheet,
)
from uumamba.data.scan import read_image, read_label
from uumamba.pipelines.datasets import is_dataset, read_dataset

SHAPE, FRAMES = (6, 5, 3), 4


Patient = namedtuple("Patient", "code part vendor ed es", defaults=(0, 2))
PATIENTS = (
    Patient("A0S9V9", "Training/Labeled", "A"),
    Patient("A1D0Q7", "Training/Labeled", "B", 3, 1),
    Patient("B9O3A3", "Training/Labeled", "A"),
    Patient("C0S7W0", "Training/Unlabeled", "C"),
    Patient("D1J5P6", "Validation", "D"),
    Patient("E4W8Z7", "Testing", "D", 1, 3),
)


def cine(code):
    """Draw intensities that differ between patients, frames and voxels."""
    generator = np.random.default_rng(sum(code.encode()))
    return generator.integers(0, 500, (*SHAPE, FRAMES)).astype(np.int16)


def cine_label(patient):
    """Draw n voxels of each value n in both labelled frames."""
    label = np.zeros((*SHAPE, FRAMES), np.uint8)
    for frame in (patient.ed, patient.es):
        for value in (1, 2, 3):
            label[value, :value, 1, frame] = value
    return label


def write_sheet(raw, patients):
    write_mnms_sheet(raw, [(each.code, each.vendor, each.ed, each.es) for each in patients])


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "download" / "OpenDataset"
    for patient in PATIENTS:
        stem = folder / patient.part / patient.code / f"{patient.code}_sa"
        save_nifti(stem.with_name(f"{stem.name}.nii.gz"), cine(patient.code))
        if patient.part != "Training/Unlabeled":
            save_nifti(stem.with_name(f"{stem.name}_gt.nii.gz"), cine_label(patient))
    write_sheet(folder, PATIENTS)
    return folder


@pytest.fixture
def frames(tmp_path):
    return tmp_path / "frames"


def test_cases_are_both_frames_of_the_labelled_patients_with_the_vendor_as_domain(raw, frames):
    manifest = read_all(read_mnms, raw, frames=frames)

    assert case_ids(manifest, split="training") == [
        *("A0S9V9_frame00", "A0S9V9_frame02", "A1D0Q7_frame01", "A1D0Q7_frame03"),
        *("B9O3A3_frame00", "B9O3A3_frame02"),
    ]
    assert case_ids(manifest, split="test") == ["E4W8Z7_frame01", "E4W8Z7_frame03"]
    es = manifest.by_id("A1D0Q7_frame01")
    assert (es.patient_id, es.phase, es.domain, es.group) == ("A1D0Q7", "ES", "B", "NOR")
    assert manifest.by_id("A1D0Q7_frame03").phase == "ED"
    assert manifest.extra == {"domains": {"A": "Siemens", "B": "Philips", "D": "Canon"}, "test_parts": ["Testing"]}
    assert is_dataset(manifest, "mnms")


def test_a_frame_is_that_of_the_cine_bit_for_bit_with_labels_in_the_order_of_acdc(raw, frames):
    manifest, _ = read_mnms(raw, frames=frames)
    case = manifest.by_id("A0S9V9_frame02")
    scan = read_image(case.image, keep_integers=True)
    label = read_label(case.label, structures=manifest.structures).array

    np.testing.assert_array_equal(scan.array, cine("A0S9V9")[..., 2])
    np.testing.assert_allclose(scan.affine, AFFINE, atol=1e-6)
    assert nib.load(case.image).shape == SHAPE
    assert [np.count_nonzero(label == manifest.structures[name]) for name in ("LV", "MYO", "RV")] == [1, 2, 3]
    assert (label[1, 0, 1], label[2, 0, 1], label[3, 0, 1]) == (3, 2, 1)


def test_another_way_of_storing_a_label_means_the_same(raw, frames, tmp_path):
    cut_frames(raw, frames)
    save_nifti(label_file(raw), (cine_label(PATIENTS[0]) * 2.0).astype(np.float64), slope=0.5)

    assert cut_frames(raw, tmp_path / "again") == []

    name = "Training/Labeled/A0S9V9/A0S9V9_frame00_gt.nii.gz"
    assert (tmp_path / "again" / name).read_bytes() == (frames / name).read_bytes()


def test_every_fold_has_as_many_patients_of_each_vendor(tmp_path, frames):
    Mnms().write(tmp_path / "raw", 10)

    manifest = read_all(read_mnms, tmp_path / "raw", frames=frames)

    for fold in range(5):
        assert [case.domain for case in manifest.select(fold=fold)].count("A") == 2


def test_the_official_validation_patients_join_the_test_split_on_request(raw, frames, refused):
    manifest, _ = read_mnms(raw, frames=frames, test=("Validation", "Testing"))

    assert case_ids(manifest, split="test")[:2] == ["D1J5P6_frame00", "D1J5P6_frame02"]
    with refused("test", got="Training/Labeled"):
        read_mnms(raw, frames=frames, test=("Training/Labeled",))


def test_equal_cines_give_equal_bytes_and_the_download_is_not_written_to(raw, frames, tmp_path, refused):
    before = file_bytes(raw)
    cut_frames(raw, frames)
    cut_frames(raw, tmp_path / "again")

    assert file_bytes(frames) == file_bytes(tmp_path / "again")
    assert len(file_bytes(frames)) == 1 + 5 * 5  # the sheet; two images, two labels and hashes of five patients
    with refused("out", got=raw / "frames"):
        cut_frames(raw, raw / "frames")
    assert file_bytes(raw) == before


@pytest.mark.parametrize("seconds", [-3600, 0, 3600], ids=["older", "as old", "newer"])
@pytest.mark.parametrize("changed", ["cine", "label", "nothing"])
def test_frames_are_kept_until_their_cine_changes_whatever_the_times_of_the_files(raw, frames, changed, seconds):
    cut_frames(raw, frames)
    image, label = (frames / f"Testing/E4W8Z7/E4W8Z7_frame01{end}.nii.gz" for end in ("", "_gt"))
    expected = {path: np.asarray(nib.load(path).dataobj).copy() for path in (image, label)}
    stamp = image.stat().st_mtime_ns
    folder = raw / "Testing/E4W8Z7"
    if changed == "cine":
        save_nifti(folder / "E4W8Z7_sa.nii.gz", cine("another"))
        expected[image] = cine("another")[..., 1]
    if changed == "label":
        stored = cine_label(PATIENTS[-1])[::-1]
        save_nifti(folder / "E4W8Z7_sa_gt.nii.gz", stored)
        expected[label] = np.array([0, 3, 2, 1])[stored[..., 1]]
    for source in folder.iterdir():
        os.utime(source, ns=(stamp, stamp + seconds * 10**9))
    cut_frames(raw, frames)
    assert (image.stat().st_mtime_ns == stamp) == (changed == "nothing")
    for path, array in expected.items():
        np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), array)


def test_frames_of_another_version_are_cut_again(raw, frames, monkeypatch):
    cut_frames(raw, frames)
    path = frames / "Testing/E4W8Z7/E4W8Z7_frame01.nii.gz"
    stamp = path.stat().st_mtime_ns
    monkeypatch.setattr("data_prep.mnms_frames.FRAMES_VERSION", 2)
    cut_frames(raw, frames)
    assert path.stat().st_mtime_ns != stamp


def test_a_configuration_reads_a_folder_of_frames_and_refuses_the_download_without_one(raw, frames, refused):
    expected = read_mnms(raw, frames=frames)

    assert read_dataset("mnms", frames) == expected
    with refused("frames", got=None) as error:
        read_dataset("mnms", raw)
    assert f"`python -m data_prep.mnms {raw} FRAMES`" in error.value.fix


def test_the_parent_folder_and_a_sheet_in_it_next_to_other_tables_are_found(raw, frames):
    (raw / MNMS_SHEET).rename(raw.parent / MNMS_SHEET)
    (raw.parent / "notes.csv").write_text("a,b\n1,2\n")
    (raw.parent / "zz_notes.csv").write_text("Qualit\u00e9\n", encoding="latin-1")  # cannot be read

    assert cut_frames(raw.parent, frames) == []
    assert len(read_all(read_mnms, frames).cases) == 8


def test_an_older_sheet_with_fewer_columns_is_read_and_the_latest_takes_precedence(raw, frames):
    (raw / "201014_M&Ms_Dataset_Information_-_opendataset.csv").write_text("External code,Vendor,ED,ES\nA0S9V9,A,9,9")
    assert cut_frames(raw, frames) == []
    rows = "\n".join(f"{each.code},{each.vendor},0,2" for each in PATIENTS)
    (raw / MNMS_SHEET).write_text(f"External code,Vendor,ED,ES\n{rows}")
    assert [error.case_id for error in read_mnms(raw, frames=frames)[1]] == ["A1D0Q7", "E4W8Z7"]


def image_file(raw):
    return raw / "Training/Labeled/A0S9V9/A0S9V9_sa.nii.gz"


def label_file(raw):
    return raw / "Training/Labeled/A0S9V9/A0S9V9_sa_gt.nii.gz"


def change_row(**fields):
    return lambda raw: write_sheet(raw, [PATIENTS[0]._replace(**fields), *PATIENTS[1:]])


def store_value_7(raw):
    label = cine_label(PATIENTS[0])
    label[0, 0, 0, 2] = 7
    save_nifti(label_file(raw), label)


@pytest.mark.parametrize(
    ("spoil", "key", "got"),
    [
        (lambda raw: os.truncate(image_file(raw), 300), "A0S9V9_sa.nii.gz", None),
        (lambda raw: image_file(raw).write_bytes(gzip.compress(bytes(400))), "A0S9V9_sa.nii.gz", None),
        (lambda raw: image_file(raw).write_bytes(b""), "A0S9V9_sa.nii.gz", None),
        (lambda raw: save_nifti(image_file(raw), cine("a")[..., 0]), "A0S9V9_sa.nii.gz", "the shape (6, 5, 3)"),
        (store_value_7, "label", "the value 7 in frame 2 (ES)"),
        (change_row(es=1), "label", "no structure in frame 1 (ES)"),
        (change_row(es=4), "frame", 4),
        (change_row(es=0), "ES", "0"),
        (change_row(es="?"), "ES", "?"),
        (change_row(vendor=""), "Vendor", ""),
        (change_row(vendor="a"), "Vendor", "a"),
        (change_row(vendor="Siemens"), "Vendor", "Siemens"),
        (lambda raw: write_sheet(raw, PATIENTS[1:]), "External code", "no row"),
    ],
)
def test_a_faulty_patient_is_reported_by_name_and_the_others_keep_their_folds(raw, frames, spoil, key, got):
    whole, _ = read_mnms(raw, frames=frames)
    spoil(raw)
    for path in image_file(raw).parent.glob("*.nii.gz"):
        os.utime(path, ns=(2**62, 2**62))  # newer than the cut frames

    manifest, (error,) = read_mnms(raw, frames=frames)

    assert (error.case_id, error.key) == ("A0S9V9", key)
    assert error.got == got or got is None
    others = [(case.case_id, case.fold) for case in whole.cases if case.patient_id != "A0S9V9"]
    if key not in ("External code", "Vendor"):  # these rows determine the folds
        assert [(case.case_id, case.fold) for case in manifest.cases] == others


def test_a_patient_of_the_sheet_without_a_folder_is_reported_if_the_download_is_complete(raw, frames):
    write_sheet(raw, [*PATIENTS, Patient("Z9Z9Z9", "Testing", "C")])
    _, (error,) = read_mnms(raw, frames=frames)
    assert (error.case_id, error.key) == ("Z9Z9Z9", "folder")

    (raw / "Validation").rename(raw / ".Validation")
    read_all(read_mnms, raw, frames=frames)


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("External code,ED\nA0S9V9,0\n", "no column Vendor, ES"),
        ("External code,Vendor,ED,ES\nA0S9V9,A,0,2\nA0S9V9,A,0,2\n", "patient A0S9V9 twice"),
        ("External code,Vendor,ED,ES\n", "no patient"),
    ],
)
def test_a_faulty_sheet_is_refused(raw, frames, refused, text, got):
    (raw / MNMS_SHEET).write_text(text)
    with refused(str(raw / MNMS_SHEET), got=got):
        cut_frames(raw, frames)


def test_a_missing_sheet_and_one_in_another_encoding_are_refused(raw, frames, refused):
    text = (raw / MNMS_SHEET).read_text()
    for encoding in ("latin-1", "utf-16"):
        (raw / MNMS_SHEET).write_text(text.replace("NOR", "Qualit\u00e9"), encoding=encoding)
        with refused(str(raw / MNMS_SHEET)):
            read_mnms(raw, frames=frames)

    (raw / MNMS_SHEET).write_text("Code,Vendor,ED,ES\nA0S9V9,A,0,2\n")
    with refused("raw", got=raw):
        cut_frames(raw, frames)


@pytest.mark.parametrize("part", ["Testing", "Validation"])
def test_a_patient_in_two_parts_is_left_out_with_both_folders_named_and_the_others_keep_their_folds(raw, frames, part):
    whole, _ = read_mnms(raw, frames=frames)
    shutil.copytree(raw / "Training/Labeled/A0S9V9", raw / part / "A0S9V9")

    for folder, (manifest, (error,)) in ((raw, read_mnms(raw, frames=frames)), (frames, read_mnms(frames))):
        places = f"{folder}/Training/Labeled/A0S9V9 and {folder}/{part}/A0S9V9"
        assert (error.case_id, error.key, error.got) == ("A0S9V9", "part", places)
        others = [(case.case_id, case.fold) for case in whole.cases if case.patient_id != "A0S9V9"]
        assert [(case.case_id, case.fold) for case in manifest.cases] == others

    shutil.rmtree(raw / part / "A0S9V9")
    assert read_mnms(raw, frames=frames) == read_mnms(frames) == (whole, [])


def test_a_missing_frame_is_reported(raw, frames):
    cut_frames(raw, frames)
    (frames / "Testing/E4W8Z7/E4W8Z7_frame03_gt.nii.gz").unlink()

    manifest, (error,) = read_mnms(frames)

    assert case_ids(manifest, split="test") == ["E4W8Z7_frame01"]
    assert (error.case_id, error.key, error.got) == ("E4W8Z7_frame03", "label", "no file")


def test_frames_of_a_real_cine_equal_the_frames_of_the_download(acdc_raw):
    patient = acdc_raw / "training" / "patient090"
    _, volumes = read_frames(patient / "patient090_4d.nii.gz", [10, 3], case_id="patient090")
    for volume, number in zip(volumes, (11, 4), strict=True):  # ACDC counts from 1
        stored = nib.load(patient / f"patient090_frame{number:02d}.nii.gz").dataobj
        np.testing.assert_array_equal(volume, np.asarray(stored))


def test_the_command_ends_with_the_exit_code_of_its_outcome(raw, frames, capsys):
    assert main([str(raw), str(frames)]) == 0
    assert capsys.readouterr().out == "patients: 5 of 5\n"
    image_file(raw).unlink()
    assert main([str(raw), str(frames)]) == 3
    assert capsys.readouterr().err.startswith("A0S9V9: image: got no file")
    assert main([str(raw / "absent"), str(frames)]) == 2
