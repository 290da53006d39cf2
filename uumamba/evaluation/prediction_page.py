"""Page of predicted cases: one self-contained HTML file, without labels."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from uumamba import __version__
from uumamba.evaluation.html_environment import make_environment

MOST_LISTED = 1000
MOST_SHOWN = 100
"""Cases with pictures; each takes about 0.1 MB of the page."""
_LONGEST_LIST = 30
_INDICES = {
    "lv_ef_percent": ("LV ejection fraction", "%"),
    "rv_ef_percent": ("RV ejection fraction", "%"),
    "lv_mass_g": ("LV mass", "g"),
}


@dataclass(frozen=True)
class PageCase:
    """Case of the page.

    Attributes:
        case_id: its name.
        images: its files.
        label: name of the label map.
        volumes_ml: volume of each structure, by frame.
        phases: index of the frame of each known phase.
        warnings: sentences about the input.
        indices: ejection fractions and mass, as of :func:`uumamba.evaluation.clinical.clinical_indices`.
        colours: colour of each structure in the preview.
        preview: JPEG; None without one.
        curve: PNG of volumes against time; None without one.
    """

    case_id: str
    images: Sequence[str]
    label: str
    volumes_ml: Sequence[Mapping[str, float]]
    phases: Mapping[str, int] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    indices: Mapping[str, float | None] = field(default_factory=dict)
    colours: Mapping[str, str] = field(default_factory=dict)
    preview: bytes | None = None
    curve: bytes | None = None


@dataclass(frozen=True)
class PageModel:
    """Model of some of the cases.

    Attributes:
        name: model as the user named it.
        sha256: hash of its weights.
        count: number of its cases.
        texts: paragraphs about its use and limits.
    """

    name: str
    sha256: str
    count: int
    texts: Sequence[str]


def render_prediction_page(
    cases: Sequence[PageCase], *, models: Sequence[PageModel] = (), failures: Sequence[Mapping[str, str]] = ()
) -> str:
    """Render the page as HTML with embedded pictures and style.

    At most 100 cases have a section of their own, those with warnings first; lists have at most 1000 lines.

    Args:
        cases: the predicted cases.
        models: their models.
        failures: ``case_id``, ``key``, ``got``, ``expected`` and ``fix`` of cases that could not be segmented.

    Example:
        >>> html = render_prediction_page([PageCase("a<b>", ["a.nii.gz"], "a.nii.gz", [{"LV": 120.0}])])
        >>> "a&lt;b&gt;" in html, "120.0" in html
        (True, True)
    """
    names = list(dict.fromkeys(name for case in cases for name in case.volumes_ml[0]))
    indices = {
        key: shown for key, shown in _INDICES.items() if any(case.indices.get(key) is not None for case in cases)
    }
    title = f"Segmentation of {cases[0].case_id}" if len(cases) == 1 else f"Segmentation of {len(cases)} cases"
    return (
        make_environment()
        .get_template("predictions.html.j2")
        .render(
            title=title,
            lead=_write_lead(cases, models, failures),
            failures=failures,
            warned=[case for case in cases if case.warnings] if len(cases) > 1 else [],
            names=names,
            indices=[f"{title.replace('ejection fraction', 'EF')}, {unit}" for title, unit in indices.values()],
            caption="Volume in ml; of a cine at ED, or in the first frame if ED is unknown.",
            lines=[_make_line(case, names, indices) for case in cases],
            cases=[_describe_case(case) for case in select_shown(cases)],
            models=models,
            most=MOST_LISTED,
            version=__version__,
        )
    )


def select_shown(cases: Sequence[Any]) -> list[Any]:
    """Select the cases that get a section, those with warnings first."""
    return sorted(cases, key=lambda case: not case.warnings)[:MOST_SHOWN]


def _write_lead(cases: Sequence[PageCase], models: Sequence[PageModel], failures: Sequence[Mapping[str, str]]) -> str:
    warned = sum(bool(case.warnings) for case in cases)
    names = ", ".join(dict.fromkeys(model.name for model in models))
    counts = f"Segmented: {len(cases)}. Failed: {len(failures)}. With warnings: {warned}."
    return f"{counts} Model: {names}." if names else counts


def _make_line(case: PageCase, names: Sequence[str], indices: Iterable[str]) -> dict[str, Any]:
    volumes = case.volumes_ml[case.phases.get("ED", 0)]
    values = [*(volumes.get(name) for name in names), *(case.indices.get(key) for key in indices)]
    return {"case_id": case.case_id, "values": values}


def _describe_case(case: PageCase) -> dict[str, Any]:
    columns = _find_columns(case)
    found = [name for name in case.volumes_ml[0] if any(frame[name] for frame in case.volumes_ml)]
    absent = [name for name in case.volumes_ml[0] if name not in found]
    count = len(case.volumes_ml)
    return vars(case) | {
        "images": ", ".join(case.images[:3]) + (f", ... ({len(case.images)} files)" if len(case.images) > 3 else ""),
        "caption": "Volume in ml" if count == 1 else f"Volume in ml, from {count} frames",
        "columns": [title for title, _ in columns],
        "rows": [(name, [volumes[name] for _, volumes in columns]) for name in found],
        "indices": _list_indices(case),
        "absent": ", ".join(absent[:_LONGEST_LIST]) + (", ..." if len(absent) > _LONGEST_LIST else ""),
    }


def _find_columns(case: PageCase) -> list[tuple[str, Mapping[str, float]]]:
    """Return titles and volumes of each column.

    These are the known phases, or the extremes of a cine without them.
    """
    frames = case.volumes_ml
    if len(frames) == 1:
        return [(", ".join([*case.phases, "ml"]), frames[0])]
    if case.phases:
        return [(f"{phase}, frame {index + 1}", frames[index]) for phase, index in case.phases.items()]
    return [
        (title, {name: choose(frame[name] for frame in frames) for name in frames[0]})
        for title, choose in (("smallest", min), ("largest", max))
    ]


def _list_indices(case: PageCase) -> list[tuple[str, float, str]]:
    """List the known ejection fractions and mass."""
    known = ((title, case.indices.get(key), unit) for key, (title, unit) in _INDICES.items())
    return [(title, value, unit) for title, value, unit in known if value is not None]
