"""Page of all predicted cases of a folder, made from their records."""

import io
import re
from collections import Counter
from functools import partial
from pathlib import Path

from uumamba.pipelines.datasets import FAILURES_NAME
from uumamba.pipelines.models import CARD_NAME, SHIPPED, WEIGHTS_NAME, shipped_models
from uumamba.pipelines.prediction.case_record import CaseRecord, read_records
from uumamba.pipelines.prediction.finished_cases import hash_model
from uumamba.pipelines.prediction.parts import read_failures, write_for_all_parts
from uumamba.pipelines.prediction.previews import find_preview
from uumamba.pipelines.prediction.volume_tables import find_curve, find_indices
from uumamba.runtime.errors import require
from uumamba.runtime.files import make_folder, write_text

CARD_SECTIONS = ("Use", "Figures", "Limits", "Known failures", "Licence of the weights")
_SECTION = re.compile(r"^- \*\*(?P<name>[^*]+)\*\*: (?P<text>.*(?:\n  .*)*)", re.MULTILINE)


def check_page(path: Path | str) -> None:
    """Raise unless a page can be written, before anything is predicted.

    Raises:
        UsageError: the path is no HTML file, or its folder is not writable.
    """
    path = Path(path)
    require(
        path.suffix.lower() in (".html", ".htm") and not path.is_dir(),
        "--report",
        got=path,
        expected="a file name with the suffix .html",
    )
    make_folder(path.parent)


def write_page(out: Path, path: Path | str) -> None:
    """Write the page of all cases in ``out``, also of earlier calls."""
    write_for_all_parts(out, partial(_write, out, Path(path)))


def _write(out: Path, path: Path) -> None:
    from uumamba.evaluation.prediction_page import PageCase, PageModel, render_prediction_page, select_shown

    records, failures = read_records(out), read_failures(out / FAILURES_NAME)
    indices = {each.case_ids["ED"]: each.indices for each in find_indices(list(records.values()))}
    shown = {record.case_id for record in select_shown(list(records.values()))}
    cases = [
        PageCase(
            record.case_id,
            record.images,
            record.label,
            record.volumes_ml,
            record.phases,
            record.warnings,
            indices.get(record.case_id, {}),
            record.colours,
            preview=_read_jpeg(find_preview(out, record.case_id)) if record.case_id in shown else None,
            curve=_read_curve(out, record) if record.case_id in shown else None,
        )
        for record in records.values()
    ]
    counts = Counter((record.model, record.origin.model_sha256 if record.origin else "") for record in records.values())
    models = [PageModel(name, sha256, count, describe_model(name, sha256)) for (name, sha256), count in counts.items()]
    write_text(path, render_prediction_page(cases, models=models, failures=failures))


def describe_model(name: str, sha256: str) -> list[str]:
    """Return paragraphs on a model's use and limits, from its card."""
    for shipped in shipped_models():
        if hash_model([SHIPPED / shipped / WEIGHTS_NAME]) == sha256:
            card = (SHIPPED / shipped / CARD_NAME).read_text(encoding="utf-8")
            return [f"{section}: {text}" for section, text in read_sections(card).items() if section in CARD_SECTIONS]
    return [f"{name} is no model of the package, so this page knows neither its accuracy nor its limits."]


def read_sections(card: str) -> dict[str, str]:
    r"""Read the named points of a model's card as plain text.

    Example:
        >>> read_sections("- **Data**: hearts\n- **Limits**: not for\n  `CT`.\n")
        {'Data': 'hearts', 'Limits': 'not for CT.'}
    """
    return {each["name"]: " ".join(each["text"].split()).replace("`", "") for each in _SECTION.finditer(card)}


def _read_curve(out: Path, record: CaseRecord) -> bytes | None:
    path = find_curve(out, record.case_id)
    return path.read_bytes() if len(record.volumes_ml) > 1 and path.is_file() else None


def _read_jpeg(path: Path) -> bytes | None:
    """Read a preview as JPEG, a quarter of its size.

    Of a missing or damaged one, the result is None.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture, io.BytesIO() as stream:
            picture.convert("RGB").save(stream, "jpeg", quality=85)
            return stream.getvalue()
    except (OSError, UnidentifiedImageError, SyntaxError):
        return None
