"""Files are whole or absent."""

from pathlib import Path

import pytest

from uumamba.errors import UsageError
from uumamba.files import make_folder, whole_file, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.nii.gz"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="midway"), whole_file(target) as unfinished:
        unfinished.write_text("half")
        raise RuntimeError("midway")
    assert target.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_temporary_name_keeps_every_suffix(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a.nii.gz") as unfinished:
        assert unfinished.name.endswith(".nii.gz")
        assert unfinished.parent == tmp_path
        unfinished.touch()


def test_a_folder_beneath_a_regular_file_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot be a folder because .*/file is a file; choose another"):
        make_folder(tmp_path / "file" / "deeper" / "still")


def test_json_refuses_nan_instead_of_writing_what_others_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"dice": float("nan")})
    assert not (tmp_path / "a.json").exists()
