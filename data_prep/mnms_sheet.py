"""Information sheet of M&Ms: vendor, diagnosis and labelled frames of each patient."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_prep.acdc import PHASES
from data_prep.spreadsheet import read_rows
from uumamba.runtime.errors import CaseError, UsageError, require, require_case

REQUIRED = ("External code", "Vendor", *PHASES)
VENDORS: Mapping[str, str] = {"A": "Siemens", "B": "Philips", "C": "GE", "D": "Canon"}

_COPY = "copy 211230_M&Ms_Dataset_information_diagnosis_opendataset.csv of the M&Ms download into the folder"
_FRAME = re.compile(r"(?P<number>\d{1,4})(\.0+)?")


@dataclass(frozen=True)
class SheetRow:
    """Cells of one patient as text, empty where the column is missing.

    Attributes:
        vendor: the letter A to D.
        pathology: the diagnosis, such as ``NOR`` or ``HCM``.
        frames: numbers of the ED and the ES frame, from 0.
    """

    vendor: str
    pathology: str
    frames: Mapping[str, str]


def find_sheet(root: Path) -> Path:
    """Find the information sheet, a CSV file.

    It is searched in the folder of the parts, then in its parent. Of several sheets in a folder the last by name is
    taken; other tables and unreadable files are skipped.

    Raises:
        UsageError: neither folder holds a readable information sheet.
    """
    unreadable: list[UsageError] = []
    for path in (path for folder in (root, root.parent) for path in sorted(folder.glob("*.csv"), reverse=True)):
        try:
            rows = read_rows(path, sheet="")
        except UsageError as error:
            unreadable.append(error)
            continue
        if rows and REQUIRED[0] in (cell.strip() for cell in rows[0]):
            return path
    expected = f"a folder with a CSV file that has the columns {', '.join(REQUIRED)}"
    raise unreadable[0] if unreadable else UsageError("raw", got=root, expected=expected, fix=_COPY)


def read_sheet(sheet: Path) -> dict[str, SheetRow]:
    """Read each patient's row, by external code.

    Raises:
        UsageError: the sheet cannot be read, lacks a column, lists no patient, or lists a patient twice.
    """
    heading, *rows = read_rows(sheet, sheet="") or [[]]
    column = {name.strip(): at for at, name in enumerate(heading) if name.strip()}
    missing = [name for name in REQUIRED if name not in column]
    expected = "the columns of the M&Ms sheet"
    require(not missing, str(sheet), got=f"no column {', '.join(missing)}", expected=expected, fix=_COPY)
    found: dict[str, SheetRow] = {}
    for row in rows:
        cells = {name: row[at].strip() if at < len(row) else "" for name, at in column.items()}
        code = cells["External code"]
        require(code not in found, str(sheet), got=f"patient {code} twice", expected="one row for each patient")
        if code:
            frames = {phase: cells[phase] for phase in PHASES}
            found[code] = SheetRow(cells["Vendor"], cells.get("Pathology", ""), frames)
    expected = "external codes in the column External code"
    require(found, str(sheet), got="no patient", expected=expected, fix=_COPY)
    return found


def parse_frames(patient_id: str, row: SheetRow | None) -> dict[str, int]:
    """Check a patient's row and return the frame number of each phase.

    Raises:
        CaseError: the sheet does not list the patient, names no vendor of M&Ms, or gives no two frame numbers.
    """
    if row is None:
        fix = f"add a row for {patient_id}, or remove the patient's folder"
        raise CaseError(patient_id, "External code", got="no row", expected="a row in the information sheet", fix=fix)
    fix = "write the letter of the vendor into the sheet"
    require_case(row.vendor in VENDORS, patient_id, "Vendor", got=row.vendor, expected="A, B, C or D", fix=fix)
    numbers: dict[str, int] = {}
    for phase, text in row.frames.items():
        match = _FRAME.fullmatch(text)
        if match is None or int(match["number"]) in numbers.values():
            expected = "an integer of at least 0" if match is None else "a frame different from ED"
            fix = f"write the number of the {phase} frame, counted from 0, into the sheet"
            raise CaseError(patient_id, phase, got=text, expected=expected, fix=fix)
        numbers[phase] = int(match["number"])
    return numbers
