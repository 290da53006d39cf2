"""Readers of public data sets, and phantoms in the same layouts."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_prep.acdc import read_acdc
    from data_prep.aorta import read_aorta
    from data_prep.folder.folder_reader import read_folder
    from data_prep.folds import assign_folds
    from data_prep.imagecas import read_imagecas
    from data_prep.mnms import read_mnms
    from data_prep.phantoms.heart.heart_phantom import write_phantom

__all__ = ["assign_folds", "read_acdc", "read_aorta", "read_folder", "read_imagecas", "read_mnms", "write_phantom"]
_HOMES = {
    "assign_folds": "data_prep.folds",
    "read_acdc": "data_prep.acdc",
    "read_aorta": "data_prep.aorta",
    "read_folder": "data_prep.folder.folder_reader",
    "read_imagecas": "data_prep.imagecas",
    "read_mnms": "data_prep.mnms",
    "write_phantom": "data_prep.phantoms.heart.heart_phantom",
}


def __getattr__(name: str) -> Any:
    """Import a public function on first use.

    An import here would load :mod:`data_prep.mnms` twice under ``python -m data_prep.mnms``.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
