"""Reading of stored JSON files, with a check of every key."""

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from uumamba.runtime.errors import UsageError
from uumamba.runtime.files import find_read_fix
from uumamba.runtime.text_files import LimitError, read_limited

Stored = TypeVar("Stored")


def read_json(path: Path, kind: TypeAdapter[Stored], *, expected: str, fix: str) -> Stored:
    """Read a JSON file and check its types.

    Args:
        path: the file.
        kind: adapter of the stored class.
        expected: description of the file, for the error about a file that cannot be opened.
        fix: fix of every error.

    Raises:
        UsageError: the file is missing or damaged, or a value has another type. The key is the path and the location in
            the file, such as ``dataset.json: training.0.fold``.
    """
    try:
        return kind.validate_json(read_limited(path))
    except OSError as error:
        found_fix = find_read_fix(error, otherwise=fix)
        raise UsageError(str(path), got=error.strerror, expected=expected, fix=found_fix) from None
    except LimitError as error:
        raise UsageError(str(path), got=error, expected=expected, fix=fix) from None
    except ValidationError as error:
        first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    found, valid = first["input"], first["msg"].removeprefix("Input should be ")
    if first["type"] == "missing":
        found, valid = "nothing", "a value"
    elif first["type"] == "json_invalid":
        found, valid = first["msg"], expected
    elif not isinstance(found, str | int | float | None):
        found = f"a {type(found).__name__}"
    raise UsageError(f"{path}: {place}" if place else str(path), got=found, expected=valid, fix=fix)
