"""Cines: prediction frame by frame, and their phases."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from uumamba.data.case import Case, Manifest
from uumamba.data.case_files import ImagePath, image_stem, is_manifest
from uumamba.data.cine import Cine, is_cine, name_frame, read_cine
from uumamba.data.dicom_cine import is_dicom_cine, read_dicom_cine
from uumamba.data.restored_planes import OpenStore
from uumamba.data.scan import Scan, read_image
from uumamba.inference import Predictor
from uumamba.pipelines.prediction.segmented_case import MOST_SHOWN, SegmentedCase
from uumamba.runtime.errors import CaseError
from uumamba.types import LabelMap

CHAMBER = "LV"
"""Structure whose volume curve has the phases."""
_ACDC_NAME = re.compile(r"(.+)_(?:4d|frame(\d+))")


@dataclass(frozen=True)
class KnownPhases:
    """Patient and phases of a case, from a manifest or ``Info.cfg``.

    Attributes:
        patient_id: the patient.
        phases: index of the frame of each phase, from 0.
        warnings: sentences about an ``Info.cfg`` that is not used.
    """

    patient_id: str | None = None
    phases: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class SegmentedFrames:
    """Label maps of a scan or cine.

    Attributes:
        labels: label map of each frame.
        remarks: what is unlike the training data in the first frame.
    """

    labels: tuple[LabelMap, ...]
    remarks: tuple[str, ...]


def read_frames(
    image: ImagePath, *, channels: Sequence[str], case_id: str, assume_spacing_mm: Sequence[float] | None
) -> Cine:
    """Read a cine, or a still scan as one frame.

    For a model of several channels, a 4-D file holds channels.
    """
    only = image[0] if isinstance(image, tuple) and len(image) == 1 else image
    if len(channels) == 1 and not isinstance(only, tuple):
        if is_dicom_cine(only):
            return read_dicom_cine(only, case_id=case_id, assume_spacing_mm=assume_spacing_mm)
        if isinstance(only, Path) and is_cine(only):
            return read_cine(only, case_id=case_id, assume_spacing_mm=assume_spacing_mm)
    scan = read_image(
        image, channels=channels, case_id=case_id, keep_integers=True, assume_spacing_mm=assume_spacing_mm
    )
    return Cine((scan,))


def segment_frames(
    predictor: Predictor,
    cine: Cine,
    *,
    case_id: str,
    store: Callable[[int, Scan], AbstractContextManager[OpenStore]] | None,
    before_frame: Callable[[int], None],
) -> SegmentedFrames:
    """Segment each frame on its own.

    Args:
        predictor: the model.
        cine: one frame or several.
        case_id: name in errors.
        store: opens the store of the probabilities of a frame, by its index; None stores none.
        before_frame: called with the index of each frame after the first one, to stop on request.

    Raises:
        CaseError: a frame cannot be segmented; it is named, counted from 1.
    """
    labels, count = [], len(cine.frames)
    remarks: tuple[str, ...] = ()
    for index, scan in enumerate(cine.frames):
        if index:
            before_frame(index)
        opened = nullcontext(False) if store is None else store(index, scan)
        with name_frame(index + 1, count), opened as probabilities:
            prediction = predictor(
                scan.array,
                spacing_mm=scan.spacing_mm,
                affine=scan.affine,
                probabilities=probabilities,
                case_id=case_id,
            )
        labels.append(prediction.label)
        remarks = remarks if index else prediction.remarks
    return SegmentedFrames(tuple(labels), remarks)


def read_manifest_cases(inputs: Iterable[object]) -> dict[str, Case]:
    """Read the cases of all manifests among the inputs, by case id."""
    paths = (Path(each) for each in inputs if isinstance(each, Path | str))
    return {case.case_id: case for path in filter(is_manifest, paths) for case in Manifest.read(path).cases}


def find_known_phases(image: ImagePath, case: Case | None = None) -> KnownPhases:
    """Find a scan's patient and phases without looking at its voxels.

    They are those of a manifest's case, or of ACDC's ``Info.cfg`` next to files named ``<patient>_4d`` or
    ``<patient>_frame01`` of one patient.

    Args:
        image: the scan.
        case: its entry in a manifest.
    """
    known = _find_in_info(image) if isinstance(image, Path) and image.is_file() else KnownPhases()
    if case is None:
        return known
    return replace(known, patient_id=case.patient_id, phases={case.phase: 0} if case.phase else known.phases)


def _find_in_info(image: Path) -> KnownPhases:
    folder, named = image.absolute().parent, _ACDC_NAME.fullmatch(image_stem(image))
    if named is None or not (folder / "Info.cfg").is_file():
        return KnownPhases()
    names = (_ACDC_NAME.fullmatch(image_stem(path)) for path in folder.iterdir() if not path.name.startswith("."))
    if {name[1] for name in names if name} != {named[1]}:
        return KnownPhases()
    from data_prep.acdc import read_info  # here, because few scans need it

    try:
        info = read_info(folder)
    except CaseError as error:
        return KnownPhases(named[1], warnings=(f"Info.cfg is not used ({error.key}: {error.got}).",))
    if named[2] is None:
        return KnownPhases(named[1], {phase: number - 1 for phase, number in info.frames.items()})
    return KnownPhases(named[1], {phase: 0 for phase, number in info.frames.items() if number == int(named[2])})


def add_phases(case: SegmentedCase, known: KnownPhases) -> SegmentedCase:
    """Add a case's patient and phases.

    Known phases are used if their frames exist, one of a still scan or both of a cine. The phases of another cine are
    found in the volume curve of its left ventricle; see :func:`uumamba.evaluation.volume_curve.find_phases`. If that
    curve is no heart cycle, there are no phases, and a warning names its extreme frames.
    """
    count, notes = len(case.frames), [*case.warnings, *known.warnings]
    case = replace(case, patient_id=known.patient_id)
    phases = known.phases if count == 1 or len(known.phases) > 1 else {}
    if phases and max(phases.values()) < count:
        return replace(case, phases=phases, warnings=tuple(notes))
    if phases:
        frames = " and ".join(f"{phase} in frame {index + 1}" for phase, index in phases.items())
        notes.append(f"{frames} cannot be: the scan has {count} frames.")
    if count == 1 or CHAMBER not in case.structures:
        return replace(case, warnings=tuple(notes))
    from uumamba.evaluation.volume_curve import find_phases  # here, because still scans do not need it

    volumes_ml = [volumes[CHAMBER] for volumes in case.measure_volumes_ml()]
    found = find_phases(volumes_ml)
    if found.outliers:
        shown = [f"{volumes_ml[index]:.0f} ml in frame {index + 1}" for index in found.outliers[:MOST_SHOWN]]
        more = len(found.outliers) - len(shown)
        named = ", ".join(shown) + (f" and {more} more" if more else "")
        notes.append(f"Outliers of the {CHAMBER} volume curve of {count} frames: {named}.")
    if found.doubts:
        largest, smallest = (int(choose(volumes_ml)) for choose in (np.argmax, np.argmin))
        notes.append(
            f"ED and ES are unknown, because the {CHAMBER} volume curve is no heart cycle: {'; '.join(found.doubts)}; "
            f"it is from {volumes_ml[smallest]:.0f} ml in frame {smallest + 1} of {count} to "
            f"{volumes_ml[largest]:.0f} ml in frame {largest + 1}."
        )
    return replace(case, phases=found.phases, warnings=tuple(notes))
