import gzip
import os

import numpy as np
import pytest
import SimpleITK

from data_prep.raw_folder import list_files
from data_prep.scan_files import check_scan_pair, read_grid
from tests.data_prep.raw_layouts import draw_image, save_nifti
from uumamba.runtime.errors import CaseError

AFFINE = np.diag([0.4, 0.4, 0.5, 1.0])


@pytest.fixture
def pair(tmp_path):
    """Save an image and a label of another shape or affine."""

    def save(*, names=("a.nii.gz", "b.nii.gz"), shape=(6, 5, 4), label_shape=(6, 5, 4), label_affine=AFFINE):
        paths = [tmp_path / name for name in names]
        for path, size, affine in zip(paths, (shape, label_shape), (AFFINE, label_affine), strict=True):
            save_nifti(path, draw_image(0, size), affine)
        return paths

    return save


def shifted(voxels):
    affine = AFFINE.copy()
    affine[2, 3] = 0.5 * voxels  # voxels are 0.5 mm long along the third axis
    return affine


def assert_refused(image, label):
    with pytest.raises(CaseError) as error:
        check_scan_pair(image, label, case_id="7")
    assert error.value.case_id == "7"
    return error.value


def test_a_label_on_the_grid_is_accepted_to_within_half_a_voxel(pair):
    check_scan_pair(*pair(), case_id="7")
    check_scan_pair(*pair(names=("a.nii", "b.nii.gz"), label_affine=shifted(0.4)), case_id="7")
    check_scan_pair(pair()[0], None, case_id="7")
    assert_refused(*pair(label_affine=shifted(0.6)))


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("names", [("a.nii.gz", "b.nii.gz"), ("a.nii", "b.nii")])
def test_a_cut_file_is_refused_by_its_length(pair, share, names):
    for which in (0, 1):
        paths = pair(names=names)
        os.truncate(paths[which], int(share * paths[which].stat().st_size))
        assert_refused(*paths)


def test_a_flat_image_has_one_slice(pair, tmp_path):
    flat, nifti = pair(names=("a.nii", "flat.nii"), shape=(4, 4), label_shape=(4, 4))
    SimpleITK.WriteImage(SimpleITK.Image(4, 4, SimpleITK.sitkInt16), tmp_path / "flat.mha")
    for path in (flat, nifti, tmp_path / "flat.mha"):
        assert read_grid(path, case_id="7").array.shape == (4, 4, 1)


def test_gzip_members_and_repairable_files_are_accepted(pair, tmp_path):
    plain, label = pair(names=("a.nii", "b.nii"), label_shape=(6, 5, 4, 1))
    content = plain.read_bytes()
    members = gzip.compress(content[:300]) + gzip.compress(content[300:])
    for stored in (members, content):  # the second file is not compressed, in spite of its name
        (tmp_path / "c.nii.gz").write_bytes(stored)
        check_scan_pair(tmp_path / "c.nii.gz", label, case_id="7")


def test_the_voxels_of_a_complete_image_are_not_read(pair):
    image, label = pair(shape=(40, 40, 40), label_shape=(40, 40, 40))
    stored = bytearray(image.read_bytes())
    middle = len(stored) // 2
    stored[middle : middle + 64] = bytes(64)
    image.write_bytes(stored)

    check_scan_pair(image, label, case_id="7")


def test_metaimage_and_nifti_of_one_grid_are_accepted(pair, tmp_path):
    oblique = np.array([[0, -2.0, 0, 9], [3.0, 0, 0, -4], [0, 0, 1.0, 5], [0, 0, 0, 1]])
    other, nifti = pair(label_affine=oblique)
    SimpleITK.WriteImage(SimpleITK.ReadImage(nifti), tmp_path / "a.mha")

    check_scan_pair(tmp_path / "a.mha", nifti, case_id="7")
    assert_refused(tmp_path / "a.mha", other)


def test_linked_folders_are_followed_once_and_hidden_names_left_out(tmp_path):
    elsewhere, raw = tmp_path / "disk2" / "201-400", tmp_path / "raw"
    for path in (elsewhere / "201.img.nii.gz", raw / "1.img.nii.gz", raw / "__MACOSX" / "._1.img.nii.gz"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name, target in {"201-400": elsewhere, "loop": raw, "lost": tmp_path / "nowhere"}.items():
        (raw / name).symlink_to(target)

    assert list_files(raw) == [raw / "1.img.nii.gz", raw / "201-400" / "201.img.nii.gz"]
