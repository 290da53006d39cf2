"""Conversion of reST in Google docstrings to Markdown, with formulas as MathML."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle

from latex2mathml.converter import convert as convert_latex

FindAnchor = Callable[[str], str | None]
"""Returns the anchor of a name on the site, None for a name without an entry."""

_DISPLAY = re.compile(r"^(?P<indent> *)\.\. math::(?P<formula>[^\n]*(?:\n\n?(?P=indent) +[^\n]+)*)", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]+)`")
_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`([^`<]+?)(?:\s*<([^`>]+)>)?`")
_TABLE = re.compile(
    r"^(?P<indent> *)(?P<rule>=+(?: +=+)+)\n(?P<head>.*)\n *=+.*\n(?P<rows>(?:(?! *=).*\n)+) *=+.*$", re.MULTILINE
)
_LITERAL = re.compile(r"^(?! *\.\. )( *\S.*:):$", re.MULTILINE)
_ARXIV = re.compile(r"(?<!\[)arXiv:(\d{4}\.\d{4,5})")
_SECTION = re.compile(r"^(References|Returns|Yields):\n((?:(?:    .*)?(?:\n|\Z))+)", re.MULTILINE)
_TO_KNOWN_LATEX = (  # what latex2mathml does not know, in terms of what it knows
    (re.compile(r"\\[bB]ig(?= ?\\)"), ""),
    (re.compile(r"\\arg(?![a-z])"), r"\\operatorname{arg}"),
    (re.compile(r"(\\(?:log|exp|cos|sin|dim))(?= *[a-zA-Z\\](?!\w*big|\w*Big|left))"), r"\1\\,"),
    (re.compile(r"(?<=[a-zA-Z])\\_(?=[a-z])"), "_"),
)
_TO_BETTER_MATHML = (
    (' xmlns="http://www.w3.org/1998/Math/MathML"', ""),
    ("<mi>&#x0007E;</mi>", "<mo>&#x223C;</mo>"),
    ("<mi>:</mi>", "<mo>:</mo>"),
    ("<mi>&#x02016;</mi>", "<mo>&#x2225;</mo>"),
    ('<mn mathvariant="bold">1</mn>', "<mn>&#x1D7CF;</mn>"),
)
_LETTERS = re.compile(r'(?:<mi mathvariant="normal">[^<]</mi>){2,}')
_BARS = (re.compile(r"<mo[^>]*>(&#x0007C;)</mo>"), re.compile(r"<mo[^>]*>(&#x02016;)</mo>"))
_SPECIAL = re.compile(r"[*_`\[\]\\~:|]")


def convert(text: str, find_anchor: FindAnchor = lambda name: None) -> str:
    r"""Convert a docstring to Markdown in Google's sections.

    Formulas become MathML, roles become links or code, literal blocks become code, and references become a list.

    Example:
        >>> convert("See :func:`~uumamba.ops.scan` and ``x``.")
        'See `scan` and ``x``.'
        >>> convert("See :class:`SAM`.", {"SAM": "uumamba.optim.SAM"}.get)
        'See [`SAM`][uumamba.optim.SAM].'
    """
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    text = _TABLE.sub(_convert_table, text)
    text = _LITERAL.sub(r"\1", text)
    text = _SECTION.sub(_convert_section, text)
    text = _DISPLAY.sub(lambda found: _display(found["indent"], found["formula"]), text)
    text = _INLINE.sub(lambda found: f'<span class="formula">{to_mathml(found[1])}</span>', text)
    return _ROLE.sub(lambda found: _link(found[1], found[2] or found[1], find_anchor), text)


def to_mathml(formula: str, *, display: bool = False) -> str:
    """Convert LaTeX to MathML that Markdown leaves as it is.

    Example:
        >>> to_mathml("x * y")
        '<math display="inline"><mrow><mi>x</mi><mo>&#x0002A;</mo><mi>y</mi></mrow></math>'
    """
    latex = " ".join(formula.split())
    for pattern, known in _TO_KNOWN_LATEX:
        latex = pattern.sub(known, latex)
    if display and r"\\" in latex and r"\begin" not in latex:  # as in Sphinx, rows are aligned
        latex = rf"\begin{{split}}{latex}\end{{split}}"
    mathml = convert_latex(latex, display="block" if display else "inline")
    for written, better in _TO_BETTER_MATHML:
        mathml = mathml.replace(written, better)
    mathml = _LETTERS.sub(lambda found: f"<mi>{re.sub('<[^>]+>', '', found[0])}</mi>", mathml)
    for bar in _BARS:
        mathml = bar.sub(partial(_pair, cycle(("prefix", "postfix"))), mathml)
    return re.sub(r">[^<]+<", lambda found: _SPECIAL.sub(_entity, found[0]), mathml)


def _pair(sides: Iterator[str], bar: re.Match[str]) -> str:
    return f'<mo form="{next(sides)}" stretchy="false">{bar[1]}</mo>'


def _convert_table(found: re.Match[str]) -> str:
    """Convert a simple table, whose columns are those of its rule."""
    starts = [column.start() for column in re.finditer(r"=+", found["rule"])]
    cuts = [slice(start, end) for start, end in zip(starts, [*starts[1:], None], strict=True)]
    rows: list[list[str]] = []
    for line in [found["head"], *found["rows"].splitlines()]:
        cells = [line[len(found["indent"]) :][cut].strip() for cut in cuts]
        if cells[0]:
            rows.append(cells)
        else:  # the row before goes on
            rows[-1] = [" ".join(filter(None, pair)) for pair in zip(rows[-1], cells, strict=True)]
    rows.insert(1, ["---"] * len(cuts))
    return "\n".join(f"{found['indent']}| {' | '.join(row)} |" for row in rows)


def _display(indent: str, formula: str) -> str:
    return f'{indent}<div class="formula">{to_mathml(formula, display=True)}</div>'


def _entity(found: re.Match[str]) -> str:
    return f"&#{ord(found[0])};"


def _link(name: str, target: str, find_anchor: FindAnchor) -> str:
    """Link to an entry by its last name; ``~`` shortens a name without an entry, as in Sphinx."""
    anchor, short = find_anchor(target.removeprefix("~")), name.rpartition(".")[2]
    if anchor is not None:
        return f"[`{short}`][{anchor}]"
    return f"`{short if name.startswith('~') else name}`"


def _convert_section(found: re.Match[str]) -> str:
    """Make a list of references; keep griffe from reading prose before a colon as a type."""
    if found[1] == "References":
        references = _split_references(found[2])
        return "\n".join(["**References:**", "", *(f"- {_ARXIV.sub(_cite, each)}" for each in references), ""])
    return f"{found[1]}:\n" + re.sub(r":(?=\s)", "&#58;", found[2])


def _split_references(body: str) -> list[str]:
    """Split references, each of which ends with a full stop at the end of a line."""
    return [" ".join(each.split()) for each in re.split(r"(?<=[.])\n", body) if each.strip()]


def _cite(found: re.Match[str]) -> str:
    return f"[{found[0]}](https://arxiv.org/abs/{found[1]})"
