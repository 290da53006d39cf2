"""Files are whole or absent."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from uumamba.runtime.errors import UsageError, UumambaError
from uumamba.runtime.files import make_folder, room_for, whole_file, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.nii.gz"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="midway"), whole_file(target) as unfinished:
        unfinished.write_text("half")
        raise RuntimeError("midway")
    assert target.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_old_file_stands_until_the_new_one_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems say that they are full only when a file is synchronised."""
    target, told = tmp_path / "a", []

    def is_full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    target.write_text("old")
    monkeypatch.setattr("uumamba.runtime.files._synchronise", is_full)
    with (
        pytest.raises(UumambaError, match=r"/a could not be written \(No space left on device\); make room"),
        room_for(target),
        whole_file(target, before_replacing=lambda: told.append("moved aside")) as unfinished,
    ):
        unfinished.write_text("new")
    assert told == []
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


def link_to_nowhere(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "nowhere")
    return folder / "link"


def link_to_itself(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "link")
    return folder / "link"


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (lambda folder: link_to_nowhere(folder), r"because .*/link is a link that leads nowhere"),
        (lambda folder: link_to_nowhere(folder) / "deeper", r"because .*/link is a link that leads nowhere"),
        (lambda folder: link_to_itself(folder), r"because .*/link is a link that leads nowhere"),
        (lambda folder: Path("/proc/foo"), r"to write in \(No such file or directory\)"),
        (lambda folder: Path("/proc"), r"to write in \(No such file or directory\)"),
        (lambda folder: folder / ("a" * 300), r"to write in \(File name too long\)"),
    ],
)
def test_a_place_that_cannot_be_a_folder_is_one_sentence(
    place: Callable[[Path], Path], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=rf"cannot be a folder {reason}; choose another"):
        make_folder(place(tmp_path))


def test_a_folder_that_may_not_be_written_to_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        with unprivileged(), pytest.raises(UsageError, match=r"cannot be a folder to write in \(Permission denied\)"):
            make_folder(folder)


def test_looking_whether_a_folder_can_be_written_to_leaves_nothing_there(tmp_path: Path) -> None:
    assert list(make_folder(tmp_path / "new").iterdir()) == []


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder; give the name of a file"):
        write_text(tmp_path, "text")


def test_the_longest_name_can_be_written_and_a_longer_one_is_refused(tmp_path: Path) -> None:
    write_text(tmp_path / ("a" * 255), "text")
    with pytest.raises(UsageError, match=r"cannot be written \(File name too long\); choose another"):
        write_text(tmp_path / ("a" * 300), "text")


@contextmanager
def unprivileged() -> Iterator[None]:
    """As the user nobody where the tests run as root, whom no permission stops."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
