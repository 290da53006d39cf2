"""HTML report of scores and the files in their folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uumamba.data.case import MANIFEST_NAME, Manifest
from uumamba.data.scan import read_image, read_label
from uumamba.evaluation.html_report import Overlay, render_report, render_training_report
from uumamba.evaluation.overlays import OverlayCase, draw_overlay, pick_cases
from uumamba.evaluation.scores import SCORES_NAME, TREES_NAME, ScoreRow, read_scores
from uumamba.pipelines.datasets import FAILURE_KEYS, FAILURES_NAME, find_predictions
from uumamba.pipelines.run_layout import compute_spreads, fold_folders, validated_trainings
from uumamba.pipelines.sites.site_report import read_site_trainings
from uumamba.runtime.errors import CaseError, UsageError, require, require_case
from uumamba.runtime.files import whole_file, write_text
from uumamba.runtime.text_files import load_json
from uumamba.training.run_folder import RunLog


def report(run_or_scores: Path | str, out: Path | str) -> Path:
    """Write the report of a run or of a ``scores.csv``.

    In the folder of ``scores.csv`` these files are optional: ``trees.csv`` (several vessels as one),
    ``prepared/dataset.json`` and ``predictions/`` (overlays), ``metrics.jsonl`` of each fold and seed in ``run/``
    (training curves and the spread of their Dice), ``baselines.json`` and ``failures.json``. The report has a note on
    missing overlays and curves. A run that was only trained gets a page on its training.

    Args:
        run_or_scores: the output folder of ``uumamba run``, ``uumamba evaluate`` or ``uumamba train``, or a
            ``scores.csv``.
        out: the HTML file.

    Returns:
        The file.

    Raises:
        UsageError: ``out`` is no HTML file, there are no scores, or a file in their folder has another content.
    """
    out = Path(out)
    require(out.suffix.lower() in (".html", ".htm"), "--out", got=out, expected="a file name with the suffix .html")
    scores = Path(run_or_scores)
    if scores.is_dir():
        run, scores = scores, scores / SCORES_NAME
        if not scores.exists() and (training := read_training(run)):
            write_text(out, _render_training(run, training))
            return out
    rows, folder = read_scores(scores), scores.parent
    manifest_path, trees = folder / "prepared" / MANIFEST_NAME, folder / TREES_NAME
    manifest = Manifest.read(manifest_path) if manifest_path.is_file() else None
    overlays, notes = _overlays(folder, manifest, rows)
    training = read_training(folder / "run")
    if not training:
        notes.append("There is no training curve because the scores' folder has no run/fold_*/metrics.jsonl.")
    origin = (("Data", manifest.reference), ("Licence of the data", manifest.licence)) if manifest else ()
    notes += [f"{name}: {text}." for name, text in origin if text]
    if manifest is not None and manifest.ignore_value is not None:
        notes.append("Voxels that the label ignores are background in label and prediction before anything is scored.")
    failures = _read_json(folder / FAILURES_NAME, [])
    require(
        all(row.keys() >= {*FAILURE_KEYS} for row in failures),
        str(folder / FAILURES_NAME),
        got="rows of an earlier version",
        expected=f"rows with {', '.join(FAILURE_KEYS)}",
        fix="evaluate again",
    )
    html = render_report(
        rows,
        trees=read_scores(trees) if trees.is_file() else (),
        title=f"{manifest.name}: segmentation report" if manifest else "Segmentation report",
        structures=(manifest.regions or manifest.structures) if manifest else None,
        colours=manifest.colours if manifest else None,
        overlays=overlays,
        training=training,
        sites=read_site_trainings(folder / "run"),
        spreads=compute_spreads(validated_trainings(folder / "run")),
        baselines=_read_json(folder / "baselines.json", {}),
        failures=failures,
        notes=notes,
    )
    write_text(out, html)
    return out


def read_training(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the rows of each training of a run folder."""
    logs = {each.title: RunLog(each.path / "metrics.jsonl").rows() for each in fold_folders(run)}
    return {title: rows for title, rows in logs.items() if rows}


