"""Files of predicted label maps."""

from pathlib import Path

from uumamba.data.case_files import ImagePath
from uumamba.data.formats.png import PNG_SUFFIXES
from uumamba.data.scan import write_label
from uumamba.pipelines.prediction.segmented_case import SegmentedCase


def name_label_map(case_id: str, image: ImagePath) -> str:
    """Return the file name of a case's label map.

    Example:
        >>> name_label_map("a", Path("a.mha")), name_label_map("b", Path("b.png"))
        ('a.nii.gz', 'b.png')
    """
    first = image if isinstance(image, Path) else image[0]
    return f"{case_id}{'.png' if first.name.lower().endswith(PNG_SUFFIXES) else '.nii.gz'}"


def write_label_map(path: Path, case: SegmentedCase) -> None:
    """Write a case's label map, with the label values of its structures."""
    (scan,), (label,) = case.frames, case.labels
    write_label(path, label, like=scan, structures=case.structures)


def find_probabilities(out: Path, case_id: str) -> Path:
    """Return the path of a case's probabilities.

    They have a folder of their own: in the folder of the label maps they would be cases, too.
    """
    return out / "probabilities" / f"{case_id}.nii.gz"
