"""How fast a folder's disk is written and read."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from uumamba.runtime.errors import UsageError

MOST_MB = 64
LONGEST_S = 2.0
_MB = 10**6


@dataclass(frozen=True)
class DiskRate:
    """Rates in millions of bytes a second.

    Attributes:
        write_mb_per_s: synchronised to the disk.
        read_mb_per_s: after the system was asked to forget the file; where it does not, as in a folder that lies in
            memory, this is memory's rate.
    """

    write_mb_per_s: float
    read_mb_per_s: float


def measure_disk(folder: Path | str) -> DiskRate:
    """Write a file of at most 64 MB, or as much as two seconds take, read it back and remove it.

    Raises:
        UsageError: the folder is missing, full, or may not be written to.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"--folder {folder} is no folder; name one that exists.")
    block = os.urandom(_MB)  # zeros would be compressed away by some file systems
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".uumamba-doctor-", buffering=0) as file:
            begin, written = perf_counter(), 0
            while written < MOST_MB and perf_counter() - begin < LONGEST_S:
                file.write(block)
                written += 1
                if written % 16 == 0:
                    os.fsync(file.fileno())  # lest all of it waits in memory until the time is up
            os.fsync(file.fileno())
            write_s = perf_counter() - begin
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            begin = perf_counter()
            while file.read(_MB):
                pass
            read_s = perf_counter() - begin
    except OSError as error:
        raise UsageError(f"--folder {folder} cannot be written to ({error.strerror}); name another.") from None
    return DiskRate(written / write_s, written / read_s)
