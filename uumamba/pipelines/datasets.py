"""Which reader of ``data_prep`` serves a data set's name."""

from pathlib import Path

from uumamba.data.case import Manifest
from uumamba.errors import CaseError, UsageError


def read_dataset(name: str, raw: Path | str) -> tuple[Manifest, list[CaseError]]:
    """Read a raw folder in a public data set's layout.

    Returns:
        The manifest of the whole cases, and an error for each case that is not.

    Raises:
        UsageError: the folder is missing or holds no case of that layout.
    """
    raw = Path(raw)
    if not raw.is_dir():
        found = "is a file" if raw.exists() else "does not exist"
        raise UsageError(f"The raw folder {raw} {found}; give the folder that holds the {name} data set.")
    if name == "acdc":
        from data_prep.acdc import read_acdc

        return read_acdc(raw)
    raise UsageError(f"There is no reader for the data set {name!r}; known are acdc.")
