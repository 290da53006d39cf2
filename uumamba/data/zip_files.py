"""Zip files of scans, unpacked into a temporary folder with limits."""

import re
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.files import report_write_errors

MAX_UNPACKED_BYTES = 32 * 2**30
"""Largest content of a zip file."""
_MAX_ENTRIES = 200_000
_MAX_RATIO, _RATIO_FREE_BYTES = 200, 2**30  # deflate reaches 1000 for zeros; small masks of zeros are no bomb
_ENCRYPTED = 0x1 | 0x40
_CHUNK_BYTES = 2**20
_ELSEWHERE = "name a folder with more space in the environment variable TMPDIR"
_LEFT_OUT = "__MACOSX/"
_DRIVE = re.compile("[A-Za-z]:")


def is_zip(path: Path) -> bool:
    """Return whether a path is a file whose name ends in ``.zip``."""
    return path.name.lower().endswith(".zip") and path.is_file()


@contextmanager
def unpacked(path: Path, *, option: str, max_bytes: int = MAX_UNPACKED_BYTES) -> Iterator[Path]:
    """Unpack a zip file into a temporary folder of its name.

    The folder is removed afterwards. All entries are checked before one is written. The folder is made where
    :mod:`tempfile` makes them: in ``TMPDIR``.

    Args:
        path: the zip file.
        option: command-line option that gave it, for errors.
        max_bytes: largest content.

    Raises:
        UsageError: the file is damaged, encrypted or too large, or an entry leads outside, is a link or device, or is
            there twice.
        OutputError: the temporary folder cannot be written.
    """
    name = path.name[: -len(".zip")]
    require(name.strip("."), option, got=path, expected="a name before .zip")
    with report_write_errors("the temporary folder of a zip file", elsewhere=_ELSEWHERE):
        root = Path(tempfile.mkdtemp(prefix="uumamba-"))
    try:
        folder = root / name
        with report_write_errors(folder, elsewhere=_ELSEWHERE):
            folder.mkdir()
        _unpack(path, folder, option, max_bytes)
        yield folder
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _unpack(path: Path, folder: Path, option: str, max_bytes: int) -> None:
    try:
        with ZipFile(path) as archive:
            targets = _check_entries(archive, path, option, max_bytes)
            for name, entry in targets.items():
                _write_entry(archive, entry, folder / name)
    except UsageError:  # a ValueError, too
        raise
    except (BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:  # all of them by zipfile
        raise UsageError(
            option, got=f"{path}, damaged ({error})", expected="a whole zip file", fix="copy or make the file again"
        ) from None


def _check_entries(archive: ZipFile, path: Path, option: str, max_bytes: int) -> dict[PurePosixPath, ZipInfo]:
    """Return the files to write by their relative names."""
    entries = [entry for entry in archive.infolist() if not entry.filename.startswith(_LEFT_OUT)]
    declared, packed = sum(entry.file_size for entry in entries), path.stat().st_size
    is_bomb = declared > _RATIO_FREE_BYTES and declared > _MAX_RATIO * packed
    require(
        len(entries) <= _MAX_ENTRIES and declared <= max_bytes and not is_bomb,
        option,
        got=f"{path} with {len(entries)} entries of {declared / 2**30:.1f} GiB in {packed / 2**20:.1f} MiB",
        expected=f"at most {_MAX_ENTRIES} entries of {max_bytes / 2**30:g} GiB, {_MAX_RATIO} times the zip file's size",
        fix="unpack the file yourself if you trust it, and give the folder",
    )
    targets: dict[PurePosixPath, ZipInfo] = {}
    for entry in entries:
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        fault = _find_fault(entry, name) or ("an entry twice" if name in targets else "")
        if not fault and not entry.filename.endswith(("/", "\\")):
            targets[name] = entry
        _require_sound(fault, entry, path, option)
    for name, entry in targets.items():
        is_folder = any(parent in targets for parent in name.parents)
        _require_sound("a file that is also a folder" if is_folder else "", entry, path, option)
    return targets


def _require_sound(fault: str, entry: ZipInfo, path: Path, option: str) -> None:
    require(
        not fault,
        option,
        got=f"{path} with {fault}: {entry.filename[:200]!r}",
        expected="plain files with relative names, stored or deflated",
        fix="make the zip file again, or give a folder",
    )


def _find_fault(entry: ZipInfo, name: PurePosixPath) -> str:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    is_outside = name.is_absolute() or ".." in name.parts or _DRIVE.match(str(name))
    if is_outside or not name.parts or not str(name).isprintable():
        return "a name outside its folder" if is_outside else "a name that is not valid"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a link" if kind == stat.S_IFLNK else "a device or pipe"
    if entry.flag_bits & _ENCRYPTED:
        return "an encrypted entry"
    return "" if entry.compress_type in (ZIP_STORED, ZIP_DEFLATED) else "an unknown compression"


def _write_entry(archive: ZipFile, entry: ZipInfo, target: Path) -> None:
    """Write one file.

    ``ZipFile`` reads no more than the declared size, and compares the checksum.

    Raises:
        BadZipFile: the checksum or the size is another one.
    """
    with archive.open(entry) as source, report_write_errors(target, elsewhere=_ELSEWHERE):
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as stream:
            while chunk := source.read(_CHUNK_BYTES):
                stream.write(chunk)
            size = stream.tell()
    if size != entry.file_size:
        raise BadZipFile(f"{size} of {entry.file_size} bytes of {entry.filename[:200]!r}")