def _render_training(run: Path, training: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    return render_training_report(
        title=f"{run.absolute().name}: training report",
        training=training,
        sites=read_site_trainings(run),
        spreads=compute_spreads(validated_trainings(run)),
    )


def draw_typical_case(folder: Path | str, path: Path | str) -> Path:
    """Write outlines of the case with the median Dice, as PNG.

    Of fewer than three cases it is the worst, so that the picture does not flatter.

    Args:
        folder: the output folder of ``uumamba run``.
        path: the PNG file.

    Raises:
        CaseError: no case was scored, or a file of the case is missing.
    """
    folder, path = Path(folder), Path(path)
    manifest, picked = Manifest.read(folder / "prepared" / MANIFEST_NAME), pick_cases(read_scores(folder / SCORES_NAME))
    case_id = picked.get("median") or picked.get("worst") or picked.get("best", "")
    case = load_overlay_case(manifest, find_predictions(folder / "predictions"), case_id)
    png = draw_overlay(case, manifest.regions or manifest.structures, colours=manifest.colours)
    with whole_file(path) as unfinished:
        unfinished.write_bytes(png)
    return path


def _overlays(folder: Path, manifest: Manifest | None, rows: Sequence[ScoreRow]) -> tuple[list[Overlay], list[str]]:
    """Load the cases to draw; return a note for each missing one."""
    predictions = folder / "predictions"
    if manifest is None or not predictions.is_dir():
        return [], ["There are no overlays because the scores' folder has no prepared/dataset.json and predictions/."]
    found = find_predictions(predictions)
    drawn, notes = [], []
    for role, case_id in pick_cases(rows).items():
        try:
            drawn.append(Overlay(role, load_overlay_case(manifest, found, case_id)))
        except (CaseError, UsageError) as error:
            notes.append(f"The {role} case is not drawn. {error}")
    return drawn, notes


def load_overlay_case(manifest: Manifest, found: Mapping[str, Path], case_id: str) -> OverlayCase:
    """Read image, label and prediction of a scored case.

    Args:
        manifest: of the prepared folder.
        found: path of each prediction by case id.
        case_id: the case.

    Raises:
        CaseError: a file is missing, or the three have different shapes.
    """
    case = manifest.by_id(case_id)
    if case.label is None or case_id not in found:
        raise CaseError(
            case_id,
            "label" if case.label is None else "prediction",
            got="no file",
            expected="the scored file",
            fix="make the scores and the report from one run",
        )
    image = read_image(case.image, channels=manifest.channels, case_id=case_id)
    first = image.array if len(manifest.channels) == 1 else image.array[0]
    ignored = manifest.ignore_value
    label = read_label(case.label, structures=manifest.structures, case_id=case_id, ignore_value=ignored)
    prediction = read_label(found[case_id], structures=manifest.structures, case_id=case_id)
    shapes = (image.shape, label.array.shape, prediction.array.shape)
    require_case(
        len({*shapes}) == 1,
        case_id,
        "shape",
        got=shapes,
        expected="one shape of all three",
        fix="predict the case again",
    )
    known = label.array if ignored is None else np.where(label.array == ignored, 0, label.array)
    return OverlayCase(case_id, first, prediction.array, known, image.affine, image.spacing_mm)


def _read_json(path: Path, default: Any) -> Any:
    """Read an optional JSON file.

    Raises:
        UsageError: the file is damaged.
    """
    try:
        found = load_json(path) if path.exists() else default
        require(
            isinstance(found, type(default)),
            str(path),
            got=f"a {type(found).__name__}",
            expected=f"a {type(default).__name__}",
            fix="remove the file, or write it again",
        )
        return found
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(
            str(path), got=error, expected="a JSON file", fix="remove the file, or write it again"
        ) from None
