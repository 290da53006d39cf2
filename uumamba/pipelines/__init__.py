"""Verbs of the command line as functions; nothing is printed here but progress."""

from typing import Any

__all__ = ["load_predictor"]


def __getattr__(name: str) -> Any:
    """Import ``load_predictor`` on first use, so that ``import uumamba.pipelines`` costs nothing."""
    if name == "load_predictor":
        from uumamba.pipelines.models import load_predictor

        return load_predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
