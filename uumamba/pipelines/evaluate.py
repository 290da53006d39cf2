"""From predictions and labels to ``scores.csv``, ``summary.json``, ``patients.csv`` and a table on the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from uumamba.data.case import Case, Split
from uumamba.data.scan import Scan, check_same_grid, read_label
from uumamba.errors import CaseError, UumambaError
from uumamba.evaluation import (
    EvaluationPair,
    Scores,
    evaluate,
    patient_table,
    why_no_patient_table,
    write_patients,
    write_scores,
    write_summary,
)
from uumamba.evaluation.clinical import PATIENTS_NAME
from uumamba.evaluation.scores import SCORES_NAME
from uumamba.evaluation.summary import SUMMARY_NAME
from uumamba.evaluation.tables import ejection_fraction_table, summary_table
from uumamba.files import make_folder
from uumamba.pipelines.failures import record_failures
from uumamba.pipelines.label_maps import find_predictions, read_labelled_cases
from uumamba.training.stop_request import StopRequest

__all__ = ["MissingPredictions", "evaluate_folder", "print_summary", "summary_table"]


class MissingPredictions(UumambaError):
    """Some labelled cases have no prediction, and a score over the others would flatter."""

    def __init__(self, missing: Sequence[str], predictions: Path) -> None:
        super().__init__(
            f"{len(missing)} labelled cases have no prediction in {predictions}: {', '.join(missing)}; "
            "predict them, or choose the cases to score by --fold or --split."
        )
        self.missing = tuple(missing)


def evaluate_folder(
    predictions: Path | str,
    labels: Path | str,
    out: Path | str,
    *,
    fold: int | None = None,
    split: Split | None = None,
    structures: Mapping[str, int] | None = None,
    failed: Sequence[CaseError] = (),
) -> Scores:
    """Score every labelled case on its native grid.

    Args:
        predictions: a folder of ``<case_id>.nii.gz``, or a manifest, whose labels are then the predictions.
        labels: a folder of ``<case_id>.nii.gz``, a manifest, or ACDC's own folder. Cases without a label are not
            scored.
        out: gets ``scores.csv``, ``summary.json``, ``patients.csv`` where phases are known, and ``failures.json``
            where a case failed.
        fold: of a manifest's cases, only this fold's.
        split: of a manifest's cases, only this split's.
        structures: label value of each structure; None takes the manifest's, and without one every value that is
            found, as ``label_1`` and so on.
        failed: cases that failed on the way here: they need no prediction and join the failures.

    Returns:
        The scores, and an error for each case whose files could not be used. If none could, ``failures.json`` alone is
        written, and scores of an earlier call are removed.

    Raises:
        MissingPredictions: a labelled case has no prediction; nothing is written.
        UsageError: nothing to score is found.
        StoppedOnRequest: a signal asked for it.
    """
    predictions, out = Path(predictions), Path(out)
    manifest, incomplete = read_labelled_cases(Path(labels), fold=fold, split=split)
    found = find_predictions(predictions)
    known = {error.case_id for error in failed}
    cases = [case for case in manifest.cases if case.case_id not in known]
    missing = [case.case_id for case in cases if case.case_id not in found]
    if missing:
        raise MissingPredictions(missing, predictions)
    out = make_folder(out)
    failures = [*failed, *incomplete]
    with StopRequest() as stop:
        structures = structures or manifest.structures or _structures_found(cases, found)
        scores = evaluate(_pairs(cases, found, structures, failures, stop), structures=structures)
    scores = replace(scores, failures=tuple(failures))
    _write(out, scores)
    return scores


def print_summary(scores: Scores) -> None:
    """Print the summary by structure and phase, and the ejection fractions by group where they are known."""
    console = Console()
    if not scores.rows:
        console.print("No case could be scored.")
        return
    console.print(summary_table(scores.rows))
    fractions = ejection_fraction_table(patient_table(scores.rows))
    if fractions is not None:
        console.print(fractions)
    reason = why_no_patient_table(scores.rows)
    if reason:
        console.print(reason)


def _pairs(
    cases: Sequence[Case],
    found: Mapping[str, Path],
    structures: Mapping[str, int],
    failures: list[CaseError],
    stop: StopRequest,
) -> Iterator[EvaluationPair]:
    """Read one pair at a time; a case that cannot be used goes to ``failures`` and the others go on."""
    for number, case in enumerate(cases):
        stop.follow(f"after scoring {number} of {len(cases)} cases; the same command scores them all")
        try:
            yield _read_pair(case, found[case.case_id], structures)
        except CaseError as error:
            failures.append(error)


def _read_pair(case: Case, path: Path, structures: Mapping[str, int]) -> EvaluationPair:
    if case.label is None:
        raise CaseError(case.case_id, "it has no label to score against", "list its label in the manifest")
    label = read_label(case.label, structures=structures, case_id=case.case_id)
    prediction = _read_prediction(case.case_id, path, label, structures)
    return EvaluationPair(
        case_id=case.case_id,
        patient_id=case.patient_id,
        prediction=prediction.array,
        label=label.array,
        spacing_mm=label.spacing_mm,
        phase=case.phase,
        group=case.group,
    )


def _read_prediction(case_id: str, path: Path, label: Scan, structures: Mapping[str, int]) -> Scan:
    """Read a prediction; an error says that it is the prediction that does not fit."""
    try:
        prediction = read_label(path, structures=structures, case_id=case_id)
    except CaseError as error:
        raise CaseError(case_id, f"the prediction {path.name} cannot be scored: {error.problem}", error.cure) from None
    shapes = label.array.shape, prediction.array.shape
    if shapes[0] != shapes[1]:
        found = f"its label has the shape {shapes[0]}, the prediction {path.name} {shapes[1]}"
        raise CaseError(case_id, found, "predict the scan that was labelled, on its own grid")
    try:
        check_same_grid(label, prediction, case_id=case_id)
    except CaseError as error:
        found = f"the prediction {path.name} does not lie on its label ({error.problem})"
        raise CaseError(case_id, found, "predict the scan that was labelled, on its own grid") from None
    return prediction


def _structures_found(cases: Sequence[Case], found: Mapping[str, Path]) -> dict[str, int]:
    """Every value of the labels, named after itself; a file that cannot be read is reported when it is scored."""
    import numpy as np

    anything = {f"label_{value}": value for value in range(1, 256)}
    values: set[int] = set()
    for case in cases:
        for path in filter(None, (case.label, found[case.case_id])):
            try:
                values |= set(np.unique(read_label(path, structures=anything, case_id=case.case_id).array).tolist())
            except CaseError:
                continue
    return {name: value for name, value in anything.items() if value in values}


def _write(out: Path, scores: Scores) -> None:
    record_failures(out, scores.failures)
    if not scores.rows:
        for name in (SCORES_NAME, SUMMARY_NAME, PATIENTS_NAME):
            (out / name).unlink(missing_ok=True)
        return
    write_scores(out / SCORES_NAME, scores.rows)
    write_summary(out / SUMMARY_NAME, scores.rows, failed=[error.case_id for error in scores.failures])
    patients = patient_table(scores.rows)
    if patients:
        write_patients(out / PATIENTS_NAME, patients)
    else:
        (out / PATIENTS_NAME).unlink(missing_ok=True)
