"""Docstrings as Markdown: formulas, links, code and references."""

import xml.etree.ElementTree as ET

import pytest

from docs.hooks.rest_to_markdown import convert, to_mathml


def text_of(mathml: str) -> str:
    return "".join(ET.fromstring(mathml).itertext())


@pytest.mark.parametrize(
    ("latex", "shown"),
    [
        (r"\rho \frac{g}{\lVert g \rVert_2}", "ρg‖g‖2"),
        (r"\arg\max_w f", "argmaxwf"),
        (r"\Big\lVert x \Big\rVert, \Big\{ y \Big\}", "‖x‖,{y}"),
        (r"z \sim N(0, 1)", "z∼N(0,1)"),
        (r"\text{delta\_bias}", "delta_bias"),
        (r"W \mathbf 1", "W𝟏"),
    ],
)
def test_a_formula_shows_its_symbols(latex: str, shown: str) -> None:
    assert text_of(to_mathml(latex)) == shown


def test_a_word_is_one_identifier_and_a_function_is_set_off() -> None:
    assert "<mi>base</mi>" in to_mathml(r"\mathrm{base}(w)")
    assert to_mathml(r"\log p").count("<mspace") == 1
    assert to_mathml(r"\log(p)").count("<mspace") == 0


def test_bars_open_and_close() -> None:
    assert [mark.get("form") for mark in ET.fromstring(to_mathml("|w| + |x|")).iter("mo")] == [
        *("prefix", "postfix", None, "prefix", "postfix")
    ]


def test_rows_without_an_environment_are_aligned() -> None:
    rows = to_mathml(r"a &= b \\ c &= d", display=True)
    assert rows.count("<mtr>") == 2
    assert rows.count("<mtd") == 4


def test_markdown_leaves_a_formula_as_it_is() -> None:
    assert not {*"*_`[]\\~|"} & {*to_mathml(r"a * b_c | [d]_e")}


def test_a_formula_over_several_lines_is_one_block() -> None:
    found = convert("One.\n\n.. math:: a = b\n          + c\n\nwhere a\n\n.. math::\n    d\n\nend")
    first, second = [line for line in found.splitlines() if "div" in line]
    assert text_of(first) == "a=b+c"
    assert text_of(second) == "d"
    assert found.splitlines()[-1] == "end"


def test_a_block_in_a_list_keeps_its_indentation() -> None:
    assert convert("- item\n\n  .. math:: x\n").splitlines()[2].startswith("  <div")


def test_roles_become_links_or_code() -> None:
    text = ":class:`SAM`, :func:`~uumamba.ops.scan` and :meth:`mix <uumamba.optim.Rule.mix>`"
    anchors = {"SAM": "uumamba.optim.SAM"}
    assert convert(text, anchors.get) == "[`SAM`][uumamba.optim.SAM], `scan` and `mix`"


def test_references_are_a_list_with_links() -> None:
    text = (
        "Do.\n\nReferences:\n    Foret et al., *SAM*, 2021,\n    arXiv:2010.01412.\n    Differs from the paper: none.\n"
    )
    assert convert(text).splitlines()[2:] == [
        "**References:**",
        "",
        "- Foret et al., *SAM*, 2021, [arXiv:2010.01412](https://arxiv.org/abs/2010.01412).",
        "- Differs from the paper: none.",
    ]


def test_a_colon_in_what_is_returned_is_no_type() -> None:
    assert convert("Do.\n\nReturns:\n    A job: pass it on.\n") == "Do.\n\nReturns:\n    A job&#58; pass it on.\n"


def test_a_literal_block_ends_its_sentence_with_one_colon() -> None:
    assert convert("The file::\n\n    x = 1") == "The file:\n\n    x = 1"


def test_a_table_has_the_columns_of_its_rule() -> None:
    table = "=====  ===\nname   K\n=====  ===\nA b    1\n       2\nc\n=====  ==="
    assert convert(table) == "| name | K |\n| --- | --- |\n| A b | 1 2 |\n| c |  |"
