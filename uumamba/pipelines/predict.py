"""Prediction of label maps on the grids of their scans."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from uumamba.data.case import Split
from uumamba.data.case_files import ImagePath
from uumamba.data.series_choice import SeriesWish
from uumamba.evaluation.colours import assign_colours
from uumamba.pipelines.datasets import record_failures
from uumamba.pipelines.models import checkpoint_paths, load_predictor
from uumamba.pipelines.prediction.case_outputs import CaseOutputs
from uumamba.pipelines.prediction.case_prediction import CasePrediction
from uumamba.pipelines.prediction.case_record import CaseRecord
from uumamba.pipelines.prediction.cines import read_frames, read_manifest_cases
from uumamba.pipelines.prediction.finished_cases import OriginReader, Stage, hash_model
from uumamba.pipelines.prediction.input_scans import Input, check_inputs_kept, find_inputs, unpack_zips
from uumamba.pipelines.prediction.label_files import LabelFormat, check_own_files, write_label_names
from uumamba.pipelines.prediction.output_target import OutputTarget
from uumamba.pipelines.prediction.page import check_page, write_page
from uumamba.pipelines.prediction.parts import Part, record_part_failures, write_for_all_parts
from uumamba.pipelines.prediction.volume_tables import write_volume_tables
from uumamba.runtime.case_boundary import attempt
from uumamba.runtime.errors import CaseError
from uumamba.runtime.progress_bar import track
from uumamba.runtime.stop import StopRequest


@dataclass(frozen=True)
class PredictResult:
    """Written label maps and failed cases.

    Attributes:
        written: label maps.
        failures: error of each failed case.
        skipped: cases that an earlier call finished, with ``skip_existing``.
        renewed: cases of an earlier call that were predicted again, by the reason.
        records: volumes, phases and warnings of each predicted case.
    """

    written: tuple[Path, ...]
    failures: tuple[CaseError, ...]
    skipped: tuple[str, ...] = ()
    renewed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    records: tuple[CaseRecord, ...] = ()


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
    series: Sequence[str] = (),
    mirror: bool | None = None,
    save_probabilities: bool = False,
    memory_limit_gb: float | None = None,
    assume_spacing_mm: Sequence[float] | None = None,
    label_format: LabelFormat | None = None,
    preview: bool = True,
    report: Path | str | None = None,
    skip_existing: bool = False,
    part: Part | None = None,
    progress: bool | None = None,
) -> PredictResult:
    """Segment scans with a trained model.

    Args:
        model: output folder of ``uumamba run``, run folder, fold folder, checkpoint file or name of a shipped model.
        inputs: NIfTI, MHA or PNG files, folders of them, DICOM folders, zip files of all these, or manifests
            (``.json``). Of a DICOM study, one series is used: of the model's modality, with several parallel slices. Of
            a folder, label maps named ``<scan>_gt`` next to their scan and ACDC's cines, ``*_4d``, next to their frames
            are left out. For a model of one channel, a 4-D file and a DICOM series with phases are a cine, segmented
            frame by frame. For a model of several channels, files ``<case>_0000``, ``<case>_0001``, ... are one case,
            and other files hold all channels; a list of paths is one case, named after the first, with the channels in
            the order of the model's.
        out: folder that gets ``<case_id>.nii.gz`` for each input, on its grid with its header codes, and
            ``<case_id>.png`` for a PNG. For a failed case the label map of an earlier call is removed. ``labels.txt``
            (ITK-SNAP), ``labels.ctbl`` (3D Slicer) and ``labels.json`` name the values; ``volumes.csv`` and
            ``volumes.json`` hold volumes and ejection fractions. The label map of a cine is 4-D. Or the file of the
            only case's label map, such as ``mask.mha``; then nothing else is written but what other arguments request.
        device: name of the device in torch.
        fold: fold of the model; None averages the models of all folds of a run.
        split: only this split's cases of a manifest.
        case_fold: fold of the cases of a manifest, which is ``case_fold`` in :func:`predict`; None selects all.
        domains: only the cases of these domains of a manifest.
        case_ids: only these cases of a manifest.
        series: series to use of DICOM studies: UIDs, unique beginnings or ends of UIDs, numbers, or parts of
            descriptions.
        mirror: average over mirrored inputs; None takes the run's configuration.
        save_probabilities: also write ``probabilities/<case_id>.nii.gz``, the probabilities of each class or region on
            the scan's grid (of a cine ``probabilities/<case_id>/frame_01.nii.gz``, ...); see
            :mod:`uumamba.data.formats.probability_file`.
        memory_limit_gb: size of this process in 10^9 bytes to which prediction on the CPU keeps, down to the scan, the
            label map and a window of the network; by default 4 where it can.
        assume_spacing_mm: spacing of the stored axes, for scans whose header has no valid one.
        label_format: ``"nii.gz"``, ``"mha"``, ``"nrrd"`` or ``"seg.nrrd"``, a segmentation of 3D Slicer.
        preview: also write ``previews/<case_id>.png``, slices with outlines.
        report: HTML file that gets a page of all cases in ``out``.
        skip_existing: skip the cases that an earlier call finished with the same model, input and options.
        part: only these cases of a batch; parts may run at the same time and together give what one call gives.
        progress: a bar; None shows one on a terminal.

    Returns:
        The written files, and an error for each failed case; ``out/failures.json`` lists them.

    Raises:
        UsageError: there is no model or no input, two inputs have one case id, a manifest has other channels than the
            model, a folder of nnU-Net or the Decathlon has them in another order, a list of files is in another order
            than their numbers, no series of a study is in ``series``, a zip file is damaged, unsafe or too large, a
            label map would replace an input, or an image or label of a manifest, ``out`` is a file for several cases,
            or a file of another origin has the name of an output.
        StoppedOnRequest: a stop was requested.
    """
    target = OutputTarget.parse(out, label_format)
    if report is not None:
        check_page(report)
    with StopRequest() as stop, unpack_zips(inputs) as zips:
        predictor = load_predictor(model, device=device, fold=fold, mirror=mirror, memory_limit_gb=memory_limit_gb)
        batch = find_inputs(
            inputs,
            channels=predictor.channels,
            split=split,
            fold=case_fold,
            domains=domains,
            case_ids=case_ids,
            series=SeriesWish(series, predictor.modality),
            zips=zips,
        )
        target.check_cases(batch, options={"--skip-existing": skip_existing, "--part": part is not None})
        check_inputs_kept(batch, inputs, target.find_label_map)
        cases = batch if part is None else part.select(batch)
        options = {"mirror": mirror, "assume_spacing_mm": None if assume_spacing_mm is None else [*assume_spacing_mm]}
        origins = OriginReader(hash_model(checkpoint_paths(model, fold=fold)), options)
        colours = assign_colours(list(predictor.structures or {}), predictor.colours)
        with target.open_folder() as folder:
            check_own_files(folder)
            outputs = CaseOutputs(folder, target, str(model), origins, colours, preview)
            predict_one = CasePrediction(
                predictor,
                partial(read_frames, channels=predictor.channels, assume_spacing_mm=assume_spacing_mm),
                outputs,
                read_manifest_cases(inputs),
                zips,
                stop,
                save_probabilities,
            )
            find_stage = partial(outputs.find_stage, probabilities=save_probabilities)
            progressed = track(list(cases.items()), description="predict", enabled=progress)
            try:
                result = _predict_cases(
                    progressed, predict_one, find_stage if skip_existing else None, stop, len(cases)
                )
            finally:
                write_volume_tables(folder)
            write_label_names(folder, predictor.structures or {}, colours)
            if part is None:
                record_failures(folder, result.failures)
            else:
                record_part_failures(folder, result.failures, part, batch)
                write_for_all_parts(folder, partial(write_volume_tables, folder))
            if report is not None:
                write_page(folder, report)
    return result if not target.is_file else replace(result, written=(target.path,) * len(result.written))


def _predict_cases(
    cases: Iterable[tuple[str, ImagePath]],
    predict_one: Callable[[tuple[str, ImagePath]], tuple[Path, CaseRecord]],
    find_stage: Callable[[str, ImagePath], Stage] | None,
    stop: StopRequest,
    count: int,
) -> PredictResult:
    written: list[tuple[Path, CaseRecord]] = []
    failures: list[CaseError] = []
    skipped: list[str] = []
    renewed: dict[str, list[str]] = {}
    for done, (case_id, image) in enumerate(cases):
        stop.raise_if_requested(
            f"after predicting {done} of {count} cases; to continue in a folder, run the command with --skip-existing"
        )
        stage = "new" if find_stage is None else find_stage(case_id, image)
        if stage == "finished":
            skipped.append(case_id)
            continue
        if stage != "new":
            renewed.setdefault(stage, []).append(case_id)
        outcome = attempt(predict_one, (case_id, image), case_id=case_id)
        if isinstance(outcome, CaseError):
            failures.append(outcome)
        else:
            written.append(outcome)
    return PredictResult(
        tuple(path for path, _ in written),
        tuple(failures),
        tuple(skipped),
        {key: tuple(ids) for key, ids in renewed.items()},
        tuple(record for _, record in written),
    )
