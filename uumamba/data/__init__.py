"""Scans, cases, geometry and patches.

Only this package and data_prep import readers of NIfTI, DICOM and MetaImage.
"""

from typing import TYPE_CHECKING, Any

from uumamba.data.case import Case, Manifest

if TYPE_CHECKING:
    from uumamba.data.augment import Augment, nnunet_transforms
    from uumamba.data.dataset import PatchDataset, batches
    from uumamba.data.geometry import Geometry
    from uumamba.data.prepared import PreparedCase, PreparedFolder
    from uumamba.data.preprocess import CtStatistics, PreprocessRecipe, restore, restore_label, restore_probabilities
    from uumamba.data.scan import Scan, check_same_grid, read_image, read_label, write_label

__all__ = [
    "Augment",
    "Case",
    "CtStatistics",
    "Geometry",
    "Manifest",
    "PatchDataset",
    "PreparedCase",
    "PreparedFolder",
    "PreprocessRecipe",
    "Scan",
    "batches",
    "check_same_grid",
    "nnunet_transforms",
    "read_image",
    "read_label",
    "restore",
    "restore_label",
    "restore_probabilities",
    "write_label",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """Import a name on first use.

    Reading a manifest loads neither torch nor nibabel.
    """
    if name in __all__:
        from uumamba.data import augment, dataset, geometry, prepared, preprocess, scan

        return next(
            vars(module)[name]
            for module in (augment, dataset, geometry, prepared, preprocess, scan)
            if name in vars(module)
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
