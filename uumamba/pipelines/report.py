"""One offline HTML from what lies beside a ``scores.csv``: predictions, manifest, training rows, baselines."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uumamba.data.case import MANIFEST_NAME, Manifest
from uumamba.data.scan import read_image, read_label
from uumamba.evaluation.overlays import OverlayCase, pick_cases
from uumamba.evaluation.report import Overlay, render_report
from uumamba.evaluation.scores import SCORES_NAME, TREES_NAME, ScoreRow, read_scores
from uumamba.pipelines.failures import FAILURES_NAME
from uumamba.pipelines.label_maps import find_predictions
from uumamba.pipelines.run_layout import fold_folders
from uumamba.pipelines.run_summary import spread_of, validated_trainings
from uumamba.runtime.errors import CaseError, UsageError
from uumamba.runtime.files import write_text
from uumamba.training.run_log import RunLog

HTML_SUFFIXES = (".html", ".htm")


def report(run_or_scores: Path | str, out: Path | str) -> Path:
    """Write the report of a run, or of its scores alone.

    Beside ``scores.csv`` it looks for ``trees.csv`` (several vessels as one), ``prepared/dataset.json`` and
    ``predictions/`` (overlays), ``metrics.jsonl`` of each fold and seed in ``run/`` (training curves, and how their
    Dice spreads), ``baselines.json`` and ``failures.json``. What is not there is left out, and the report says so.

    Args:
        run_or_scores: the output folder of ``uumamba run`` or ``uumamba evaluate``, or a ``scores.csv``.
        out: the HTML file.

    Returns:
        The file.

    Raises:
        UsageError: ``out`` does not end as HTML files do, there are no scores, or a file beside them is not what its
            name says.
    """
    out = Path(out)
    if out.suffix.lower() not in HTML_SUFFIXES:
        raise UsageError(f"The report is HTML, so {out} cannot be its name; end it in .html.")
    scores = Path(run_or_scores)
    scores = scores / SCORES_NAME if scores.is_dir() else scores
    rows, folder = read_scores(scores), scores.parent
    manifest = _manifest_of(folder)
    overlays, notes = _overlays(folder, manifest, rows)
    training = _training_rows(folder)
    if not training:
        notes.append("There is no training curve because no run/fold_*/metrics.jsonl lies beside the scores.")
    html = render_report(
        rows,
        trees=read_scores(folder / TREES_NAME) if (folder / TREES_NAME).is_file() else (),
        title=f"{manifest.name}: segmentation report" if manifest else "Segmentation report",
        structures=manifest.structures if manifest else None,
        overlays=overlays,
        training=training,
        spreads=spread_of(validated_trainings(folder / "run")),
        baselines=_read_json(folder / "baselines.json", dict),
        failures=_read_json(folder / FAILURES_NAME, list),
        notes=notes + _origin(manifest),
    )
    write_text(out, html)
    return out


def _manifest_of(folder: Path) -> Manifest | None:
    path = folder / "prepared" / MANIFEST_NAME
    return Manifest.read(path) if path.is_file() else None


def _origin(manifest: Manifest | None) -> list[str]:
    if manifest is None:
        return []
    said = (("Data", manifest.reference), ("Licence of the data", manifest.licence))
    return [f"{what}: {text}." for what, text in said if text]


def _overlays(folder: Path, manifest: Manifest | None, rows: Sequence[ScoreRow]) -> tuple[list[Overlay], list[str]]:
    """The cases to draw, and a sentence for each that cannot be drawn."""
    predictions = folder / "predictions"
    if manifest is None or not predictions.is_dir():
        return [], [
            "There are no overlays because prepared/dataset.json and predictions/ do not both lie beside the scores."
        ]
    found = find_predictions(predictions)
    drawn, notes = [], []
    for role, case_id in pick_cases(rows).items():
        try:
            drawn.append(Overlay(role, _load_case(manifest, found, case_id)))
        except (CaseError, UsageError) as error:
            notes.append(f"The {role} case is not drawn. {error}")
    return drawn, notes


def _load_case(manifest: Manifest, found: Mapping[str, Path], case_id: str) -> OverlayCase:
    case = manifest.by_id(case_id)
    if case.label is None or case_id not in found:
        what = "label" if case.label is None else "prediction"
        raise CaseError(case_id, f"its {what} is not there", "make the scores and the report from one run")
    image = read_image(case.image, case_id=case_id)
    label = read_label(case.label, structures=manifest.structures, case_id=case_id)
    prediction = read_label(found[case_id], structures=manifest.structures, case_id=case_id)
    if not image.array.shape == label.array.shape == prediction.array.shape:
        raise CaseError(case_id, "image, label and prediction differ in shape", "predict the case anew")
    return OverlayCase(case_id, image.array, prediction.array, label.array, image.affine, image.spacing_mm)


def _training_rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    found = fold_folders(folder / "run")
    return {each.title: rows for each in found if (rows := RunLog(each.path / "metrics.jsonl").rows())}


def _read_json(path: Path, kind: type[Any]) -> Any:
    if not path.is_file():
        return kind()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error}); remove it or write it anew.") from None
    if not isinstance(value, kind):
        raise UsageError(f"{path} holds {type(value).__name__} where a {kind.__name__} belongs; write it anew.")
    return value
