"""Prediction of one case, from its files to its outputs."""

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from uumamba.data.case import Case
from uumamba.data.case_files import ImagePath, check_file_name
from uumamba.data.cine import Cine
from uumamba.data.formats.dicom_studies import DicomSeries
from uumamba.data.formats.probability_file import write_probabilities
from uumamba.data.restored_planes import OpenStore
from uumamba.data.scan import Scan
from uumamba.data.warn import ScanWarning, collect_repairs
from uumamba.inference import Predictor
from uumamba.pipelines.prediction.case_outputs import CaseOutputs
from uumamba.pipelines.prediction.case_record import CaseRecord
from uumamba.pipelines.prediction.cines import SegmentedFrames, add_phases, find_known_phases, segment_frames
from uumamba.pipelines.prediction.input_scans import ZipFolders, find_source
from uumamba.pipelines.prediction.segmented_case import SegmentedCase, warn_of_remarks
from uumamba.runtime.case_boundary import fail_case_on_error
from uumamba.runtime.stop import StopRequest


@dataclass(frozen=True)
class CasePrediction:
    """Reading, segmentation and outputs of each case of a call.

    Attributes:
        predictor: the model.
        read: ``read(image, case_id=...) -> Cine``; a still scan has one frame.
        outputs: writer of the files.
        listed: cases of manifests by case id, with their phases.
        zips: folders into which zip files were unpacked.
        stop: request to stop, obeyed between frames.
        save_probabilities: also write probabilities.
    """

    predictor: Predictor
    read: Callable[..., Cine]
    outputs: CaseOutputs
    listed: Mapping[str, Case]
    zips: ZipFolders
    stop: StopRequest
    save_probabilities: bool

    def __call__(self, case: tuple[str, ImagePath]) -> tuple[Path, CaseRecord]:
        """Predict one case, and return its label map and record.

        Raises:
            CaseError: the case cannot be read or segmented.
        """
        case_id, image = case
        check_file_name(case_id)
        outputs = self.outputs
        outputs.remove_old(case_id, image)
        origin = outputs.origins.read(image, case_id)
        with fail_case_on_error(case_id), collect_repairs(case_id) as repairs:
            cine, known = self.read(image, case_id=case_id), find_known_phases(image, self.listed.get(case_id))
        outputs.check_format(case_id, image, cine)
        found = self._segment(cine, case_id)
        structures = self.predictor.structures or {}
        segmented = SegmentedCase(case_id, cine.frames, found.labels, structures, times_ms=cine.times_ms)
        segmented = add_phases(segmented, known)
        for note in segmented.warnings:
            warnings.warn(f"{case_id}: {note}", ScanWarning, stacklevel=2)
        choice = [f"{image.choice}."] if isinstance(image, DicomSeries) and image.choice else []
        segmented = replace(segmented, warnings=(*choice, *repairs, *segmented.warnings))
        segmented = warn_of_remarks(segmented, found.remarks)
        with fail_case_on_error(case_id):
            target = outputs.write_label_map(segmented, image)
        source = find_source(image, self.zips)
        return target, outputs.finish(segmented, source, label=target, origin=origin)

    def _segment(self, cine: Cine, case_id: str) -> SegmentedFrames:
        return segment_frames(
            self.predictor,
            cine,
            case_id=case_id,
            store=partial(self._store, case_id, len(cine.frames)) if self.save_probabilities else None,
            before_frame=lambda frame: self.stop.raise_if_requested(
                f"in frame {frame + 1} of {case_id}; to continue in a folder, run the command with --skip-existing"
            ),
        )

    def _store(self, case_id: str, count: int, index: int, scan: Scan) -> AbstractContextManager[OpenStore]:
        """Open the file for the probabilities of a frame."""
        predictor, path = self.predictor, self.outputs.find_probabilities(case_id, index, count)
        return write_probabilities(path, scan, predictor.output_names, has_background=predictor.painted is None)
