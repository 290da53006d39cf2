"""Figures in PNG files, the same in any environment.

matplotlib reads environment variables and files of the user, which may name a backend or style that does not exist.
Here it is imported without them, and figures are drawn by the Agg canvas in the default style.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def _without_variables(*names: str) -> Iterator[None]:
    """Hide environment variables that are read on import."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of each wrong line of a user's file
with _without_variables("MPLBACKEND", "MATPLOTLIBRC"):
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

__all__ = ["Axes", "Figure", "MaxNLocator", "draw_style", "save_png", "to_rgb"]


@contextmanager
def draw_style(style: Mapping[Any, Any] | None = None) -> Iterator[None]:
    """Draw in matplotlib's default style, with changes, instead of the user's.

    Args:
        style: changed settings by matplotlib's names.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams["text.parse_math"] = False  # a dollar sign in a structure's name is no formula
        mpl.rcParams.update(style or {})
        yield


def save_png(figure: Figure, target: Path | IO[bytes], **options: Any) -> None:
    """Draw a figure into a file as PNG.

    Args:
        figure: made without pyplot.
        target: path or binary stream.
        options: of ``print_png`` or ``savefig``.
    """
    FigureCanvasAgg(figure)
    figure.savefig(target, format="png", **options)
