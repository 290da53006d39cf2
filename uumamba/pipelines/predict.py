"""Prediction of label maps on the grids of their scans."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from uumamba.data.case import Case, Manifest, Split
from uumamba.data.case_files import (
    ImagePath,
    add_case,
    check_channel_order,
    check_file_name,
    find_scans,
    group_channels,
    is_manifest,
    name_case,
)
from uumamba.data.channels import ONE_CHANNEL, describe_channels
from uumamba.data.formats.png import PNG_SUFFIXES
from uumamba.data.scan import Scan, read_image, write_label
from uumamba.inference import Predictor
from uumamba.pipelines.datasets import read_channel_names, record_failures
from uumamba.pipelines.models import load_predictor
from uumamba.runtime.case_boundary import attempt, fail_case_on_error
from uumamba.runtime.errors import CaseError, require
from uumamba.runtime.files import make_folder, remove_file, whole_file
from uumamba.runtime.progress_bar import track
from uumamba.runtime.stop import StopRequest

Input = Path | str | Sequence[Path | str]
"""Scan, folder or manifest; or the files of one case, one for each channel."""


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
        save_probabilities: also write ``<case_id>.probabilities.npy`` (float16, ``(class or region, *native)``).
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
        predictor = load_predictor(model, device=device, fold=fold, mirror=mirror)
        channels = predictor.channels
        cases = find_inputs(inputs, channels=channels, split=split, fold=case_fold, domains=domains, case_ids=case_ids)
        _check_inputs_kept(cases, inputs, Path(out))
        out = make_folder(out)
        read = partial(read_image, channels=channels, assume_spacing_mm=assume_spacing_mm)
        predict_one = partial(_predict_one, predictor, read, out=out, save_probabilities=save_probabilities)
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


def find_inputs(
    inputs: Iterable[Input],
    *,
    channels: Sequence[str] = ONE_CHANNEL,
    split: Split | None = None,
    fold: int | None = None,
    domains: Collection[str] | None = None,
    case_ids: Collection[str] | None = None,
) -> dict[str, ImagePath]:
    """Find the case id and paths of every input scan.

    Of a manifest, only the selected cases are inputs.

    Raises:
        UsageError: a path is missing, nothing is found, two scans share a case id, or a manifest has other channels.
    """
    found: dict[str, ImagePath] = {}
    select = partial(Manifest.select, split=split, fold=fold, domains=domains, case_ids=case_ids)
    files: list[Path] = []
    for each in inputs:
        if not isinstance(each, Path | str):
            paths = tuple(map(Path, each))
            require(paths, "--input", got=each, expected="the files of a case")
            check_channel_order(paths, option="--input")
            add_case(found, name_case(paths[0]), paths)
        elif len(channels) > 1 and Path(each).is_file() and not is_manifest(Path(each)):
            files.append(Path(each))
        else:
            for case_id, scan in _find_scans(Path(each), select, channels).items():
                add_case(found, case_id, scan)
    for case_id, scan in group_channels(files, channels, option="--input").items():
        add_case(found, case_id, scan)
    require(found, "--input", got="no scan", expected="NIfTI, MHA or PNG files, folders of them, or a manifest")
    return found


def _find_scans(
    path: Path, select: Callable[[Manifest], Iterable[Case]], channels: Sequence[str]
) -> Mapping[str, ImagePath]:
    require(path.exists(), "--input", got=path, expected="a scan, a folder of scans or a manifest")
    if is_manifest(path):
        manifest = Manifest.read(path)
        _check_channels(manifest, channels, path)
        return {case.case_id: case.image for case in select(manifest)}
    if not path.is_dir():
        return {name_case(path): path}
    if len(channels) > 1:
        _check_named_order(path, channels)
    scans = find_scans(path, option="--input", channels=channels)
    cines = {name for name in scans if name.endswith("_4d") and len(channels) == 1}
    no_scans = {f"{name}_gt" for name in scans} | cines
    return {name: scan for name, scan in scans.items() if name not in no_scans}


def _check_channels(manifest: Manifest, channels: Sequence[str], path: Path) -> None:
    """Raise unless a manifest has the model's channels in its order.

    The name of an only channel is free.
    """
    is_same = len(manifest.channels) == len(channels) and (len(channels) == 1 or manifest.channels == tuple(channels))
    require(
        is_same,
        "--input",
        got=f"{path} with {describe_channels(manifest.channels)}",
        expected=describe_channels(channels) if len(channels) > 1 else "one channel, as the model's",
        fix="list the model's channels in this order, in the manifest's modality and images",
    )


def _check_named_order(folder: Path, channels: Sequence[str]) -> None:
    """Raise if a folder's ``dataset.json`` has the channels in another order."""
    named = read_channel_names(folder)
    require(
        named == tuple(channels) or sorted(named) != sorted(channels),
        "--input",
        got=f"{folder} with {describe_channels(named)}",
        expected=describe_channels(channels),
        fix="reorder the channels and their names in dataset.json",
    )


def _check_inputs_kept(cases: Mapping[str, ImagePath], inputs: Iterable[Input], out: Path) -> None:
    """Raise if a label map would replace an input file."""
    given = {path.resolve() for image in cases.values() for path in ([image] if isinstance(image, Path) else image)}
    single = (Path(each) for each in inputs if isinstance(each, Path | str))
    for path in filter(is_manifest, single):
        given |= {file.resolve() for case in Manifest.read(path).cases for file in case.files}
    for case_id, image in cases.items():
        target = out / _name_label_map(case_id, image)
        require(target.resolve() not in given, "--out", got=out, expected=f"a folder without the input {target.name}")


def _name_label_map(case_id: str, scan: ImagePath) -> str:
    first = scan if isinstance(scan, Path) else scan[0]
    return f"{case_id}{'.png' if first.name.lower().endswith(PNG_SUFFIXES) else '.nii.gz'}"


def _predict_one(
    predictor: Predictor, read: Callable[..., Scan], case: tuple[str, ImagePath], *, out: Path, save_probabilities: bool
) -> Path:
    case_id, path = case
    check_file_name(case_id)
    target, probabilities = out / _name_label_map(case_id, path), out / f"{case_id}.probabilities.npy"
    for old in (target, probabilities):
        remove_file(old)
    with fail_case_on_error(case_id):
        scan = read(path, case_id=case_id)
    prediction = predictor(
        scan.array, spacing_mm=scan.spacing_mm, affine=scan.affine, probabilities=save_probabilities, case_id=case_id
    )
    with fail_case_on_error(case_id):
        write_label(target, prediction.label, like=scan, structures=predictor.structures)
    if prediction.probabilities is not None:
        with whole_file(probabilities) as unfinished:
            np.save(unfinished, prediction.probabilities.astype(np.float16), allow_pickle=False)
    return target
