"""Files that prediction makes of each case."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from uumamba.data.case_files import ImagePath, list_paths
from uumamba.data.cine import Cine
from uumamba.pipelines.prediction.case_record import CaseRecord, Origin, read_record, remove_record, write_record
from uumamba.pipelines.prediction.finished_cases import OriginReader, Stage, find_stage
from uumamba.pipelines.prediction.label_files import (
    LabelFormat,
    check_label_format,
    find_frame_probabilities,
    find_probabilities,
    write_label_map,
)
from uumamba.pipelines.prediction.output_target import OutputTarget
from uumamba.pipelines.prediction.previews import find_preview, write_preview
from uumamba.pipelines.prediction.segmented_case import SegmentedCase
from uumamba.pipelines.prediction.volume_tables import find_curve, write_volume_plot
from uumamba.runtime.files import remove_file


@dataclass(frozen=True)
class CaseOutputs:
    """Writer of each case's label map, preview and record.

    Attributes:
        folder: gets the files.
        target: names of the label maps.
        model: model as the user named it.
        origins: origin of each label map.
        colours: colour of each structure.
        preview: write previews.
    """

    folder: Path
    target: OutputTarget
    model: str
    origins: OriginReader
    colours: Mapping[str, str]
    preview: bool

    def find_probabilities(self, case_id: str, index: int, count: int) -> Path:
        """Return the path of the probabilities of a frame, from 0."""
        if count == 1:
            return find_probabilities(self.folder, case_id)
        return find_frame_probabilities(self.folder, case_id, index + 1)

    def find_stage(self, case_id: str, image: ImagePath, *, probabilities: bool) -> Stage:
        """Compare a case with what an earlier call made of it."""
        stage = find_stage(
            self.folder, case_id, self.origins.read(image, case_id), label=self.target.name_label_map(case_id, image)
        )
        record = read_record(self.folder, case_id)
        count = 1 if record is None else len(record.volumes_ml)
        stored = all(self.find_probabilities(case_id, index, count).is_file() for index in range(count))
        return stage if stored or not probabilities else "new"

    def remove_old(self, case_id: str, image: ImagePath) -> None:
        """Remove what an earlier call made of a case.

        The record is first, since without it no other file counts. A label map of another format is removed as well, so
        that no case has two.
        """
        names, old = {self.target.name_label_map(case_id, image)}, read_record(self.folder, case_id)
        if old is not None and old.label in {f"{case_id}.{each}" for each in get_args(LabelFormat)}:
            names.add(old.label)
        remove_record(self.folder, case_id)
        images = {path.resolve() for path in list_paths(image)}
        pictures = (find_preview(self.folder, case_id), find_curve(self.folder, case_id))
        frames = find_frame_probabilities(self.folder, case_id).glob("frame_*.nii.gz")
        probabilities = (find_probabilities(self.folder, case_id), *frames)
        for path in (*(self.folder / each for each in sorted(names)), *pictures, *probabilities):
            if path.resolve() not in images:
                remove_file(path)

    def check_format(self, case_id: str, image: ImagePath, cine: Cine) -> None:
        """Raise a CaseError if the label map's format cannot hold it."""
        check_label_format(self.target.name_label_map(case_id, image), cine, case_id)

    def write_label_map(self, case: SegmentedCase, image: ImagePath) -> Path:
        """Write a case's label map, and return its path."""
        path = self.folder / self.target.name_label_map(case.case_id, image)
        write_label_map(path, case, colours=self.colours)
        return path

    def finish(self, case: SegmentedCase, image: ImagePath, *, label: Path, origin: Origin) -> CaseRecord:
        """Write pictures and record.

        The record is last, so that an interrupted case has none.
        """
        if self.preview:
            write_preview(self.folder, case, colours=self.colours)
        record = CaseRecord.of(
            case, label=label.name, image=image, model=self.model, colours=self.colours, origin=origin
        )
        write_volume_plot(self.folder, record)
        write_record(self.folder, record)
        return record
