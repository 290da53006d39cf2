"""Public data sets and the phantom: one module each, from the raw layout to a manifest."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_prep.acdc import read_acdc
    from data_prep.aorta import read_aorta
    from data_prep.folds import assign_folds
    from data_prep.imagecas import read_imagecas
    from data_prep.mnms import read_mnms
    from data_prep.phantom import write_phantom

__all__ = ["assign_folds", "read_acdc", "read_aorta", "read_imagecas", "read_mnms", "write_phantom"]


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that ``python -m data_prep.mnms`` is not loaded twice, which Python warns of."""
    if name in __all__:
        from data_prep import acdc, aorta, folds, imagecas, mnms, phantom

        for module in (acdc, aorta, folds, imagecas, mnms, phantom):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
