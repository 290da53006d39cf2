"""Discs in discs: a phantom with regions and sparse annotation, for tests of label schemes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.pipelines.run_files import save_nifti
from uumamba.data.case import Case, Manifest
from uumamba.data.preprocess import PreprocessRecipe
from uumamba.pipelines.prepare import prepare

STRUCTURES: Mapping[str, int] = {"oedema": 2, "core": 5}
NESTED = {"whole": (2, 5), "core": (5,)}
PARTITION = {"oedema": (2,), "core": (5,)}
SHAPE = (48, 48, 3)
RECIPE = PreprocessRecipe((None, None, None))


def write_phantom_manifest(folder: Path, *, patients: int = 5, ignores: bool = False) -> Manifest:
    """Write scans of a bright core (value 5) in a less bright disc (value 2), one patient per fold.

    With ``ignores`` all rows but the first 30 have the value 9.
    """
    cases = []
    for number in range(patients):
        generator = np.random.default_rng(number)
        x, y = np.meshgrid(*(np.arange(size) for size in SHAPE[:2]), indexing="ij")
        distance = np.hypot(x - generator.uniform(20, 28), y - generator.uniform(20, 28))[..., None] * np.ones(SHAPE)
        label = np.where(distance < 6, 5, np.where(distance < 13, 2, 0)).astype(np.uint8)
        scan = 100 * (1 + (label > 0) + 2 * (label == 5)) + generator.normal(0, 15, SHAPE)
        if ignores:
            label[30:] = 9
        name = f"p{number}"
        image = save_nifti(folder / f"{name}.nii.gz", scan.astype(np.float32), (3.0, 3.0, 8.0))
        reference = save_nifti(folder / f"{name}_gt.nii.gz", label, (3.0, 3.0, 8.0))
        cases.append(Case(name, name, "here", image, reference, fold=number % 5))
    manifest = Manifest("phantom", "MR", STRUCTURES, tuple(cases))
    return replace(manifest, ignore_value=9) if ignores else manifest


def prepare_phantom(folder: Path, manifest: Manifest) -> Path:
    result = prepare(manifest, recipe=RECIPE, out=folder, progress=False)
    assert not result.failures
    return folder
