"""The information sheet of M&Ms: vendor, centre, diagnosis and the two labelled frames of each patient."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.spreadsheet import read_rows
from uumamba.runtime.errors import CaseError, UsageError

PHASES = ("ED", "ES")
REQUIRED = ("External code", "Vendor", *PHASES)
VENDORS: Mapping[str, str] = {"A": "Siemens", "B": "Philips", "C": "GE", "D": "Canon"}

_FRAME = re.compile(r"(?P<number>\d{1,4})(\.0+)?")


@dataclass(frozen=True)
class SheetRow:
    """What the sheet says of a patient, as text; empty where it has no such column.

    Attributes:
        vendor: the letter A to D.
        centre: the hospital's number.
        pathology: the diagnosis, such as ``NOR`` or ``HCM``.
        frames: numbers of the ED and the ES frame, from 0.
    """

    vendor: str
    centre: str
    pathology: str
    frames: Mapping[str, str]

    def frame_numbers(self, patient_id: str) -> dict[str, int]:
        """The frame of each phase, counted from 0.

        Raises:
            CaseError: one is no whole number, or both are the same.
        """
        found = {phase: _frame_number(patient_id, phase, self.frames[phase]) for phase in PHASES}
        if len(set(found.values())) < len(PHASES):
            problem = f"the information sheet gives frame {found['ED']} as both ED and ES"
            raise CaseError(patient_id, problem, "correct the frame numbers in the sheet")
        return found


def find_sheet(folders: Sequence[Path]) -> Path:
    """The information sheet: a CSV file of the first folder that has one, the last by name where there are several.

    Raises:
        UsageError: none of them holds one, or none that can be read.
    """
    unreadable: list[UsageError] = []
    for folder in folders:
        for path in sorted(folder.glob("*.csv"), reverse=True):
            try:
                if _is_sheet(path):
                    return path
            except UsageError as error:
                unreadable.append(error)
    if unreadable:
        raise unreadable[0]
    raise UsageError(
        f"No information sheet was found in {folders[0]}; put "
        "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv of the M&Ms download there, or a CSV file with "
        f"the columns {', '.join(REQUIRED)}."
    )


def read_sheet(sheet: Path) -> dict[str, SheetRow]:
    """Each patient's row, by external code.

    Raises:
        UsageError: the sheet cannot be read, lacks a column, or lists no patient, or one twice.
    """
    heading, *rows = read_rows(sheet, sheet="") or [[]]
    column = {name.strip(): at for at, name in enumerate(heading) if name.strip()}
    if missing := [name for name in REQUIRED if name not in column]:
        raise UsageError(f"{sheet} has no column {', '.join(missing)}; restore it from the M&Ms download.")
    found: dict[str, SheetRow] = {}
    for row in rows:
        cells = {name: row[at].strip() if at < len(row) else "" for name, at in column.items()}
        code = cells["External code"]
        if code in found:
            raise UsageError(f"{sheet} lists the patient {code} twice; delete one of the rows.")
        if code:
            frames = {phase: cells[phase] for phase in PHASES}
            found[code] = SheetRow(cells["Vendor"], cells.get("Centre", ""), cells.get("Pathology", ""), frames)
    if not found:
        raise UsageError(f"{sheet} lists no patient; restore it from the M&Ms download.")
    return found


def checked_row(patient_id: str, row: SheetRow | None) -> SheetRow:
    """The row, if there is one and it says whose scanner it was.

    Raises:
        CaseError: the sheet does not list the patient, or gives no vendor or none of M&Ms.
    """
    if row is None:
        cure = f"add a row for {patient_id}, or move its folder away"
        raise CaseError(patient_id, "the information sheet does not list it", cure)
    if row.vendor not in VENDORS:
        found = f"the Vendor {row.vendor!r}" if row.vendor else "no Vendor"
        raise CaseError(patient_id, f"the information sheet gives {found}", "write its letter, A to D, into the sheet")
    return row


def _is_sheet(path: Path) -> bool:
    """Whether the first row names what every sheet of M&Ms names; another table may lie beside it.

    Raises:
        UsageError: the file cannot be read.
    """
    rows = read_rows(path, sheet="")
    return bool(rows) and "External code" in [cell.strip() for cell in rows[0]]


def _frame_number(patient_id: str, phase: str, text: str) -> int:
    match = _FRAME.fullmatch(text)
    if match is None:
        problem = f"the information sheet gives {phase} as {text!r}, not a whole number from 0 on"
        raise CaseError(patient_id, problem, f"write the number of the {phase} frame, counted from 0, into the sheet")
    return int(match["number"])
