"""Scores of label maps, in files and on the terminal."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from uumamba.data.case import Case, Split
from uumamba.data.label_scheme import MAX_LABEL_VALUE, LabelScheme
from uumamba.data.scan import Scan, check_same_grid, read_label
from uumamba.evaluation import (
    EvaluationPair,
    Scores,
    evaluate,
    may_be_cardiac,
    patient_table,
    summarise,
    why_no_patient_table,
    write_patients,
    write_scores,
    write_summary,
)
from uumamba.evaluation.clinical import PATIENTS_NAME
from uumamba.evaluation.scores import SCORES_NAME, TREES_NAME, ScoreRow
from uumamba.evaluation.summary import SUMMARY_NAME
from uumamba.evaluation.tables import (
    describe_sides,
    domain_table,
    ejection_fraction_table,
    summary_table,
    vessel_table,
)
from uumamba.pipelines.datasets import (
    FRAMES_NAME,
    find_predictions,
    load_readers,
    read_labelled_cases,
    record_failures,
)
from uumamba.runtime.case_boundary import attempt, fail_case_on_error
from uumamba.runtime.errors import CaseError, InputError, require, require_case
from uumamba.runtime.files import make_folder, remove_file
from uumamba.runtime.stop import StopRequest
from uumamba.runtime.terminal import make_console

UNNAMED = "label_"
"""Start of the names of label values without a name."""


class MissingPredictions(InputError):
    """Labelled cases without a prediction.

    The mean score of the other cases would be too high.
    """


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
        labels: a folder of ``<case_id>.nii.gz``, a manifest, or the raw folder of ACDC, ImageCAS, AortaSeg24 or M&Ms,
            or one in a layout of ``docs/reference/scan_folders.md`` except two globs. Cases without a label are not
            scored.
        out: gets ``scores.csv``, ``summary.json``, ``trees.csv`` for several vessels, ``patients.csv`` where phases are
            known, ``failures.json`` where a case failed, and ``frames/`` where the labels are the cines of M&Ms.
        fold: fold of the cases of a manifest, which is ``case_fold`` in :func:`predict`; None selects all.
        split: only this split's cases of a manifest.
        domains: only the cases of these domains of a manifest.
        case_ids: only these cases.
        structures: label value of each structure; None takes the manifest's regions or structures, and without a
            manifest every value in the files, as ``label_1`` and so on.
        vessels: structures that get clDice, Betti and length errors, or ``["all"]``; None takes the structures with the
            name of a vessel in any data set of the registry.
        failed: failures of earlier stages: these cases need no prediction and are added to the failures.

    Returns:
        The scores, and an error for each case with unusable files. If all are unusable, only ``failures.json`` is
        written, and scores of an earlier call are removed.

    Raises:
        MissingPredictions: a labelled case has no prediction; nothing except ``frames/`` is written.
        UsageError: no case has a label, or one of ``vessels`` is no structure.
        StoppedOnRequest: a stop was requested.
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
        raise MissingPredictions(
            "--predictions",
            got=f"{predictions} without {', '.join(missing)}",
            expected="a label map of every labelled case",
            fix="predict these cases, or select the cases to score by --fold or --split",
        )
    out = make_folder(out)
    failures = [*failed, *incomplete]
    with StopRequest() as stop:
        given = structures
        structures = given or manifest.structures or _structures_in_files(cases, found)
        targets = manifest.targets if manifest.regions and not given else LabelScheme(structures).targets
        score = partial(
            _score_case,
            found=found,
            structures=structures,
            targets=targets,
            ignore_value=manifest.ignore_value,
            vessel_structures=_vessels(vessels, targets),
            mirror_pairs=[pair for pair in manifest.extra.get("mirror_pairs", []) if {*pair} <= targets.keys()],
        )
        scored: list[Scores] = []
        for number, case in enumerate(cases):
            stop.raise_if_requested(f"after scoring {number} of {len(cases)} cases; run the same command to score all")
            outcome = attempt(score, case, case_id=case.case_id)
            if isinstance(outcome, CaseError):
                failures.append(outcome)
            else:
                scored.append(outcome)
    scores = Scores(
        tuple(row for each in scored for row in each.rows),
        trees=tuple(row for each in scored for row in each.trees),
        failures=tuple(failures),
    )
    _write(out, scores)
    if manifest.ignore_value is None:
        _warn_of_unpredicted(scores.rows)
    return scores


def print_summary(scores: Scores) -> None:
    """Print the scores' summary by structure and phase.

    Domains, vessels, swapped sides and ejection fractions are added where known.
    """
    console = make_console()
    if not scores.rows:
        console.print("No case could be scored.")
        return
    summary, patients = summarise(scores.rows, scores.trees), patient_table(scores.rows)
    vessels = vessel_table(summary)
    for part in (
        summary_table(scores.rows),
        domain_table(summary) if summary.domains else None,
        vessels,
        None if summary.sides is None else describe_sides(summary.sides),
        ejection_fraction_table(patients),
        why_no_patient_table(scores.rows) if vessels is None and may_be_cardiac(scores.rows) else None,
    ):
        if part:
            console.print(part)


def _warn_of_unpredicted(rows: Sequence[ScoreRow]) -> None:
    """Warn of unnamed label values that no prediction has.

    Without a manifest, ignored voxels look like a structure that is always missed, and lower the mean.
    """
    labelled = {row.structure for row in rows if row.label_volume_ml > 0}
    predicted = {row.structure for row in rows if row.volume_ml > 0}
    missed = sorted(name for name in labelled - predicted if name.startswith(UNNAMED))
    if missed and predicted:
        fix = "if it marks ignored voxels, give the prepared folder or a manifest as --labels"
        warnings.warn(f"--labels: no prediction has {', '.join(missed)}; {fix}.", stacklevel=3)


def _vessels(selected: Collection[str] | None, structures: Mapping[str, Any]) -> tuple[str, ...]:
    """List the structures scored as vessels, in the manifest's order."""
    if selected is None:
        selected = {name for reader in load_readers().values() for name in reader.vessels} & structures.keys()
    if set(selected) == {"all"}:
        return tuple(structures)
    unknown = sorted(set(selected) - structures.keys())
    require(not unknown, "--vessels", got=", ".join(unknown), expected=f"all, or any of {', '.join(structures)}")
    return tuple(name for name in structures if name in selected)


