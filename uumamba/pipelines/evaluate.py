"""Scores of label maps: tables of cases and patients, a summary, and a table on the terminal."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from uumamba.data.case import Case, Manifest, Split
from uumamba.data.scan import Scan, check_same_grid, read_label
from uumamba.evaluation import (
    EvaluationPair,
    Scores,
    evaluate,
    patient_table,
    summarise,
    why_no_patient_table,
    write_patients,
    write_scores,
    write_summary,
)
from uumamba.evaluation.clinical import PATIENTS_NAME
from uumamba.evaluation.scores import SCORES_NAME, TREES_NAME
from uumamba.evaluation.summary import SUMMARY_NAME
from uumamba.evaluation.tables import (
    describe_sides,
    domain_table,
    ejection_fraction_table,
    summary_table,
    vessel_table,
)
from uumamba.pipelines.datasets import FRAMES_NAME, find_predictions, read_labelled_cases, record_failures
from uumamba.runtime.errors import CaseError, UumambaError, require
from uumamba.runtime.files import make_folder
from uumamba.runtime.stop import StopRequest

__all__ = ["MissingPredictions", "evaluate_folder", "print_summary", "summary_table"]


class MissingPredictions(UumambaError):
    """Labelled cases without a prediction; a score of the others alone would be too high."""

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
    domains: Collection[str] | None = None,
    case_ids: Collection[str] | None = None,
    structures: Mapping[str, int] | None = None,
    vessels: Collection[str] | None = None,
    failed: Sequence[CaseError] = (),
) -> Scores:
    """Score every labelled case on its native grid.

    Args:
        predictions: a folder of ``<case_id>.nii.gz``, or a manifest, whose labels are then the predictions.
        labels: a folder of ``<case_id>.nii.gz``, a manifest, or ACDC's, ImageCAS's, AortaSeg24's or M&Ms's own
            folder. Cases without a label are not scored.
        out: gets ``scores.csv``, ``summary.json``, ``trees.csv`` where there are several vessels, ``patients.csv``
            where phases are known, ``failures.json`` where a case failed, and ``frames/`` where the labels are M&Ms's
            whole cines.
        fold: fold of the cases of a manifest, which is ``case_fold`` in :func:`predict`; None selects all.
        split: of a manifest's cases, only this split's.
        domains: of a manifest's cases, only those of these domains.
        case_ids: only these cases.
        structures: label value of each structure; None takes the manifest's, and without a manifest every value in the
            files, as ``label_1`` and so on.
        vessels: structures that get clDice, Betti and length errors, or ``["all"]``; None takes those with a name of
            ImageCAS's or AortaSeg24's vessels.
        failed: cases that failed in earlier stages: they need no prediction and join the failures.

    Returns:
        The scores, and an error for each case with unusable files. If all are unusable, only ``failures.json`` is
        written, and scores of an earlier call are removed.

    Raises:
        MissingPredictions: a labelled case has no prediction; nothing but ``frames/`` is written.
        UsageError: there is nothing to score, or one of ``vessels`` is no structure.
        StoppedOnRequest: a signal requested it.
    """
    predictions, out = Path(predictions), Path(out)
    manifest, incomplete = read_labelled_cases(
        Path(labels), fold=fold, split=split, domains=domains, case_ids=case_ids, frames=out / FRAMES_NAME
    )
    found = find_predictions(predictions)
    known = {error.case_id for error in failed}
    cases = [case for case in manifest.cases if case.case_id not in known]
    missing = [case.case_id for case in cases if case.case_id not in found]
    if missing:
        raise MissingPredictions(missing, predictions)
    out = make_folder(out)
    failures = [*failed, *incomplete]
    with StopRequest() as stop:
        structures = structures or manifest.structures or _structures_in_files(cases, found)
        scores = evaluate(
            _pairs(cases, found, structures, failures, stop),
            structures=structures,
            vessel_structures=_vessels(vessels, structures),
            mirror_pairs=_mirror_pairs(manifest, structures),
        )
    scores = replace(scores, failures=tuple(failures))
    _write(out, scores)
    return scores


def print_summary(scores: Scores) -> None:
    """Print the summary by structure and phase, with vessels, sides, and ejection fractions where known."""
    console = Console()
    if not scores.rows:
        console.print("No case could be scored.")
        return
    summary, patients = summarise(scores.rows, scores.trees), patient_table(scores.rows)
    vessels = vessel_table(summary)
    parts = [
        summary_table(scores.rows),
        domain_table(summary) if summary.domains else None,
        vessels,
        None if summary.sides is None else describe_sides(summary.sides),
        ejection_fraction_table(patients),
        why_no_patient_table(scores.rows) if vessels is None else None,
    ]
    for part in parts:
        if part:
            console.print(part)


def _vessels(selected: Collection[str] | None, structures: Mapping[str, int]) -> tuple[str, ...]:
    """List the structures that are scored as vessels, in the order of the structures."""
    from data_prep import aorta, imagecas

    if selected is None:
        selected = {*imagecas.STRUCTURES, *aorta.STRUCTURES} & structures.keys()
    if set(selected) == {"all"}:
        return tuple(structures)
    unknown = sorted(set(selected) - structures.keys())
    require(not unknown, "--vessels", got=", ".join(unknown), expected=f"all, or some of {', '.join(structures)}")
    return tuple(name for name in structures if name in selected)


def _mirror_pairs(manifest: Manifest, structures: Iterable[str]) -> list[tuple[str, str]]:
    """List the manifest's pairs of structures that a left/right mirrored scan would have swapped."""
    pairs = [(right, left) for right, left in manifest.extra.get("mirror_pairs", [])]
    return [pair for pair in pairs if {*pair} <= {*structures}]


