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
_HOMES = {
    "assign_folds": "folds",
    "read_acdc": "acdc",
    "read_aorta": "aorta",
    "read_imagecas": "imagecas",
    "read_mnms": "mnms",
    "write_phantom": "phantom",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that ``python -m data_prep.mnms`` is not loaded twice, which Python warns of."""
    home = _HOMES.get(name, name)
    if home not in _HOMES.values():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import data_prep.acdc
    import data_prep.aorta
    import data_prep.folds
    import data_prep.imagecas
    import data_prep.mnms
    import data_prep.phantom

    module = vars(data_prep)[home]  # what was imported becomes an attribute of its package
    return getattr(module, name) if name in _HOMES else module


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_HOMES.values()})
