"""Tests of atomic file writes."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from uumamba.runtime.errors import UumambaError
from uumamba.runtime.files import make_folder, report_write_errors, whole_file, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.nii.gz"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="midway"), whole_file(target) as unfinished:
        assert unfinished.name.endswith(".nii.gz"), "the suffix decides how writers encode"
        unfinished.write_text("half")
        raise RuntimeError("midway")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(target, {"dice": float("nan")})
    assert target.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_old_file_stays_until_the_new_one_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, called = tmp_path / "a", []

    def fail(descriptor: int) -> None:  # some file systems report a full disk only at fsync
        raise OSError(errno.ENOSPC, "No space left on device")

    target.write_text("old")
    monkeypatch.setattr(os, "fsync", fail)
    with (
        pytest.raises(UumambaError, match=r"/a could not be written: No space left on device\."),
        report_write_errors(target),
        whole_file(target, before_replacing=lambda: called.append("renamed")) as unfinished,
    ):
        unfinished.write_text("new")
    assert called == []
    assert target.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("place", ["file/deeper/still", "link/deeper", "loop", "/proc/foo", "a" * 300])
def test_a_path_that_cannot_be_a_folder_is_refused(place: str, tmp_path: Path, refused: Any) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with refused(str(tmp_path / place)) as error:
        make_folder(tmp_path / place)
    culprit = place.split("/")[0]
    assert culprit not in {"file", "link", "loop"} or f"{tmp_path / culprit}, not a folder" == error.value.got


def test_a_read_only_folder_is_refused(tmp_path_factory: pytest.TempPathFactory, refused: Any) -> None:
    folder = tmp_path_factory.mktemp("closed")
    for each in (folder.parent, folder.parent.parent):
        each.chmod(0o755)
    folder.chmod(0o555)
    with unprivileged(), refused(str(folder), got="Permission denied"):
        make_folder(folder)


def test_make_folder_leaves_no_file_and_no_file_replaces_a_folder(tmp_path: Path, refused: Any) -> None:
    assert list(make_folder(tmp_path / "new").iterdir()) == []
    with refused(str(tmp_path), got="a folder"):
        write_text(tmp_path, "text")


def test_a_name_of_255_characters_can_be_written_and_a_longer_name_is_refused(tmp_path: Path) -> None:
    write_text(tmp_path / ("a" * 255), "text")
    with pytest.raises(UumambaError, match=r"could not be written: File name too long\."):
        write_text(tmp_path / ("a" * 300), "text")


@contextmanager
def unprivileged() -> Iterator[None]:
    """Become the user nobody, because permissions do not bind root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
