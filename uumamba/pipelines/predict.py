"""From scans to label maps on their own grids."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uumamba.data.case import MANIFEST_NAME, Manifest, Split
from uumamba.data.scan import read_image, write_label
from uumamba.errors import CaseError, UsageError
from uumamba.files import make_folder, whole_file
from uumamba.inference import Predictor
from uumamba.pipelines.failures import record_failures
from uumamba.pipelines.models import load_predictor
from uumamba.pipelines.progress import track

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")


@dataclass(frozen=True)
class PredictResult:
    """Written label maps and the cases that failed."""

    written: tuple[Path, ...]
    failures: tuple[CaseError, ...]


def predict(
    model: Path | str,
    inputs: Sequence[Path | str],
    *,
    out: Path | str,
    device: str = "cpu",
    fold: str | None = None,
    split: Split | None = None,
    case_fold: int | None = None,
    mirror: bool | None = None,
    save_probabilities: bool = False,
    progress: bool | None = None,
) -> PredictResult:
    """Segment scans with a trained model.

    Args:
        model: a run folder, a fold's folder or a checkpoint.
        inputs: NIfTI or MHA files, folders of them, DICOM folders, or manifests.
        out: gets ``<case_id>.nii.gz`` for each, on the input's grid with its header codes.
        device: torch's name of it.
        fold: one fold's model of a run; None averages the folds that are there.
        split: of a manifest, only these cases.
        case_fold: of a manifest, only this fold's cases.
        mirror: average over mirrored inputs; None takes the run's configuration.
        save_probabilities: also write ``<case_id>.probabilities.npy`` (float16, ``(class, *native)``).
        progress: a bar; None decides by the terminal.

    Returns:
        What was written, and an error for each case that failed; ``out/failures.json`` lists them.

    Raises:
        UsageError: no model, no input, or two inputs with one case id.
    """
    cases = find_inputs(inputs, split=split, fold=case_fold)
    predictor = load_predictor(model, device=device, fold=fold, mirror=mirror)
    out = make_folder(out)
    written, failures = [], []
    for case_id, path in track(list(cases.items()), description="predict", enabled=progress):
        try:
            written.append(_predict_one(predictor, case_id, path, out, save_probabilities=save_probabilities))
        except CaseError as error:
            failures.append(error)
    record_failures(out, failures)
    return PredictResult(tuple(written), tuple(failures))


def find_inputs(
    inputs: Iterable[Path | str], *, split: Split | None = None, fold: int | None = None
) -> dict[str, Path]:
    """Case id and path of every scan that the inputs name.

    Raises:
        UsageError: a path is missing, nothing is found, or two scans share a case id.
    """
    found: dict[str, Path] = {}
    for given in map(Path, inputs):
        for case_id, path in _scans_of(given, split, fold):
            if found.setdefault(case_id, path) != path:
                raise UsageError(f"{path} and {found[case_id]} are both the case {case_id}; rename one of them.")
    if not found:
        raise UsageError("No scan was found in the input; give NIfTI or MHA files, folders of them, or a manifest.")
    return found


def case_id_of(path: Path) -> str:
    """A scan's case id: its name without the image suffix and without nnU-Net's channel suffix ``_0000``.

    Example:
        >>> case_id_of(Path("patient001_frame01_0000.nii.gz"))
        'patient001_frame01'
    """
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if path.name.lower().endswith(suffix)), "")
    return path.name[: len(path.name) - len(suffix)].removesuffix("_0000")


def _scans_of(given: Path, split: Split | None, fold: int | None) -> list[tuple[str, Path]]:
    if not given.exists():
        raise UsageError(f"The input {given} does not exist; give a scan, a folder of scans or a manifest.")
    if given.name == MANIFEST_NAME or (given / MANIFEST_NAME).is_file():
        return [(case.case_id, case.image) for case in Manifest.read(given).select(split=split, fold=fold)]
    if given.is_file():
        return [(case_id_of(given), given)]
    scans = sorted(path for path in given.iterdir() if path.name.lower().endswith(IMAGE_SUFFIXES))
    return [(case_id_of(path), path) for path in scans] or [(given.name, given)]


def _predict_one(predictor: Predictor, case_id: str, path: Path, out: Path, *, save_probabilities: bool) -> Path:
    scan = read_image(path, case_id=case_id)
    prediction = predictor(
        scan.array, spacing_mm=scan.spacing_mm, affine=scan.affine, probabilities=save_probabilities, case_id=case_id
    )
    target = out / f"{case_id}.nii.gz"
    write_label(target, prediction.label, like=scan)
    if prediction.probabilities is not None:
        with whole_file(out / f"{case_id}.probabilities.npy") as unfinished:
            np.save(unfinished, prediction.probabilities.astype(np.float16), allow_pickle=False)
    return target
