"""Drawing of the packages and their imports, for CONTRIBUTING.

Run ``python -m benchmarks.house`` to write ``docs/pictures/house.svg`` and the table in CONTRIBUTING.md, with
``--check`` to report only whether they are up to date. Rows are levels: a package stands one above the highest that it
imports.
"""

import argparse
import ast
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path

from benchmarks.marked_text import fill_markers
from benchmarks.result_file import ROOT
from uumamba.runtime.files import write_text

PAGE, PICTURE = "CONTRIBUTING.md", "docs/pictures/house.svg"
TOP, OWN = "uumamba", ("uumamba", "data_prep")
BOX, GAP, HEIGHT, ROW, MARGIN = 138, 12, 30, 62, 12
LONGEST = 17
"""Letters of a name that fit into a box."""
STYLE = (
    "text{font:13px sans-serif;fill:#123;text-anchor:middle}rect{fill:#e3f2f1;stroke:#00796b}"
    "line{stroke:#78909c;stroke-width:1}.paper{fill:#fff;stroke:none}"
)

Imports = Mapping[str, frozenset[str]]


def main(given: Sequence[str] | None = None) -> int:
    """Write drawing and table, or check them; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a file is out of date")
    options = parser.parse_args(given)
    imports, page = read_imports(ROOT), ROOT / PAGE
    table = "\n" + "".join(_write_table(ROOT, imports)) + "\n"
    texts = {
        page: fill_markers(page.read_text(encoding="utf-8"), "house", table),
        ROOT / PICTURE: draw(imports),
    }
    old = [path for path, text in texts.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if options.check:
        print(*(f"{path} is out of date; run python -m benchmarks.house" for path in old), sep="\n", file=sys.stderr)
        return 1 if old else 0
    for path in old:
        write_text(path, texts[path])
    return 0


def read_imports(root: Path) -> Imports:
    """Read which packages each package imports, inside functions too."""
    found: dict[str, set[str]] = {}
    for file in sorted(path for name in OWN for path in (root / name).rglob("*.py")):
        package = name_package(".".join(file.relative_to(root).with_suffix("").parts))
        if package:
            targets = {name_package(module) for module in _list_modules(ast.parse(file.read_text(encoding="utf-8")))}
            found.setdefault(package, set()).update(targets - {package, ""})
    return {package: frozenset(targets) for package, targets in found.items()}


def name_package(module: str) -> str:
    """Return the package of a module; empty for others'.

    Example:
        >>> [name_package(name) for name in ("uumamba.optim.sam", "data_prep.acdc", "torch.nn", "uumamba.cli")]
        ['optim', 'data_prep', '', 'cli']
    """
    first, *rest = module.split(".")
    if first == TOP:
        return rest[0] if rest and not rest[0].startswith("__") else ""
    return first if first in OWN else ""


def _list_modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def list_levels(imports: Imports) -> list[list[str]]:
    """Group packages by level, the lowest first.

    Example:
        >>> list_levels({"a": frozenset(), "b": frozenset("a"), "c": frozenset("ab")})
        [['a'], ['b'], ['c']]
    """

    @cache
    def level(package: str) -> int:
        return 1 + max((level(each) for each in imports[package]), default=-1)

    heights = {package: level(package) for package in sorted(imports)}
    return [[name for name, own in heights.items() if own == height] for height in range(max(heights.values()) + 1)]


def list_direct(imports: Imports) -> list[tuple[str, str]]:
    """List the imports that no other import implies.

    Example:
        >>> list_direct({"a": frozenset(), "b": frozenset("a"), "c": frozenset("ab")})
        [('b', 'a'), ('c', 'b')]
    """

    @cache
    def below(package: str) -> frozenset[str]:
        return imports[package].union(*map(below, imports[package]))

    return [
        (package, target)
        for package in sorted(imports)
        for target in sorted(imports[package])
        if not any(target in below(other) for other in imports[package])
    ]


def draw(imports: Imports) -> str:
    """Draw packages as boxes on levels, with lines for direct imports."""
    levels = list_levels(imports)
    width = max(map(len, levels)) * (BOX + GAP) - GAP + 2 * MARGIN
    height = len(levels) * ROW - ROW + HEIGHT + 2 * MARGIN
    centres = {
        name: ((width - (len(names) - 1) * (BOX + GAP)) / 2 + place * (BOX + GAP), height - MARGIN - row * ROW - HEIGHT)
        for row, names in enumerate(levels)
        for place, name in enumerate(names)
    }
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        "<title>Packages of uumamba; imports go down only</title>",
        f'<style>{STYLE}</style><rect class="paper" width="{width}" height="{height}"/>',
        *_draw_lines(list_direct(imports), centres),
        *_draw_boxes(centres),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _draw_lines(edges: Iterable[tuple[str, str]], centres: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    for upper, lower in edges:
        (x, y), (to_x, to_y) = centres[upper], centres[lower]
        yield f'<line x1="{x:g}" y1="{y + HEIGHT:g}" x2="{to_x:g}" y2="{to_y:g}"/>'


def _draw_boxes(centres: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    for name, (x, y) in centres.items():
        yield f'<rect x="{x - BOX / 2:g}" y="{y:g}" width="{BOX}" height="{HEIGHT}" rx="4"/>'
        squeezed = f' textLength="{BOX - 12}"' if len(name) > LONGEST else ""
        yield f'<text x="{x:g}" y="{y + 20:g}"{squeezed}>{escape(name)}</text>'


def _write_table(root: Path, imports: Imports) -> Iterator[str]:
    direct = list_direct(imports)
    yield "| package | what it is | imports, and what these import |\n| --- | --- | --- |\n"
    for package in (name for names in reversed(list_levels(imports)) for name in names):
        targets = ", ".join(f"`{target}`" for upper, target in direct if upper == package)
        yield f"| `{package}` | {_read_purpose(root, package)} | {targets} |\n"


def _read_purpose(root: Path, package: str) -> str:
    parent = root if package in OWN else root / TOP
    file = parent / package / "__init__.py"
    text = ast.get_docstring(ast.parse((file if file.exists() else parent / f"{package}.py").read_text("utf-8")))
    return (text or "").splitlines()[0].replace("``", "`").replace("|", "\\|").rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
