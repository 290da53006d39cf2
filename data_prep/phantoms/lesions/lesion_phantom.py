"""Phantom of two channels in nnU-Net's layout: lesions of which each channel shows a part."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.nifti_file import make_header, write_nifti
from data_prep.phantoms.phantom_folder import Order, Progress, check_no_others, write_cases
from data_prep.phantoms.scanner_noise import Field, draw_smooth_noise
from data_prep.raw_folder import list_files
from uumamba.runtime.files import write_json
from uumamba.runtime.options import NonNegativeInt, PositiveInt, check_options
from uumamba.runtime.seeds import key_to_seed

CHANNELS = ("T1", "FLAIR")
SHAPE, SPACING_MM = (72, 80, 20), (2.0, 2.0, 5.0)
_BRAIN_MM = (62.0, 72.0, 44.0)
_NOISE = 0.06


@check_options
def write_lesion_phantom(
    folder: Path | str,
    *,
    cases: PositiveInt = 20,
    seed: int = 0,
    workers: NonNegativeInt = 0,
    progress: Progress = lambda written, total: None,
) -> Path:
    """Write brain lesions in nnU-Net's layout, with two channels.

    Files are ``dataset.json``, ``imagesTr/lesion_001_0000.nii.gz`` (T1), ``imagesTr/lesion_001_0001.nii.gz`` (FLAIR),
    ``labelsTr/lesion_001.nii.gz`` and so on. Oedema (1) is bright in FLAIR and not seen in T1; the core (2) within it
    is dark in T1 and as bright as oedema in FLAIR. Only both channels together show both structures. Equal arguments
    give equal bytes, for any number of workers.

    Args:
        folder: empty, or with the same phantom.
        cases: number of cases.
        seed: another seed gives other cases.
        workers: number of worker processes; 0 uses this process. Workers need an importable main module.
        progress: called with the number of cases written and of all.

    Returns:
        The folder.

    Raises:
        UsageError: a count is too small, or the folder holds other files.

    Example:
        >>> import tempfile
        >>> raw = write_lesion_phantom(tempfile.mkdtemp(), cases=1)
        >>> sorted(path.relative_to(raw).as_posix() for path in raw.rglob("*.nii.gz"))
        ['imagesTr/lesion_001_0000.nii.gz', 'imagesTr/lesion_001_0001.nii.gz', 'labelsTr/lesion_001.nii.gz']
    """
    folder = Path(folder)
    orders = [Order(folder, number, seed) for number in range(1, cases + 1)]
    own = [path for order in orders for path in _list_paths(order)]
    check_no_others(folder, list_files(folder), [*own, folder / "dataset.json"])
    description = {
        "channel_names": {str(index): name for index, name in enumerate(CHANNELS)},
        "labels": {"background": 0, "oedema": 1, "core": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    write_json(folder / "dataset.json", description)
    write_cases(_write_case, orders, workers=workers, progress=progress)
    return folder


def draw_lesions(rng: np.random.Generator) -> tuple[list[Field], NDArray[np.uint8]]:
    """Draw the channels and the label of one case, ``(X, Y, Z)``."""
    axes = [(np.arange(size) - (size - 1) / 2) * mm for size, mm in zip(SHAPE, SPACING_MM, strict=True)]
    place = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    size_mm = np.array(_BRAIN_MM) * rng.uniform(0.9, 1.05, 3)
    radius = np.sqrt(((place / size_mm[:, None, None, None]) ** 2).sum(0))
    brain = radius < 1
    tissue = 1 + 0.15 * _draw_unit_noise(rng, 3.0)
    label = np.zeros(SHAPE, np.uint8)
    for _ in range(rng.integers(1, 3)):
        centre = rng.uniform(-0.5, 0.5, 3) * size_mm
        distance = np.sqrt(((place - centre[:, None, None, None]) ** 2).sum(0)) + 2.5 * _draw_unit_noise(rng, 2.0)
        core_mm = rng.uniform(7, 12)
        label[brain & (distance < rng.uniform(1.5, 1.9) * core_mm) & (label == 0)] = 1
        label[brain & (distance < core_mm)] = 2
    lesion_flair, core_t1 = rng.uniform(1.5, 1.8), rng.uniform(0.55, 0.7)
    t1 = np.where(brain, np.where(label == 2, core_t1 * tissue, tissue), 0.05)
    flair = np.where(brain, np.where(label > 0, lesion_flair * tissue, 0.8 * tissue), 0.05)
    gains = rng.uniform(300, 900, 2)
    return [
        gain * np.abs(each + _NOISE * rng.standard_normal(SHAPE)) for gain, each in zip(gains, (t1, flair), strict=True)
    ], label


def _draw_unit_noise(rng: np.random.Generator, sigma_voxels: float) -> Field:
    noise = draw_smooth_noise(rng, SHAPE, (sigma_voxels, sigma_voxels, sigma_voxels / 2))
    return noise / noise.std()


def _write_case(order: Order) -> None:
    rng = np.random.default_rng(key_to_seed(order.seed, "lesion phantom", order.number))
    images, label = draw_lesions(rng)
    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = [-(size - 1) / 2 * mm for size, mm in zip(SHAPE, SPACING_MM, strict=True)]
    arrays: list[NDArray[Any]] = [*(np.rint(image).astype(np.int16) for image in images), label]
    for path, array in zip(_list_paths(order), arrays, strict=True):
        header = make_header(array)
        header.set_xyzt_units("mm")
        header.set_qform(affine, code="scanner")
        header.set_sform(affine, code="scanner")
        write_nifti(path, array, header, compression=2)


def _list_paths(order: Order) -> list[Path]:
    """List the files of one case: its channels, then its label."""
    name = f"lesion_{order.number:03}"
    images = [order.folder / "imagesTr" / f"{name}_{channel:04}.nii.gz" for channel in range(len(CHANNELS))]
    return [*images, order.folder / "labelsTr" / f"{name}.nii.gz"]
