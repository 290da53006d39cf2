"""A zip file is unpacked into a temporary folder, or refused before anything is written."""

import os
import resource
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uumamba.data import zip_files
from uumamba.data.zip_files import is_zip, unpacked
from uumamba.runtime.errors import UsageError, UumambaError
from uumamba.runtime.files import OutputError


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let temporary folders be made in a folder of the test."""
    folder = tmp_path / "deep" / "scratch"
    folder.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def list_all(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def entry(name: str, *, mode: int = 0, **fields: Any) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("x")
    info.filename, info.external_attr = name, mode << 16
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def write(path: Path, *entries: zipfile.ZipInfo | str, content: bytes = b"abc") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good/first.txt", b"first")
        for each in entries:
            archive.writestr(each, content)
    return path


def change(path: Path, edit: Callable[[bytearray], Any]) -> None:
    content = bytearray(path.read_bytes())
    edit(content)
    path.write_bytes(content)


def set_central(offset: int, form: str, value: int) -> Callable[[bytearray], None]:
    """Change a field of the last entry in the central directory."""
    return lambda content: struct.pack_into(form, content, content.rindex(b"PK\x01\x02") + offset, value)


def test_files_are_there_inside_the_context_and_the_folder_is_gone_after_it(tmp_path: Path, scratch: Path) -> None:
    path = write(tmp_path / "study 1.ZIP", "a/b/c.dcm", "windows\\d.dcm", "__MACOSX/a/._b", "empty/")
    assert is_zip(path)
    with unpacked(path, option="--input") as folder:
        assert folder.name == "study 1"
        assert list_all(folder) == ["a", "a/b", "a/b/c.dcm", "good", "good/first.txt", "windows", "windows/d.dcm"]
        assert (folder / "a/b/c.dcm").read_bytes() == b"abc"
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700, "nobody else reads scans of patients"
    assert list_all(scratch) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_the_folder_is_removed_after_an_error_or_a_stop(tmp_path: Path, scratch: Path, error: Any) -> None:
    path = write(tmp_path / "a.zip")
    with pytest.raises(error), unpacked(path, option="--input") as folder:
        assert folder.is_dir()
        raise error
    assert list_all(scratch) == []


OUTSIDE = "a name outside its folder"
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a parent": (lambda path: write(path, entry("../evil.txt")), OUTSIDE),
    "a parent further down": (lambda path: write(path, entry("a/b/../../../evil.txt")), OUTSIDE),
    "a parent of Windows": (lambda path: write(path, entry("..\\evil.txt")), OUTSIDE),
    "an absolute path": (lambda path: write(path, entry("/tmp/evil.txt")), OUTSIDE),
    "a drive": (lambda path: write(path, entry("C:\\evil.txt")), OUTSIDE),
    "a link": (lambda path: write(path, entry("link", mode=stat.S_IFLNK | 0o777), content=b"/etc"), "a link"),
    "a link of a folder": (lambda path: write(path, entry("link/", mode=stat.S_IFLNK | 0o777)), "a link"),
    "a device": (lambda path: write(path, entry("null", mode=stat.S_IFCHR | 0o666)), "a device or pipe"),
    "a pipe": (lambda path: write(path, entry("pipe", mode=stat.S_IFIFO | 0o666)), "a device or pipe"),
    "a file and a folder": (lambda path: write(path, "a", "a/b"), "a file that is also a folder: 'a/b'"),
    "one name written in two ways": (lambda path: write(path, "a/b", entry("a//b")), "an entry twice"),
    "an escape sequence": (lambda path: write(path, entry("a\x1b[31m")), "a name that is not valid"),
    "no name": (lambda path: write(path, entry("./")), "a name that is not valid"),
    "bzip2": (lambda path: write(path, entry("a", compress_type=zipfile.ZIP_BZIP2)), "an unknown compression"),
    "an encrypted entry": (
        lambda path: change(write(path, "a"), set_central(8, "<H", 1)),
        "an encrypted entry: 'a'",
    ),
    "a wrong checksum": (lambda path: change(write(path, "a"), set_central(16, "<L", 7)), "damaged"),
    "more bytes than declared": (
        lambda path: change(write(path, "a", content=bytes(5000)), set_central(24, "<L", 10)),
        "damaged",
    ),
    "fewer bytes than declared": (
        lambda path: change(write(path, "a", content=bytes(5000)), set_central(24, "<L", 6000)),
        "damaged",
    ),
    "a declared terabyte": (
        lambda path: change(write(path, "a"), set_central(24, "<L", 2**32 - 2)),
        r"entries of 4\.0 GiB in 0\.0 MiB",
    ),
    "a cut file": (lambda path: path.write_bytes(write(path, "a").read_bytes()[:-30]), "damaged"),
    "no zip at all": (lambda path: path.write_bytes(b"text"), "damaged"),
    "an empty file": (lambda path: path.write_bytes(b""), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_zip_is_refused_and_nothing_is_left(tmp_path: Path, scratch: Path, kind: str) -> None:
    make, match = BAD[kind]
    make(tmp_path / "bad.zip")
    before = list_all(tmp_path)
    with pytest.raises(UsageError, match=match) as error, unpacked(tmp_path / "bad.zip", option="--input"):
        pass
    assert error.value.key == "--input"
    assert "bad.zip" in str(error.value.got)
    assert list_all(tmp_path) == before
    assert not Path("/tmp/evil.txt").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")  # of the writer
def test_a_name_twice_is_refused(tmp_path: Path, refused: Any) -> None:
    write(tmp_path / "a.zip", "a", "a")
    with refused("--input"), unpacked(tmp_path / "a.zip", option="--input"):
        pass


def test_every_entry_is_checked_before_one_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(zip_files, "_write_entry", lambda *args: written.append(str(args)))
    with pytest.raises(UsageError), unpacked(write(tmp_path / "a.zip", entry("../b")), option="--input"):
        pass
    assert written == []


def test_content_over_the_limit_is_refused_by_its_declared_size(tmp_path: Path, refused: Any) -> None:
    path = write(tmp_path / "a.zip", content=bytes(10**6))
    write(path, "zeros", content=bytes(10**6))
    with refused("--input"), unpacked(path, option="--input", max_bytes=10**6):
        pass
    with unpacked(path, option="--input", max_bytes=10**6 + 5) as folder:
        assert (folder / "zeros").stat().st_size == 10**6, "a small file of zeros is no bomb"


def test_overlapping_entries_count_each_by_its_size(tmp_path: Path, refused: Any) -> None:
    """Entries that share their packed bytes make a bomb of a small file."""
    path = write(tmp_path / "a.zip", "zeros", content=bytes(10**6))
    content = path.read_bytes()
    start, end = content.rindex(b"PK\x01\x02"), content.rindex(b"PK\x05\x06")
    record, tail = content[start:end], bytearray(content[end:])
    copies = b"".join(record[:46] + b"zero%c" % (65 + number) + record[51:] for number in range(20))
    struct.pack_into("<HHL", tail, 8, 22, 22, end - content.index(b"PK\x01\x02") + len(copies))
    path.write_bytes(content[:end] + copies + bytes(tail))
    with refused("--input"), unpacked(path, option="--input", max_bytes=10**7):
        pass


@pytest.mark.parametrize("name", [".zip", "...zip"])
def test_a_zip_without_a_name_is_refused(tmp_path: Path, name: str, refused: Any) -> None:
    write(tmp_path / name)
    with refused("--input"), unpacked(tmp_path / name, option="--input"):
        pass


def test_no_place_for_temporary_files_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    path = write(tmp_path / "a.zip")
    match = "the temporary folder of a zip file could not be written"
    with pytest.raises(UumambaError, match=match), unpacked(path, option="--input"):
        pass


def test_a_folder_or_pipe_named_zip_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.zip").mkdir()
    os.mkfifo(tmp_path / "b.zip")
    assert not is_zip(tmp_path / "a.zip")
    assert not is_zip(tmp_path / "b.zip")


def test_a_full_temporary_folder_is_named_with_the_variable_that_chooses_it(tmp_path: Path, scratch: Path) -> None:
    path = write(tmp_path / "a.zip", "big.nii", content=os.urandom(20_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with (
            pytest.raises(OutputError, match=r"big\.nii could not be written: .*TMPDIR"),
            unpacked(path, option="--input"),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list_all(scratch) == []
