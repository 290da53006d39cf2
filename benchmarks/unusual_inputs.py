r"""Inputs unlike hearts, and whether the shipped model names them.

    python -m benchmarks.unusual_inputs --acdc ACDC/database --out runs/unusual --ct scan.nii.gz --json FILE

First the false alarms: the 200 labelled frames of ACDC's public training patients, each compared with the ranges of the
other four folds, as they are and mirrored in plane; labels stand for predictions. Then the shipped model ``acdc``
predicts changed copies of one frame, noise, a head-like ellipsoid and the CT scans of ``--ct``.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from benchmarks.result_file import write_result
from benchmarks.scan import print_rows
from data_prep.acdc import read_acdc
from uumamba.config import read_config
from uumamba.data.case_figures import CaseFigures, measure_prepared
from uumamba.data.fingerprint import make_fingerprint
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.predict import predict
from uumamba.pipelines.prediction.segmented_case import UnusualCaseWarning
from uumamba.pipelines.prepare import prepare
from uumamba.runtime.files import make_folder

CONFIG = "acdc_uu_mamba"
FOLDS = range(5)
FLIPS = {"rows reversed": (0,), "columns reversed": (1,), "turned by 180 degrees": (0, 1)}
"""Axes of the thumbnail that a changed copy of a frame reverses."""

Row = dict[str, Any]
Array = NDArray[np.float32]


def main(given: Sequence[str] | None = None) -> int:
    """Count the named frames, and predict the unusual inputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acdc", type=Path, required=True, help="the downloaded ACDC folder; only read")
    parser.add_argument("--out", type=Path, required=True, help="gets prepared frames, inputs and label maps")
    parser.add_argument("--ct", type=Path, action="append", default=[], help="a CT scan; repeatable")
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--quick", action="store_true", help="only the inputs, without the false alarms")
    options = parser.parse_args(given)
    rows = [] if options.quick else list(count_named_frames(options.acdc, options.out / "prepared"))
    inputs = make_folder(options.out / "inputs")
    frame = next(iter(read_acdc(options.acdc)[0].select(split="training"))).images[0]
    write_inputs(options.acdc / frame, inputs)
    rows += predict_inputs([inputs, *options.ct], options.out / "predictions")
    print_rows(rows)
    if options.json is not None:
        about = (
            "Frames of ACDC's 100 training patients by the ranges of the other folds, with labels for predictions; "
            "then single inputs by the shipped model acdc. By `python -m benchmarks.unusual_inputs`."
        )
        write_result(options.json, rows, title="Inputs unlike the training data", about=about, configs=[(CONFIG, ())])
    return 0


def count_named_frames(acdc: Path, out: Path) -> Iterator[Row]:
    """Compare each fold's frames with the ranges of the others."""
    manifest, bad = read_acdc(acdc)
    recipe = read_config(CONFIG).preprocess.build()
    prepare(manifest, bad, recipe=recipe, out=out, workers=1, raw=acdc, progress=False)
    folder = PreparedFolder(out)
    figures = {
        case: measure_prepared(folder.case(case.case_id), classes=folder.manifest.classes, patient_id=case.patient_id)
        for case in folder.manifest.select(split="training")
    }
    pairs = []
    for fold in FOLDS:
        ranges = make_fingerprint(each for case, each in figures.items() if case.fold != fold)
        assert ranges is not None, "four folds of ACDC have enough cases"
        pairs += [(ranges, each) for case, each in figures.items() if case.fold == fold]
    yield _count("frames of ACDC", [ranges.describe_outside(each) for ranges, each in pairs])
    for name, axes in FLIPS.items():
        yield _count(f"frames of ACDC, {name}", [ranges.describe_outside(_flip(each, axes)) for ranges, each in pairs])


def write_inputs(frame: Path, folder: Path) -> None:
    """Write the unusual inputs, most of them made from a frame."""
    scan: Any = nib.load(frame)
    image, rng = np.asarray(scan.dataobj, dtype=np.float32), np.random.default_rng(0)
    spacing = [float(mm) for mm in scan.header.get_zooms()[:3]]
    copies: Mapping[str, tuple[Array, Sequence[float]]] = {
        "unchanged frame": (image, spacing),
        "inverted frame": (image.max() - image, spacing),
        "mirrored frame": (image[::-1], spacing),
        "frame upside down": (image[:, ::-1], spacing),
        "frame turned by 180 degrees": (image[::-1, ::-1], spacing),
        "frame in centimetres": (image, [mm / 10 for mm in spacing]),
        "Gaussian noise": (rng.normal(100, 20, image.shape).astype(np.float32), spacing),
        "smooth noise": (gaussian_filter(rng.normal(0, 1, image.shape), 3).astype(np.float32), spacing),
        "head-like ellipsoid": (_draw_head(rng), [1.0, 1.0, 1.0]),
        "empty image": (np.zeros_like(image), spacing),
    }
    directions = np.sign(np.diag(scan.affine)[:3])  # ACDC's affine has no other information
    for name, (array, spacing_mm) in copies.items():
        nib.save(nib.Nifti1Image(array, np.diag([*directions * spacing_mm, 1.0])), folder / f"{name}.nii.gz")


def predict_inputs(inputs: Sequence[Path], out: Path) -> Iterator[Row]:
    """Predict inputs, and list what is said about each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnusualCaseWarning)
        result = predict("acdc", inputs, out=out, mirror=False, preview=False, progress=False)
    for record in result.records:
        yield _count(record.case_id, [record.warnings])
    for failure in result.failures:
        yield _count(failure.case_id, [[f"refused: {failure.key}: {failure.got}"]])


def _count(name: str, remarks: Sequence[Sequence[str]]) -> Row:
    named = [each for each in remarks if each]
    said = "; ".join(named[0][:3]) if len(remarks) == 1 and named else "-"
    return {"input": name, "scans": len(remarks), "named": len(named), "what is said": said}


def _flip(figures: CaseFigures, axes: tuple[int, ...]) -> CaseFigures:
    assert figures.thumbnail is not None, "every frame has a heart"
    return replace(figures, thumbnail=np.flip(figures.thumbnail, axes))


def _draw_head(rng: np.random.Generator) -> Array:
    """Draw an ellipsoid with a bright shell and dark ventricles."""
    axes = np.mgrid[-90:90, -110:110, -80:80] / np.array([75, 95, 70]).reshape(3, 1, 1, 1)
    radius = np.square(axes).sum(axis=0)
    head = np.where(radius < 1, 600 + 100 * rng.normal(size=radius.shape), 0)
    head[(radius < 1) & (radius > 0.85)] = 1000
    head[radius < 0.1] = 200
    return gaussian_filter(head, 1).astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