def _score_case(
    case: Case,
    *,
    found: Mapping[str, Path],
    structures: Mapping[str, int],
    targets: Mapping[str, Sequence[int]],
    ignore_value: int | None,
    **options: Any,
) -> Scores:
    with fail_case_on_error(case.case_id):
        pair = _read_pair(case, found[case.case_id], structures, ignore_value)
    return evaluate([pair], structures=targets, ignore_value=ignore_value, **options)


def _read_pair(case: Case, path: Path, structures: Mapping[str, int], ignore_value: int | None) -> EvaluationPair:
    assert case.label is not None, "only labelled cases are read"
    label = read_label(case.label, structures=structures, case_id=case.case_id, ignore_value=ignore_value)
    return EvaluationPair(
        case_id=case.case_id,
        patient_id=case.patient_id,
        prediction=_read_prediction(case.case_id, path, label, structures).array,
        label=label.array,
        spacing_mm=label.spacing_mm,
        phase=case.phase,
        group=case.group,
        domain=case.domain or None,
    )


def _read_prediction(case_id: str, path: Path, label: Scan, structures: Mapping[str, int]) -> Scan:
    """Read a prediction and check that its grid is the label's.

    Errors name the prediction file.
    """
    try:
        prediction = read_label(path, structures=structures, case_id=case_id)
    except CaseError as error:
        raise CaseError(
            case_id, f"prediction {path.name}: {error.key}", got=error.got, expected=error.expected, fix=error.fix
        ) from None
    require_case(
        prediction.array.shape == label.array.shape,
        case_id,
        f"shape of prediction {path.name}",
        got=prediction.array.shape,
        expected=f"the label's shape {label.array.shape}",
        fix="predict the labelled scan",
    )
    try:
        check_same_grid(label, prediction, case_id=case_id)
    except CaseError as error:
        raise CaseError(
            case_id,
            f"grid of prediction {path.name}",
            got=error.got,
            expected="at most half a voxel to the label's grid",
            fix="predict the labelled scan",
        ) from None
    return prediction


def _structures_in_files(cases: Sequence[Case], found: Mapping[str, Path]) -> dict[str, int]:
    """Collect the label values of all readable files.

    An unreadable file is reported when it is scored.
    """
    anything = {f"{UNNAMED}{value}": value for value in range(1, MAX_LABEL_VALUE + 1)}
    values: set[int] = set()
    for case in cases:
        for path in filter(None, (case.label, found[case.case_id])):
            read = partial(_read_values, structures=anything, case_id=case.case_id)
            found_values = attempt(read, path, case_id=case.case_id)
            values |= set() if isinstance(found_values, CaseError) else found_values
    return {name: value for name, value in anything.items() if value in values}


def _read_values(path: Path, *, structures: Mapping[str, int], case_id: str) -> set[int]:
    with fail_case_on_error(case_id):
        return set(np.unique(read_label(path, structures=structures, case_id=case_id).array).tolist())


def _write(out: Path, scores: Scores) -> None:
    """Write the scores' files and remove those of an earlier call."""
    record_failures(out, scores.failures)
    for name in (SCORES_NAME, TREES_NAME, SUMMARY_NAME, PATIENTS_NAME):
        remove_file(out / name)
    if not scores.rows:
        return
    failed = [error.case_id for error in scores.failures]
    write_scores(out / SCORES_NAME, scores.rows)
    write_summary(out / SUMMARY_NAME, scores.rows, trees=scores.trees, failed=failed)
    if scores.trees:
        write_scores(out / TREES_NAME, scores.trees)
    if patients := patient_table(scores.rows):
        write_patients(out / PATIENTS_NAME, patients)
