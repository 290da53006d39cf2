"""Files of label maps, and of names and colours of label values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from warnings import warn

from uumamba.data.case_files import ImagePath, image_suffix, list_paths
from uumamba.data.cine import Cine, write_cine_label
from uumamba.data.formats.png import PNG_SUFFIXES
from uumamba.data.scan import write_label
from uumamba.pipelines.datasets import FAILURE_KEYS, FAILURES_NAME
from uumamba.pipelines.prediction.case_record import read_records
from uumamba.pipelines.prediction.segmented_case import SegmentedCase
from uumamba.pipelines.prediction.volume_tables import COLUMNS, JSON_NAME, TABLE_NAME
from uumamba.runtime.errors import require, require_case
from uumamba.runtime.files import open_regular, write_json, write_text

LabelFormat = Literal["nii.gz", "mha", "nrrd", "seg.nrrd"]
SNAP_NAME, SLICER_NAME, NAMES_NAME = "labels.txt", "labels.ctbl", "labels.json"
PROBABILITIES_NAME = "probabilities"
_ORIGIN = "Made by uumamba predict"
_MARKS = dict.fromkeys((SNAP_NAME, SLICER_NAME, NAMES_NAME), _ORIGIN) | {
    TABLE_NAME: ",".join(COLUMNS[:3]),
    JSON_NAME: '{\n  "cases": [',
    FAILURES_NAME: f'"{FAILURE_KEYS[0]}"',
}
"""Beginning of each common file that prediction made."""


def name_label_map(case_id: str, image: ImagePath, label_format: LabelFormat | None = None) -> str:
    """Return the file name of a case's label map.

    Example:
        >>> name_label_map("a", Path("a.mha")), name_label_map("b", Path("b.png"))
        ('a.nii.gz', 'b.png')
        >>> name_label_map("a", Path("a.nii.gz"), "mha")
        'a.mha'
    """
    default = "png" if list_paths(image)[0].name.lower().endswith(PNG_SUFFIXES) else "nii.gz"
    return f"{case_id}.{label_format or default}"


def check_label_format(name: str, cine: Cine, case_id: str) -> None:
    """Raise if a label map's format cannot hold it.

    Raises:
        CaseError: a segmentation of 3D Slicer would hold several frames, or a PNG several slices.
    """
    suffix, frames, slices = image_suffix(Path(name)).lower(), len(cine.frames), cine.frames[0].shape[2]
    is_png = suffix in PNG_SUFFIXES
    require_case(
        (frames == 1 or suffix != ".seg.nrrd") and (frames == slices == 1 or not is_png),
        case_id,
        "--out" if is_png else "--format",
        got=f"{suffix[1:]} for {frames} frames of {slices} slices",
        expected="nii.gz, mha or nrrd",
        fix="choose another format",
    )


def write_label_map(path: Path, case: SegmentedCase, *, colours: Mapping[str, str]) -> None:
    """Write a case's label map, with the label values of its structures.

    The label maps of a cine's frames are one 4-D file.
    """
    if len(case.frames) > 1:
        cine = Cine(case.frames, case.times_ms)
        write_cine_label(path, case.labels, like=cine, structures=case.structures)
        return
    (scan,), (label,) = case.frames, case.labels
    write_label(path, label, like=scan, structures=case.structures, colours=colours)


def find_probabilities(out: Path, case_id: str) -> Path:
    """Return the path of a still scan's probabilities.

    They have a folder of their own: in the folder of the label maps they would be cases, too.
    """
    return out / PROBABILITIES_NAME / f"{case_id}.nii.gz"


def find_frame_probabilities(out: Path, case_id: str, frame: int | None = None) -> Path:
    """Return the path of the probabilities of a cine's frame, from 1.

    Without a frame this is their folder.
    """
    folder = out / PROBABILITIES_NAME / case_id
    return folder if frame is None else folder / f"frame_{frame:02d}.nii.gz"


def check_own_files(out: Path) -> None:
    """Raise if a common file of all cases is somebody else's.

    Raises:
        UsageError: a file has the name of one of the tables or lists, and was not made by prediction.
    """
    for path, mark in ((out / name, mark) for name, mark in _MARKS.items()):
        require(
            not path.exists() or _is_own(path, mark),
            str(path),
            got="a file of another origin",
            expected="none, or one that predict made",
            fix="rename the file, or choose another --out",
        )


def _is_own(path: Path, mark: str) -> bool:
    try:
        with open_regular(path) as stream:
            return mark.encode() in stream.read(200)
    except OSError:
        return False


def write_label_names(out: Path, structures: Mapping[str, int], colours: Mapping[str, str]) -> None:
    """Write names and colours of label values for viewers.

    ``labels.txt`` is a label description of ITK-SNAP, ``labels.ctbl`` a colour table of 3D Slicer, and ``labels.json``
    holds the label values as in nnU-Net's ``dataset.json``. Parts of a batch write the same bytes. A warning names
    cases of an earlier call whose label maps have other values.
    """
    others = [name for name, record in read_records(out).items() if record.structures not in ({}, dict(structures))]
    if others:
        shown = ", ".join(others[:5]) + ", ..." * (len(others) > 5)
        warn(
            f"{out / SNAP_NAME} and the other names are of this model's labels; not those of {shown}, which another "
            "model predicted.",
            stacklevel=2,
        )
    levels = {name: tuple(bytes.fromhex(colours[name][1:])) for name in structures}
    snap = ["# ITK-SnAP Label Description File", f"# {_ORIGIN}", _describe_snap(0, (0, 0, 0), "Clear Label", shown=0)]
    slicer = [f"# {_ORIGIN}: colour table of 3D Slicer", "0 background 0 0 0 0"]
    for name, value in structures.items():
        snap.append(_describe_snap(value, levels[name], name, shown=1))
        slicer.append(f"{value} {name.replace(' ', '_')} {' '.join(map(str, levels[name]))} 255")
    write_text(out / SNAP_NAME, "\n".join(snap) + "\n")
    write_text(out / SLICER_NAME, "\n".join(slicer) + "\n")
    content = {"origin": _ORIGIN, "labels": {"background": 0} | dict(structures), "colours": dict(colours)}
    write_json(out / NAMES_NAME, content)


def _describe_snap(value: int, levels: tuple[int, ...], name: str, *, shown: int) -> str:
    red, green, blue = levels
    quoted = name.replace('"', "'")
    return f'{value:>5} {red:>5} {green:>4} {blue:>4} {shown:>8}  {shown}  {shown}    "{quoted}"'
