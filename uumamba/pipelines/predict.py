"""Prediction of label maps on the grids of their scans."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from uumamba.data.case import Split
from uumamba.data.case_files import ImagePath, check_file_name
from uumamba.data.formats.probability_file import write_probabilities
from uumamba.data.scan import Scan, read_image
from uumamba.inference import Predictor
from uumamba.pipelines.datasets import record_failures
from uumamba.pipelines.models import load_predictor
from uumamba.pipelines.prediction.case_record import CaseRecord, remove_record, write_record
from uumamba.pipelines.prediction.input_scans import Input, check_inputs_kept, find_inputs
from uumamba.pipelines.prediction.label_files import find_probabilities, name_label_map, write_label_map
from uumamba.pipelines.prediction.segmented_case import SegmentedCase
from uumamba.runtime.case_boundary import attempt, fail_case_on_error
from uumamba.runtime.errors import CaseError
from uumamba.runtime.files import make_folder, remove_file
from uumamba.runtime.progress_bar import track
from uumamba.runtime.stop import StopRequest


@dataclass(frozen=True)
class PredictResult:
    """Written label maps and failed cases."""

    written: tuple[Path, ...]
    failures: tuple[CaseError, ...]


def predict(
    model: Path | str,
    inputs: Sequence[Input],
    *,
    out: Path | str,
    device: str = "cpu",
    fold: str | None = None,
    split: Split | None = None,
    case_fold: int | None = None,
    domains: Collection[str] | None = None,
    case_ids: Collection[str] | None = None,
    mirror: bool | None = None,
    save_probabilities: bool = False,
    memory_limit_gb: float | None = None,
    assume_spacing_mm: Sequence[float] | None = None,
    progress: bool | None = None,
) -> PredictResult:
    """Segment scans with a trained model.

    Args:
        model: output folder of ``uumamba run``, run folder, fold folder, checkpoint file or name of a shipped model.
        inputs: NIfTI, MHA or PNG files, folders of them, DICOM folders, or manifests (``.json``). Of a folder, label
            maps named ``<scan>_gt`` next to their scan and ACDC's cines, ``*_4d``, are left out. For a model of several
            channels, files ``<case>_0000``, ``<case>_0001``, ... are one case, and other files hold all channels; a
            list of paths is one case, named after the first, with the channels in the order of the model's.
        out: gets ``<case_id>.nii.gz`` for each input, on its grid with its header codes, and ``<case_id>.png`` for a
            PNG. For a failed case the label map of an earlier call is removed.
        device: name of the device in torch.
        fold: fold of the model; None averages the models of all folds of a run.
        split: only this split's cases of a manifest.
        case_fold: fold of the cases of a manifest, which is ``case_fold`` in :func:`predict`; None selects all.
        domains: only the cases of these domains of a manifest.
        case_ids: only these cases of a manifest.
        mirror: average over mirrored inputs; None takes the run's configuration.
        save_probabilities: also write ``probabilities/<case_id>.nii.gz``, the probabilities of each class or region on
            the scan's grid; see :mod:`uumamba.data.formats.probability_file`.
        memory_limit_gb: size of this process in 10^9 bytes to which prediction on the CPU keeps, down to the scan, the
            label map and a window of the network; by default 1.2 where it can.
        assume_spacing_mm: spacing of the stored axes, for scans whose header has no valid one.
        progress: a bar; None shows one on a terminal.

    Returns:
        The written files, and an error for each failed case; ``out/failures.json`` lists them.

    Raises:
        UsageError: there is no model or no input, two inputs have one case id, a manifest has other channels than the
            model, a folder of nnU-Net or the Decathlon has them in another order, a list of files is in another order
            than their numbers, or a label map would replace an input, or an image or label of a manifest.
        StoppedOnRequest: a stop was requested.
    """
    written: list[Path] = []
    failures: list[CaseError] = []
    with StopRequest() as stop:
        predictor = load_predictor(model, device=device, fold=fold, mirror=mirror, memory_limit_gb=memory_limit_gb)
        channels = predictor.channels
        cases = find_inputs(inputs, channels=channels, split=split, fold=case_fold, domains=domains, case_ids=case_ids)
        check_inputs_kept(cases, inputs, Path(out))
        out = make_folder(out)
        read = partial(read_image, channels=channels, assume_spacing_mm=assume_spacing_mm, keep_integers=True)
        predict_one = partial(
            _predict_one, predictor, read, model=str(model), out=out, save_probabilities=save_probabilities
        )
        for done, case in enumerate(track(list(cases.items()), description="predict", enabled=progress)):
            stop.raise_if_requested(
                f"after predicting {done} of {len(cases)} cases; run the same command to predict all"
            )
            outcome = attempt(predict_one, case, case_id=case[0])
            if isinstance(outcome, CaseError):
                failures.append(outcome)
            else:
                written.append(outcome)
    record_failures(out, failures)
    return PredictResult(tuple(written), tuple(failures))


def _predict_one(
    predictor: Predictor,
    read: Callable[..., Scan],
    case: tuple[str, ImagePath],
    *,
    model: str,
    out: Path,
    save_probabilities: bool,
) -> Path:
    case_id, image = case
    check_file_name(case_id)
    target, probabilities = out / name_label_map(case_id, image), find_probabilities(out, case_id)
    for old in (target, probabilities):
        remove_file(old)
    remove_record(out, case_id)
    with fail_case_on_error(case_id):
        scan = read(image, case_id=case_id)
    segment = partial(predictor, scan.array, spacing_mm=scan.spacing_mm, affine=scan.affine, case_id=case_id)
    if save_probabilities:
        has_background = predictor.painted is None
        with write_probabilities(probabilities, scan, predictor.output_names, has_background=has_background) as store:
            prediction = segment(probabilities=store)
    else:
        prediction = segment()
    case_found = SegmentedCase(case_id, (scan,), (prediction.label,), predictor.structures or {})
    with fail_case_on_error(case_id):
        write_label_map(target, case_found)
    write_record(out, CaseRecord.of(case_found, label=target.name, image=image, model=model))
    return target
