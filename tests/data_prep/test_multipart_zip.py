import os

import pytest

from data_prep.multipart_zip import find_multipart_zips

MEBIBYTE = 2**20  # of each numbered part of the fixture


def test_the_parts_of_an_archive_are_found_and_whole(tmp_path, write_multipart_zip):
    paths = write_multipart_zip(tmp_path, "1-200")

    (archive,) = find_multipart_zips(paths)

    assert (archive.name, archive.folder, archive.last) == ("1-200", tmp_path, paths[-1])
    assert sorted(archive.earlier) == [1, 2, 3, 4]
    assert archive.problem() is None


def test_archives_stand_in_the_order_of_their_numbers(tmp_path, write_multipart_zip):
    names = ["1-200", "201-400", "801-1000", "1001-1200"]
    paths = [path for name in names for path in write_multipart_zip(tmp_path, name)]

    assert [archive.name for archive in find_multipart_zips(paths)] == names


def test_a_plain_zip_is_no_multipart_archive(tmp_path):
    (tmp_path / "notes.zip").touch()

    assert find_multipart_zips(tmp_path.iterdir()) == []


def test_the_command_renames_what_kaggle_renamed_and_quotes_the_folder(tmp_path, write_multipart_zip):
    folder = tmp_path / "my data"
    (renamed,) = find_multipart_zips(write_multipart_zip(folder, "1-200"))
    (as_zipped,) = find_multipart_zips(write_multipart_zip(folder, "1-200", last="zip"))

    assert renamed.unpack_command() == f"cd '{folder}' && mv 1-200.change2zip 1-200.zip && 7z x 1-200.zip"
    assert as_zipped.unpack_command() == f"cd '{folder}' && 7z x 1-200.zip"


@pytest.mark.parametrize(
    ("lost", "problem"),
    [
        ([1], "of the archive's 4 numbered parts 1 is missing: 1-200.z02"),
        ([0, 3], "of the archive's 4 numbered parts 2 are missing: 1-200.z01, 1-200.z04"),
        ([4], "the last part of the archive (1-200.change2zip or 1-200.zip) is missing"),
    ],
)
def test_a_missing_part_is_named(tmp_path, write_multipart_zip, lost, problem):
    paths = write_multipart_zip(tmp_path, "1-200")

    (archive,) = find_multipart_zips(path for at, path in enumerate(paths) if at not in lost)

    assert archive.problem() == problem


def test_a_cut_part_is_named_with_its_size(tmp_path, write_multipart_zip):
    paths = write_multipart_zip(tmp_path, "1-200")
    os.truncate(paths[2], MEBIBYTE // 2)

    (archive,) = find_multipart_zips(paths)

    assert archive.problem() == "the archive's part 1-200.z03 is cut off (524288 of 1048576 bytes)"


def test_a_part_that_ends_at_a_header_is_whole(tmp_path, write_multipart_zip):
    paths = write_multipart_zip(tmp_path, "1-200")
    os.truncate(paths[2], MEBIBYTE - 100)

    (archive,) = find_multipart_zips(paths)

    assert archive.problem() is None


@pytest.mark.parametrize("kept", [0, 300, 521])
def test_a_last_part_without_its_end_is_cut_off(tmp_path, write_multipart_zip, kept):
    paths = write_multipart_zip(tmp_path, "1-200")
    os.truncate(paths[-1], kept)  # of 500 bytes and an end record of 22

    (archive,) = find_multipart_zips(paths)

    assert archive.problem() == "the last part of the archive, 1-200.change2zip, is cut off or no zip archive"
