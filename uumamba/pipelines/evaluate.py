"""From predictions and labels to tables of scores, cases and patients, a summary, and a table on the terminal."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

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
    domain_table,
    ejection_fraction_table,
    sentence_on_sides,
    summary_table,
    vessel_table,
)
from uumamba.pipelines.datasets import FRAMES_NAME
from uumamba.pipelines.failures import record_failures
from uumamba.pipelines.label_maps import find_predictions, read_labelled_cases
from uumamba.runtime.errors import CaseError, UsageError, UumambaError
from uumamba.runtime.files import make_folder
from uumamba.runtime.stop import StopRequest

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
        fold: of a manifest's cases, only this fold's.
        split: of a manifest's cases, only this split's.
        domains: of a manifest's cases, only those of these.
        case_ids: only these cases.
        structures: label value of each structure; None takes the manifest's, and without one every value that is
            found, as ``label_1`` and so on.
        vessels: structures that get clDice, Betti and length errors, or ``["all"]``; None takes those that bear a name
            of ImageCAS's or AortaSeg24's vessels.
        failed: cases that failed on the way here: they need no prediction and join the failures.

    Returns:
        The scores, and an error for each case whose files could not be used. If none could, ``failures.json`` alone is
        written, and scores of an earlier call are removed.

    Raises:
        MissingPredictions: a labelled case has no prediction; nothing but ``frames/`` is written.
        UsageError: nothing to score is found, or one of ``vessels`` is no structure.
        StoppedOnRequest: a signal asked for it.
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
        structures = structures or manifest.structures or _structures_found(cases, found)
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
    """Print the summary by structure and phase, and what is known of vessels, sides, and ejection fractions."""
    console = Console()
    if not scores.rows:
        console.print("No case could be scored.")
        return
    summary = summarise(scores.rows, scores.trees)
    console.print(summary_table(scores.rows))
    if summary.domains:
        console.print(domain_table(summary))
    vessels = vessel_table(summary)
    if vessels is not None:
        console.print(vessels)
    if summary.sides is not None:
        console.print(sentence_on_sides(summary.sides))
    fractions = ejection_fraction_table(patient_table(scores.rows))
    if fractions is not None:
        console.print(fractions)
    reason = why_no_patient_table(scores.rows)
    if reason and vessels is None:
        console.print(reason)


def _vessels(asked: Collection[str] | None, structures: Mapping[str, int]) -> tuple[str, ...]:
    """The structures that are scored as vessels, in the order of the structures."""
    if asked is None:
        return tuple(name for name in structures if name in _vessels_of_public_data())
    if set(asked) == {"all"}:
        return tuple(structures)
    unknown = sorted(set(asked) - structures.keys())
    if unknown:
        raise UsageError(
            f"{', '.join(unknown)}: there is no such vessel among the structures {', '.join(structures)}; name some of "
            "them, or all."
        )
    return tuple(name for name in structures if name in asked)


def _vessels_of_public_data() -> set[str]:
    from data_prep import aorta, imagecas

    return {*imagecas.STRUCTURES, *aorta.STRUCTURES}


def _mirror_pairs(manifest: Manifest, structures: Iterable[str]) -> list[tuple[str, str]]:
    """Structures that a left/right mirrored scan would have exchanged, as the manifest lists them."""
    listed = manifest.extra.get("mirror_pairs", [])
    try:
        pairs = [(str(right), str(left)) for right, left in listed]
    except (TypeError, ValueError):
        raise UsageError(
            f"The manifest of {manifest.name} gives {listed!r} as its mirror_pairs; write pairs of structures there."
        ) from None
    return [pair for pair in pairs if {*pair} <= {*structures}]


def _pairs(
    cases: Sequence[Case],
    found: Mapping[str, Path],
    structures: Mapping[str, int],
    failures: list[CaseError],
    stop: StopRequest,
) -> Iterator[EvaluationPair]:
    """Read one pair at a time; a case that cannot be used goes to ``failures`` and the others go on."""
    for number, case in enumerate(cases):
        stop.raise_if_requested(f"after scoring {number} of {len(cases)} cases; the same command scores them all")
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
        domain=case.domain or None,
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
        for name in (SCORES_NAME, TREES_NAME, SUMMARY_NAME, PATIENTS_NAME):
            (out / name).unlink(missing_ok=True)
        return
    failed = [error.case_id for error in scores.failures]
    write_scores(out / SCORES_NAME, scores.rows)
    write_summary(out / SUMMARY_NAME, scores.rows, trees=scores.trees, failed=failed)
    if scores.trees:
        write_scores(out / TREES_NAME, scores.trees)
    else:
        (out / TREES_NAME).unlink(missing_ok=True)
    patients = patient_table(scores.rows)
    if patients:
        write_patients(out / PATIENTS_NAME, patients)
    else:
        (out / PATIENTS_NAME).unlink(missing_ok=True)
