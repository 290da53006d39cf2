"""From label maps to scores, a summary, the clinical table and a report: arrays and millimetres, no scan files."""

from uumamba.evaluation.clinical import PatientIndices, patient_table, why_no_patient_table, write_patients
from uumamba.evaluation.scores import EvaluationPair, ScoreRow, Scores, evaluate, read_scores, write_scores
from uumamba.evaluation.summary import Summary, summarise, write_summary

__all__ = [
    "EvaluationPair",
    "PatientIndices",
    "ScoreRow",
    "Scores",
    "Summary",
    "evaluate",
    "patient_table",
    "read_scores",
    "summarise",
    "why_no_patient_table",
    "write_patients",
    "write_scores",
    "write_summary",
]
