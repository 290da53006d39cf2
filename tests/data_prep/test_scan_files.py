import gzip
import os

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from data_prep.scan_files import check_pair, files_below
from uumamba.runtime.errors import CaseError

AFFINE = np.diag([0.4, 0.4, 0.5, 1.0])


def save(path, *, shape=(6, 5, 4), affine=AFFINE):
    volume = np.random.default_rng(0).integers(0, 1000, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, affine), path)
    return path


def shifted(voxels):
    affine = AFFINE.copy()
    affine[2, 3] = 0.5 * voxels  # voxels are 0.5 mm long along the third axis
    return affine


def test_a_pair_on_one_grid_is_accepted(tmp_path):
    check_pair(save(tmp_path / "a.nii.gz"), save(tmp_path / "b.nii.gz"), case_id="7")
    check_pair(save(tmp_path / "a.nii"), save(tmp_path / "b.nii.gz", affine=shifted(0.4)), case_id="7")
    check_pair(save(tmp_path / "a.nii.gz"), None, case_id="7")


def test_a_label_of_another_shape_is_refused(tmp_path):
    pair = save(tmp_path / "a.nii.gz"), save(tmp_path / "b.nii.gz", shape=(6, 5, 3))

    with pytest.raises(CaseError, match=r"^7: the image has the shape \(6, 5, 4\), its label \(6, 5, 3\); give the"):
        check_pair(*pair, case_id="7")


@pytest.mark.parametrize("voxels", [0.6, 40])
def test_a_label_shifted_by_more_than_half_a_voxel_is_refused(tmp_path, voxels):
    pair = save(tmp_path / "a.nii.gz"), save(tmp_path / "b.nii.gz", affine=shifted(voxels))

    with pytest.raises(CaseError, match=rf"^7: image and label lie up to {voxels:.1f} voxels apart by their affines"):
        check_pair(*pair, case_id="7")


def test_a_label_flipped_left_to_right_is_refused(tmp_path):
    pair = save(tmp_path / "a.nii.gz"), save(tmp_path / "b.nii.gz", affine=AFFINE @ np.diag([-1, 1, 1, 1]))

    # Opposite corners lie 2 * 5 steps of 5 voxels apart.
    with pytest.raises(CaseError, match=r"^7: image and label lie up to 10\.0 voxels apart"):
        check_pair(*pair, case_id="7")


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_cut_image_is_refused_by_its_length(tmp_path, share):
    image, label = save(tmp_path / "a.nii.gz"), save(tmp_path / "b.nii.gz")
    os.truncate(image, int(share * image.stat().st_size))

    with pytest.raises(CaseError, match=r"^7: a\.nii\.gz is (cut off|empty)"):
        check_pair(image, label, case_id="7")


def test_a_cut_label_is_refused_too(tmp_path):
    image, label = save(tmp_path / "a.nii.gz"), save(tmp_path / "b.nii")
    os.truncate(label, label.stat().st_size - 1)

    with pytest.raises(CaseError, match=r"^7: b\.nii ends after 591 of 592 bytes"):  # 352 + 6 * 5 * 4 * 2 bytes
        check_pair(image, label, case_id="7")


def test_noise_is_refused(tmp_path):
    label = save(tmp_path / "b.nii.gz")
    for name, noise in {"a.nii.gz": b"noise" * 200, "c.mha": b"noise" * 200}.items():
        (tmp_path / name).write_bytes(noise)
        with pytest.raises(CaseError, match=r"^7: (a\.nii\.gz is no NIfTI|the header of c\.mha \(1000 bytes\) cannot)"):
            check_pair(tmp_path / name, label, case_id="7")


def test_a_file_in_several_gzip_members_is_whole(tmp_path):
    plain = save(tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(plain[:300]) + gzip.compress(plain[300:]))

    check_pair(tmp_path / "a.nii.gz", save(tmp_path / "b.nii.gz"), case_id="7")


def test_what_prepare_repairs_is_no_reason_to_refuse(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(save(tmp_path / "a.nii").read_bytes())  # not compressed, against its name
    save(tmp_path / "b.nii", shape=(6, 5, 4, 1))

    check_pair(tmp_path / "a.nii.gz", tmp_path / "b.nii", case_id="7")


def test_the_voxels_of_a_whole_image_are_not_read(tmp_path):
    image, label = save(tmp_path / "a.nii.gz", shape=(40, 40, 40)), save(tmp_path / "b.nii.gz", shape=(40, 40, 40))
    stored = bytearray(image.read_bytes())
    middle = len(stored) // 2
    stored[middle : middle + 64] = bytes(64)
    image.write_bytes(stored)

    check_pair(image, label, case_id="7")


def test_metaimage_and_nifti_of_one_grid_lie_on_each_other(tmp_path):
    nifti = save(
        tmp_path / "b.nii.gz", affine=np.array([[0, -2.0, 0, 9], [3.0, 0, 0, -4], [0, 0, 1.0, 5], [0, 0, 0, 1]])
    )
    SimpleITK.WriteImage(SimpleITK.ReadImage(nifti), tmp_path / "a.mha")

    check_pair(tmp_path / "a.mha", nifti, case_id="7")
    with pytest.raises(CaseError, match=r"^7: image and label lie up to .* voxels apart"):
        check_pair(tmp_path / "a.mha", save(tmp_path / "c.nii.gz"), case_id="7")


def test_a_flat_metaimage_is_refused(tmp_path):
    SimpleITK.WriteImage(SimpleITK.Image(4, 4, SimpleITK.sitkInt16), tmp_path / "a.mha")

    with pytest.raises(CaseError, match=r"^7: a\.mha is 2-D, with the shape \(4, 4\)"):
        check_pair(tmp_path / "a.mha", None, case_id="7")


def test_linked_folders_are_followed_once_and_hidden_names_left_out(tmp_path):
    elsewhere = tmp_path / "disk2" / "201-400"
    elsewhere.mkdir(parents=True)
    raw = tmp_path / "raw"
    (raw / "__MACOSX").mkdir(parents=True)
    for path in (elsewhere / "201.img.nii.gz", raw / "1.img.nii.gz", raw / "__MACOSX" / "._1.img.nii.gz"):
        path.touch()
    (raw / "201-400").symlink_to(elsewhere)
    (raw / "loop").symlink_to(raw)
    (raw / "lost").symlink_to(tmp_path / "nowhere")

    assert files_below(raw) == [raw / "1.img.nii.gz", raw / "201-400" / "201.img.nii.gz"]
