"""Cases of an earlier call that need not be predicted again."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from uumamba.data.case_files import ImagePath, list_paths
from uumamba.data.formats.dicom_studies import DicomSeries
from uumamba.data.source_key import hash_path
from uumamba.pipelines.postprocessing import CHOICE_NAME
from uumamba.pipelines.prediction.case_record import Origin, read_record
from uumamba.runtime.errors import CaseError

Stage = Literal["finished", "new", "the model changed", "the input changed", "the options changed"]


@dataclass(frozen=True)
class OriginReader:
    """Origin of label maps that one call makes."""

    model_sha256: str
    options: Mapping[str, Any]

    def read(self, image: ImagePath, case_id: str) -> Origin:
        """Hash the files of a case.

        Of files that cannot be read, the hash is empty.
        """
        digest = hashlib.sha256()
        try:
            for path in image.files if isinstance(image, DicomSeries) else list_paths(image):
                digest.update(hash_path(path, case_id))
        except CaseError:  # the scan's reader names the fault
            return Origin(self.model_sha256, "", self.options)
        return Origin(self.model_sha256, digest.hexdigest(), self.options)


def hash_model(checkpoints: Sequence[Path]) -> str:
    """Hash a model's checkpoints and the postprocessing stored next to them."""
    digest = hashlib.sha256()
    for path in checkpoints:
        for file in (path, path.with_name(CHOICE_NAME)):
            digest.update(hash_path(file, file.name) if file.is_file() else b"")
    return digest.hexdigest()


def find_stage(out: Path, case_id: str, origin: Origin, *, label: str) -> Stage:
    """Compare a case with what an earlier call made of it.

    A case is finished if its record and label map exist, and the record has the same origin. An interrupted case has no
    record.

    Args:
        out: the folder of the outputs.
        case_id: the case.
        origin: origin that a label map would have now.
        label: name of its label map in ``out``.
    """
    record = read_record(out, case_id)
    if record is None or record.origin is None or record.label != label:
        return "new"
    old = record.origin
    if not origin.input_sha256 or not (out / label).is_file():
        return "new"
    if old.model_sha256 != origin.model_sha256:
        return "the model changed"
    if old.input_sha256 != origin.input_sha256:
        return "the input changed"
    return "finished" if old.options == origin.options else "the options changed"
