"""Promises of every package's public names: ``dir``, docstrings, and an entry on a page of the manual."""

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, is_typeddict

import pytest

GENERIC = (
    *("optim", "losses", "nets", "ops", "metrics", "domain_generalization"),
    *("quantization", "federated", "unlearning", "inference", "pipelines"),
)
"""Packages that serve without scans; each has a page under docs/reference/api."""
WITHOUT_EXAMPLE = {
    *("connect_site", "run_nvflare_simulator", "Site", "Links", "SiteSetup"),  # need several processes
    *("ForgetLoss", "Smoothing", "Mixing", "Method", "Perturbation"),  # base classes, see their subclasses
    *("write_slow_examples", "leave_one_domain_out_validation"),  # see the example of its counterpart
    *("SurfaceDistances", "VesselScores"),  # results
}
ROOMS = sorted(
    ".".join(file.relative_to(Path(__file__).parents[1]).parent.parts)
    for package in ("uumamba", "data_prep")
    for file in (Path(__file__).parents[1] / package).rglob("__init__.py")
    if "__all__ = " in file.read_text(encoding="utf-8")
)
NAMES = [(room, name) for room in GENERIC for name in import_module(f"uumamba.{room}").__all__]


@pytest.mark.parametrize("room", ROOMS)
def test_dir_of_a_package_has_its_public_names_alone(room: str) -> None:
    package = import_module(room)
    assert dir(package) == sorted(package.__all__)
    assert all(hasattr(package, name) for name in package.__all__)


def test_every_generic_package_is_found() -> None:
    assert {f"uumamba.{room}" for room in GENERIC} <= set(ROOMS)


@pytest.mark.parametrize("room", GENERIC)
def test_a_page_has_every_public_name_once(repository: Path, room: str) -> None:
    page = (repository / "docs" / "reference" / "api" / f"{room}.md").read_text(encoding="utf-8")
    listed = re.findall(rf"^::: uumamba\.{room}\.(\S+)$", page, re.MULTILINE)
    assert sorted(path.rpartition(".")[2] for path in listed) == sorted(import_module(f"uumamba.{room}").__all__)
    modules = [path.split(".") for path in listed if "." in path]
    assert all(len(parts) == 2 and parts[0] == parts[1] for parts in modules)  # a function in a file of its name


@pytest.mark.parametrize(("room", "name"), NAMES)
def test_a_docstring_has_its_parts(room: str, name: str) -> None:
    named = getattr(import_module(f"uumamba.{room}"), name)
    if inspect.isclass(named) or inspect.isfunction(named):
        assert list(find_missing(name, named)) == []


def test_missing_parts_are_found() -> None:
    def planted(x: int, *, y: int) -> int:
        """Add.

        Args:
            x: one number.
        """
        return x + y

    assert list(find_missing("planted", planted)) == ["y", "Example:"]


def find_missing(name: str, named: Any) -> Iterator[str]:
    """Yield arguments without a meaning, and sections that are missing."""
    text = "\n".join(map(str, find_texts(named)))
    for argument in find_arguments(named):
        if not re.search(rf"^    \**{argument}: \S", text, re.MULTILINE):
            yield argument
    if is_used_by_calling(named) and name not in WITHOUT_EXAMPLE and "Example:" not in text:
        yield "Example:"


def find_texts(named: Any) -> Iterator[str]:
    """Yield the docstring, and those of base classes, which describe inherited arguments."""
    yield from (inspect.getdoc(each) or "" for each in (named.__mro__ if isinstance(named, type) else [named]))


def find_arguments(named: Any) -> list[str]:
    if is_typeddict(named):
        return list(named.__annotations__)
    made = vars(named).get("__init__") if isinstance(named, type) else named
    if made is None or vars(named).get("_is_protocol"):
        return []
    return [each for each in inspect.signature(made).parameters if each != "self"]


def is_used_by_calling(named: Any) -> bool:
    """Return whether users write a call; they only read results, and only derive from protocols."""
    is_record = hasattr(named, "__dataclass_fields__") or hasattr(named, "_fields") or is_typeddict(named)
    return not (is_record or (isinstance(named, type) and issubclass(named, Exception | Warning)))
