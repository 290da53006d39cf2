"""Information sheet of M&Ms: vendor, diagnosis and labelled frames of each patient."""

import re
from collections.abc import Mapping
from pathlib import Path

from data_prep.acdc import PHASES
from data_prep.spreadsheet import read_rows
from uumamba.runtime.errors import CaseError, UsageError, require, require_case

REQUIRED = ("External code", "Vendor", *PHASES)
SheetRow = Mapping[str, str]  # cells of a patient by column
VENDORS: Mapping[str, str] = {"A": "Siemens", "B": "Philips", "C": "GE", "D": "Canon"}

_COPY = "copy 211230_M&Ms_Dataset_information_diagnosis_opendataset.csv of the M&Ms download into the folder"
_FRAME = re.compile(r"(?P<number>\d{1,4})(\.0+)?")


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

    ``Vendor`` is a letter, ``Pathology`` a diagnosis such as ``HCM`` (empty if the sheet has no such column), ``ED``
    and ``ES`` are numbers of frames, from 0.

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
            found[code] = {"Pathology": ""} | cells
    require(found, str(sheet), got="no patient", expected="external codes in the column External code", fix=_COPY)
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
    require_case(row["Vendor"] in VENDORS, patient_id, "Vendor", got=row["Vendor"], expected="A, B, C or D", fix=fix)
    numbers: dict[str, int] = {}
    for phase in PHASES:
        match = _FRAME.fullmatch(row[phase])
        if match is None or int(match["number"]) in numbers.values():
            expected = "an integer of at least 0" if match is None else "a frame different from ED"
            fix = f"write the number of the {phase} frame, counted from 0, into the sheet"
            raise CaseError(patient_id, phase, got=row[phase], expected=expected, fix=fix)
        numbers[phase] = int(match["number"])
    return numbers
