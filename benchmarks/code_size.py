"""Count statements, docstring lines and comment lines of the project.

    python -m benchmarks.code_size [--root CHECKOUT] [--json FILE]

A statement is a node of Python's syntax tree, docstrings excluded, so line breaks and formatting change no figure.
"""

import argparse
import ast
import io
import json
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

PARTS = {"packages": ("uumamba", "data_prep"), "tests": ("tests",), "benchmarks": ("benchmarks",)}


def measure(files: Iterable[Path]) -> dict[str, int]:
    r"""Sum the figures of Python files.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "a.py"
        >>> _ = file.write_text('def f():\n    "Doc."\n    return 1  # why\n')
        >>> measure([file])
        {'files': 1, 'lines': 3, 'statements': 2, 'docstring_lines': 1, 'comment_lines': 1}
    """
    total = Counter(files=0, lines=0, statements=0, docstring_lines=0, comment_lines=0)
    for file in files:
        text = file.read_text(encoding="utf-8")
        nodes = list(ast.walk(ast.parse(text)))
        docstrings = list(_find_docstrings(nodes))
        total["files"] += 1
        total["lines"] += len(text.splitlines())
        total["statements"] += sum(isinstance(node, ast.stmt) for node in nodes) - len(docstrings)
        total["docstring_lines"] += sum((each.end_lineno or 0) - each.lineno + 1 for each in docstrings)
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        total["comment_lines"] += sum(token.type == tokenize.COMMENT for token in tokens)
    return dict(total)


def _find_docstrings(nodes: Iterable[ast.AST]) -> Iterator[ast.stmt]:
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from node.body[: ast.get_docstring(node, clean=False) is not None]


def main(given: Sequence[str] | None = None) -> None:
    """Print one row per part of the project."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(), help="folder of a checkout")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args(given)
    rows = {}
    for part, folders in PARTS.items():
        rows[part] = measure(sorted(file for folder in folders for file in (arguments.root / folder).rglob("*.py")))
        print(f"{part:12}", *(f"{key} {value:6}" for key, value in rows[part].items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
