"""Tables of columns and keys in ``docs/reference/file_formats.md``."""

from collections.abc import Mapping
from dataclasses import fields

from benchmarks.markdown import make_table
from benchmarks.marked_text import fill_markers
from benchmarks.reference.option_meanings import read_section_meanings
from benchmarks.reference.sections import clean
from uumamba.data.case import Case
from uumamba.data.geometry import Geometry
from uumamba.evaluation.scores import COLUMNS, TREES_NAME, VESSEL_COLUMNS
from uumamba.evaluation.scoring import NSD_TOLERANCE_MM
from uumamba.pipelines.datasets import FAILURE_KEYS
from uumamba.pipelines.postprocessing import FoldChoice
from uumamba.pipelines.prediction.case_record import CaseRecord, Origin
from uumamba.runtime.errors import require
from uumamba.training.checkpoint import Checkpoint

SCORES: Mapping[str, str] = {
    "case_id": "Name of the case.",
    "patient_id": "The patient; without a manifest the case.",
    "phase": "ED, ES or empty.",
    "structure": f"Structure or region; in `{TREES_NAME}` the whole tree.",
    "dice": "Dice coefficient.",
    "hd95_mm": "95th percentile of the Hausdorff distance, in mm.",
    "nsd": f"Normalized surface Dice, with a tolerance of {NSD_TOLERANCE_MM:g} mm.",
    "volume_ml": "Volume of the prediction, in ml.",
    "label_volume_ml": "Volume of the label, in ml.",
    "assd_mm": "Average symmetric surface distance, in mm.",
    "group": "Diagnosis; empty if unknown.",
    "cl_dice": "Dice coefficient of centrelines (clDice); vessels only.",
    "betti0_error": "Absolute difference in the number of parts; vessels only.",
    "betti1_error": "Absolute difference in the number of tunnels; vessels only.",
    "betti2_error": "Absolute difference in the number of cavities; vessels only.",
    "length_error": "Centreline length, prediction minus label, as a share of the label's; vessels only.",
    "partner": "The same structure on the other side of the body; empty without one.",
    "partner_overlap_ml": "Overlap of the prediction with the partner's label, in ml.",
    "domain": "Centre, vendor or data set; empty if unknown.",
}
FAILURES: Mapping[str, str] = {
    "case_id": "Name of the case, or of a patient without any readable case.",
    "key": "File, option or property at fault.",
    "got": "What was found.",
    "expected": "What is valid.",
    "fix": "What to do; may be empty.",
}


def fill_columns(text: str) -> str:
    """Fill the tables between the page's markers.

    Raises:
        UsageError: a column has no meaning, or a marker is missing.
    """
    check_columns()
    tables: Mapping[str, Mapping[str, str]] = {
        "case": {key: text for key, text in read_section_meanings(Case).items() if key != "split"},
        "geometry": read_section_meanings(Geometry),
        "checkpoint": read_section_meanings(Checkpoint),
        "postprocess": read_section_meanings(FoldChoice),
        "record": read_section_meanings(CaseRecord),
        "origin": read_section_meanings(Origin),
        "scores": {column: SCORES[column] for column in COLUMNS},
        "failures": {key: FAILURES[key] for key in FAILURE_KEYS},
    }
    for name, meanings in tables.items():
        rows = [(f"`{key}`", clean(meaning)) for key, meaning in meanings.items()]
        text = fill_markers(text, name, f"\n{make_table(('name', 'meaning'), rows)}\n")
    return text


def check_columns() -> None:
    """Raise if a column or field has no meaning.

    Raises:
        UsageError: its class or table is documented in part.
    """
    for name, known, described in (
        ("scores.csv", COLUMNS, SCORES),
        ("failures.json", FAILURE_KEYS, FAILURES),
        *(
            (each.__name__, tuple(field.name for field in fields(each)), read_section_meanings(each))
            for each in (Case, Geometry, Checkpoint, FoldChoice, CaseRecord, Origin)
        ),
    ):
        missing = [key for key in known if not described.get(key)]
        require(not missing, name, got=f"no meaning of {', '.join(missing)}", expected="one for each column")
    require({*VESSEL_COLUMNS} <= SCORES.keys(), "scores.csv", got=VESSEL_COLUMNS, expected="the columns of vessels")
