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
_MODULES = ("acdc", "aorta", "folds", "imagecas", "mnms", "phantom")


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that ``python -m data_prep.mnms`` is not loaded twice, which Python warns of."""
    if name not in (*__all__, *_MODULES):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import data_prep.acdc
    import data_prep.aorta
    import data_prep.folds
    import data_prep.imagecas
    import data_prep.mnms
    import data_prep.phantom

    modules = (
        data_prep.acdc,
        data_prep.aorta,
        data_prep.folds,
        data_prep.imagecas,
        data_prep.mnms,
        data_prep.phantom,
    )
    homes: dict[str, Any] = dict(zip(_MODULES, modules, strict=True))
    return homes[name] if name in homes else next(getattr(home, name) for home in modules if hasattr(home, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
