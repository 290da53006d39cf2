"""Key of a prepared case: a hash of its sources and recipe."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uumamba.data.case import Case
from uumamba.data.recipe import PreprocessRecipe
from uumamba.runtime.errors import CaseError
from uumamba.runtime.files import find_read_fix, open_regular

DETACHED_HEADERS = (".mhd", ".nhdr")
_DATA_FILE = re.compile(rb"^(?:ElementDataFile\s*=|data ?file:)\s*([^\r\n]+?)\s*$", re.MULTILINE)
_LONGEST_HEADER = 2**20
FORMAT_VERSION = 1  # increased whenever equal sources and recipe would give other arrays


def source_key(
    case: Case, *, recipe: PreprocessRecipe, structures: Mapping[str, int], ignore_value: int | None = None
) -> str:
    """Hash the sources of a prepared case.

    The hash depends on the bytes of the case's files, the recipe, the label values and the format version.

    Raises:
        CaseError: a file cannot be read.
    """
    return hash_case(
        case,
        {"format": FORMAT_VERSION, "recipe": recipe.to_json(), **list_values(structures, ignore_value)},
    )


def list_values(structures: Mapping[str, int], ignore_value: int | None) -> dict[str, Any]:
    """List the label values for a hash, as earlier versions did."""
    listed: dict[str, Any] = {"structures": dict(sorted(structures.items()))}
    return listed if ignore_value is None else listed | {"ignore_value": ignore_value}


def hash_case(case: Case, settings: Mapping[str, Any]) -> str:
    """Hash the bytes of a case's files, and settings.

    Raises:
        CaseError: a file cannot be read.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in case.files:
        digest.update(hash_path(path, case.case_id))
    return digest.hexdigest()


def hash_path(path: Path, case_id: str) -> bytes:
    """Hash the bytes of a scan's files.

    These are a file and the file of its voxels, if that is another one, or the files of a folder.

    Raises:
        CaseError: a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for file in _list_files(path):
            with open_regular(file) as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    except OSError as error:
        raise CaseError(
            case_id,
            "file",
            got=f"{error.filename} ({error.strerror})",
            expected="a readable file",
            fix=find_read_fix(error, otherwise="restore the file from its source"),
        ) from None
    return digest.digest()


def _list_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(child for child in path.rglob("*") if child.is_file())
    if path.suffix.lower() not in DETACHED_HEADERS:
        return [path]
    with open_regular(path) as stream:
        named = _DATA_FILE.search(stream.read(_LONGEST_HEADER))
    voxels = path.with_name(Path(named[1].decode(errors="replace")).name) if named else path
    return [path, voxels] if voxels != path and voxels.is_file() else [path]
