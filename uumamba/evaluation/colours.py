"""Colours of structures, equal in plots, overlays, previews and files."""

from collections.abc import Mapping, Sequence

# The first seven are Okabe & Ito's colours for every common colour vision, those with the best contrast on grey first.
# Each of the others is the CIELAB colour (lightness 42 to 94, chroma above 28) with the largest distance from white and
# all colours before it; neighbours in the list differ by 34 units or more.
STRUCTURE_COLOURS = (
    "#56B4E9", "#E69F00", "#F0E442", "#009E73", "#CC79A7", "#D55E00", "#0072B2",
    "#870FFF", "#00FF00", "#FF1ED2", "#FF005A", "#9678FF", "#78692D", "#5AFF96", "#00FFFF", "#5AA500",
    "#FFA587", "#C3E196", "#A54B3C", "#C30078", "#FF0000", "#A5F01E", "#FF96FF", "#E1C3FF",
)  # fmt: skip


def assign_colours(structures: Sequence[str], colours: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the colour of each structure, equal in all plots and overlays.

    Args:
        structures: names.
        colours: chosen colours, such as ``"#d62728"``, by name; other structures get the default palette's.

    Example:
        >>> assign_colours(["RV", "LV"], {"LV": "#ff0000"})
        {'RV': '#56B4E9', 'LV': '#ff0000'}
    """
    palette = {name: STRUCTURE_COLOURS[index % len(STRUCTURE_COLOURS)] for index, name in enumerate(structures)}
    return palette | {name: colour for name, colour in (colours or {}).items() if name in palette}
