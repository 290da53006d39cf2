"""Tests of atomic file writes."""

import errno
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from uumamba.runtime.errors import UumambaError
from uumamba.runtime.files import (
    OutputError,
    lock_folder,
    make_folder,
    open_regular,
    report_write_errors,
    whole_file,
    write_json,
    write_text,
)
from uumamba.training.run_folder import RunLog


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


@pytest.mark.parametrize("kind", ["a FIFO", "a folder", "a device", "a socket"])
def test_only_a_regular_file_is_opened_and_nothing_waits(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    with pytest.raises(OSError, match=f"{kind}, not a regular file"):
        open_regular(path)


def test_a_link_to_a_regular_file_is_opened_and_a_missing_file_is_named(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "text")
    (tmp_path / "link").symlink_to("a")
    with open_regular(tmp_path / "link") as stream:
        assert stream.read() == b"text"
    with pytest.raises(FileNotFoundError, match="No such file"):
        open_regular(tmp_path / "b")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_file_made_by_a_library_gets_the_permissions_of_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with whole_file(tmp_path / "a.safetensors") as unfinished:
            save_file({"weight": torch.zeros(2)}, unfinished)
        with whole_file(tmp_path / "replaced") as unfinished:
            descriptor, made = tempfile.mkstemp(dir=tmp_path)  # with 0600, as libraries do before they rename
            os.close(descriptor)
            os.replace(made, unfinished)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o666 & ~umask}


def test_files_in_a_strangers_folder_are_replaced_or_refused_where_they_are_links(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    folder = tmp_path / "shared"
    folder.mkdir()
    for name in (".lock", "metrics.jsonl", "config.json"):
        (folder / name).symlink_to(tmp_path / "mine")
    with pytest.raises(OutputError, match="a symbolic link"), lock_folder(folder, doing="training"):
        pass
    with pytest.raises(OutputError, match="a symbolic link"):
        RunLog(folder / "metrics.jsonl").append({"epoch": 0})
    write_json(folder / "config.json", {})
    assert (tmp_path / "mine").read_text(encoding="utf-8") == "precious"
    (folder / ".lock").unlink()
    os.mkfifo(folder / ".lock")
    with pytest.raises(OutputError, match="a FIFO"), lock_folder(folder, doing="training"):
        pass


def test_a_long_name_is_told_from_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File name too long"), whole_file(tmp_path / ("a" * 256)):
        pass
    with pytest.raises(OutputError, match="no room"), whole_file(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "no room")
