"""The site's view of the package: every formula, role, type and summary of public names."""

import re
from collections.abc import Iterator

import griffe
import pytest

from docs.hooks.overview import MARK, find_summary, load_package, on_page_markdown
from docs.hooks.rest_docstrings import find_anchors, list_fields, walk
from tests.test_public_names import GENERIC


@pytest.fixture(scope="module")
def package() -> griffe.Module:
    return load_package()


@pytest.fixture(scope="module")
def public(package: griffe.Module) -> list[griffe.Object]:
    return list(find_public(package))


def find_public(package: griffe.Module) -> Iterator[griffe.Object]:
    for home, anchor in find_anchors(package).items():
        if anchor.split(".")[1] in GENERIC:
            yield package[home.removeprefix("uumamba.")]


def test_no_latex_and_no_rest_is_left(package: griffe.Module) -> None:
    left = re.compile(r"&#92;|:(math|class|func|meth|mod|attr|data|exc):`|\.\. math|^References:", re.MULTILINE)
    texts = {each.path: each.docstring.value for each in walk(package) if each.docstring is not None}
    assert len(texts) > 1000
    assert [path for path, text in texts.items() if left.search(text)] == []


def test_every_public_name_has_a_summary(public: list[griffe.Object]) -> None:
    assert len(public) > 200
    assert [each.path for each in public if each.docstring is None] == []
    assert find_summary("uumamba.optim.SAM").startswith("Sharpness-aware minimisation")


def test_types_are_written_out_and_ranges_are_words(package: griffe.Module) -> None:
    sam = package["optim.sam.SAM"]
    types = {each.name: str(each.annotation) for each in sam.parameters}
    assert types["rho"] == "float"
    assert types["params"] == "Iterable[Any]"
    assert "rho: radius of the neighbourhood. At least 0." in sam.docstring.value
    assert (
        "These are ``net``, ``scaler``, ``max_grad_norm``, ``accumulation``, ``perturbation``." in sam.docstring.value
    )
    assert "Literal['previous', 'initial', 'noise', 'fisher']" in {
        str(each.annotation) for each in package["optim.tram.TRAM"].parameters
    }


def test_no_public_signature_has_a_private_name_of_this_package(public: list[griffe.Object]) -> None:
    ranges = re.compile(r"\b(NonNegative|Positive|Probability|BelowOne|BetweenZeroAndOne|AtLeastTwo|Bits)\b")
    shown = {f"{each.path}.{one.name}": str(one.annotation) for each in public for one in find_parameters(each)}
    assert len(shown) > 500
    assert {name: text for name, text in shown.items() if ranges.search(text)} == {}


def find_parameters(found: griffe.Object) -> list[griffe.Parameter]:
    return list(getattr(found, "parameters", ()))


def test_keys_of_a_typed_dict_include_those_of_its_bases(package: griffe.Module) -> None:
    assert [*list_fields(package["nets.stages.Stages"])][:2] == ["features", "strides"]
    assert [*list_fields(package["nets.stages.Stages"])][-1] == "full_resolution_skip"


def test_an_overview_lists_the_names_below_it() -> None:
    page = f"# x\n\n{MARK}\n\n## Operators\n\n::: uumamba.ops.selective_scan.selective_scan\n"
    assert on_page_markdown(page).splitlines()[4:7] == [
        "| Operators | |",
        "|---|---|",
        "| [`selective_scan`][uumamba.ops.selective_scan.selective_scan] | Compute a state-space model with "
        "input-dependent step sizes and projections. |",
    ]
    assert on_page_markdown("# without\n") == "# without\n"
