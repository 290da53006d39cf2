"""Preview picture of each predicted case."""

from collections.abc import Mapping
from pathlib import Path

from uumamba.data.label_scheme import number_classes
from uumamba.pipelines.prediction.segmented_case import SegmentedCase
from uumamba.runtime.files import make_folder, report_write_errors, whole_file

PREVIEWS_NAME = "previews"


def find_preview(out: Path, case_id: str) -> Path:
    """Return the path of a case's preview, which may be absent."""
    return out / PREVIEWS_NAME / f"{case_id}.png"


def write_preview(out: Path, case: SegmentedCase, *, colours: Mapping[str, str]) -> None:
    """Write slices with outlines into ``out/previews``, atomically.

    Of a cine these are slices of the frames of known phases, or else of the first frame, which is named. Of several
    channels the first is shown.
    """
    from uumamba.evaluation.preview_image import PreviewFrame, draw_preview  # scipy.optimize takes a tenth of a second

    path, count = find_preview(out, case.case_id), len(case.frames)
    shown = {index: phase for phase, index in case.phases.items()} if count > 1 else {}
    frames = []
    for index, phase in (shown or {0: ""}).items():
        scan = case.frames[index]
        title = ", ".join(filter(None, (phase, f"frame {index + 1} of {count}"))) if count > 1 else ""
        image = scan.array if scan.array.ndim == 3 else scan.array[0]
        frames.append(PreviewFrame(title, image, case.labels[index]))
    png = draw_preview(
        frames,
        affine=case.frames[0].affine,
        spacing_mm=case.frames[0].spacing_mm,
        classes=number_classes(case.structures),
        colours=colours,
    )
    make_folder(path.parent)
    with report_write_errors(path), whole_file(path) as unfinished:
        unfinished.write_bytes(png)
