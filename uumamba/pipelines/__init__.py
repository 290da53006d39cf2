"""Commands of uumamba as functions.

The functions print only progress.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uumamba.pipelines.models import load_predictor

__all__ = ["load_predictor"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """Import ``load_predictor`` on first use; ``import uumamba.pipelines`` stays quick."""
    if name == "load_predictor":
        from uumamba.pipelines.models import load_predictor

        return load_predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
