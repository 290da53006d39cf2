"""Scores, summaries, clinical indices and reports of label maps."""

from uumamba.evaluation.clinical import (
    PatientIndices,
    may_be_cardiac,
    patient_table,
    why_no_patient_table,
    write_patients,
)
from uumamba.evaluation.means import MeanDice, mean_dice, mean_dice_of
from uumamba.evaluation.scores import ScoreRow, Scores, read_scores, write_scores
from uumamba.evaluation.scoring import EvaluationPair, evaluate
from uumamba.evaluation.summary import Summary, summarise, write_summary

__all__ = [
    "EvaluationPair",
    "MeanDice",
    "PatientIndices",
    "ScoreRow",
    "Scores",
    "Summary",
    "evaluate",
    "may_be_cardiac",
    "mean_dice",
    "mean_dice_of",
    "patient_table",
    "read_scores",
    "summarise",
    "why_no_patient_table",
    "write_patients",
    "write_scores",
    "write_summary",
]


def __dir__() -> list[str]:
    return __all__