def _pairs(
    cases: Sequence[Case],
    found: Mapping[str, Path],
    structures: Mapping[str, int],
    failures: list[CaseError],
    stop: StopRequest,
) -> Iterator[EvaluationPair]:
    """Read one pair at a time; unusable cases join the failures."""
    for number, case in enumerate(cases):
        stop.raise_if_requested(f"after scoring {number} of {len(cases)} cases; run the same command to score them all")
        try:
            yield _read_pair(case, found[case.case_id], structures)
        except CaseError as error:
            failures.append(error)


def _read_pair(case: Case, path: Path, structures: Mapping[str, int]) -> EvaluationPair:
    assert case.label is not None, "only labelled cases are read"
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
        domain=case.domain or None,
    )


def _read_prediction(case_id: str, path: Path, label: Scan, structures: Mapping[str, int]) -> Scan:
    """Read a prediction; the key of an error is ``prediction``."""
    try:
        prediction = read_label(path, structures=structures, case_id=case_id)
    except CaseError as error:
        key = f"prediction {path.name}: {error.key}"
        raise CaseError(case_id, key, got=error.got, expected=error.expected, fix=error.fix) from None
    shapes, fix = (label.array.shape, prediction.array.shape), "predict the labelled scan, on its own grid"
    if shapes[0] != shapes[1]:
        expected = f"{shapes[0]} of the label"
        raise CaseError(case_id, f"shape of prediction {path.name}", got=shapes[1], expected=expected, fix=fix)
    try:
        check_same_grid(label, prediction, case_id=case_id)
    except CaseError as error:
        got = str(error).removeprefix(f"{case_id}: ").removesuffix(".")
        raise CaseError(
            case_id, f"grid of prediction {path.name}", got=got, expected="the grid of the label", fix=fix
        ) from None
    return prediction


def _structures_in_files(cases: Sequence[Case], found: Mapping[str, Path]) -> dict[str, int]:
    """Collect the label values of all files; an unreadable file is reported when it is scored."""
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
    """Write the files of the scores, and remove those of an earlier call."""
    record_failures(out, scores.failures)
    for name in (SCORES_NAME, TREES_NAME, SUMMARY_NAME, PATIENTS_NAME):
        (out / name).unlink(missing_ok=True)
    if not scores.rows:
        return
    failed = [error.case_id for error in scores.failures]
    write_scores(out / SCORES_NAME, scores.rows)
    write_summary(out / SUMMARY_NAME, scores.rows, trees=scores.trees, failed=failed)
    if scores.trees:
        write_scores(out / TREES_NAME, scores.trees)
    if patients := patient_table(scores.rows):
        write_patients(out / PATIENTS_NAME, patients)
