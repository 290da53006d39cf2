"""Write and read rate of a folder's disk."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.files import describe_path

MOST_MB = 64
LONGEST_S = 2.0
_MB = 10**6


@dataclass(frozen=True)
class DiskRate:
    """Rates in millions of bytes per second.

    Attributes:
        write_mb_per_s: writing, synchronised to the disk.
        read_mb_per_s: reading without the system's cache. In a folder in memory, where the cache cannot be bypassed,
            this is the rate of memory.
    """

    write_mb_per_s: float
    read_mb_per_s: float


def measure_disk(folder: Path | str) -> DiskRate:
    """Measure the rates of writing and reading one file.

    At most 64 MB are written, for at most two seconds. The file is removed.

    Raises:
        UsageError: the folder is missing, full, or may not be written to.
    """
    folder = Path(folder)
    require(folder.is_dir(), "--folder", got=describe_path(folder), expected="an existing folder")
    block = os.urandom(_MB)  # some file systems compress zeros
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".uumamba-doctor-", buffering=0) as file:
            begin, written = perf_counter(), 0
            while written < MOST_MB and perf_counter() - begin < LONGEST_S:
                file.write(block)
                written += 1
                if written % 16 == 0:
                    os.fsync(file.fileno())  # otherwise the data stay in memory until the time is over
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
        got = f"{folder} ({error.strerror})"
        raise UsageError("--folder", got=got, expected="a folder with write permission and space") from None
    return DiskRate(written / write_s, written / read_s)
