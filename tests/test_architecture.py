"""Imports go down only: the house of the packages, read from their syntax trees, inside functions too."""

import ast
import graphlib
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

FLOORS = (
    ("runtime", "types"),
    ("ops",),
    ("nets", "losses", "optim", "metrics", "domain_generalization", "quantization", "federated", "unlearning"),
    ("data",),
    ("data_prep",),
    ("training", "inference", "evaluation"),
    ("config",),
    ("pipelines",),
    ("doctor",),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
GROUND = {*FLOORS[0], *FLOORS[1]}
TORCH_ONLY = {*FLOORS[2]} - {"metrics"}
ALLOWED_BELOW = dict.fromkeys(TORCH_ONLY, GROUND) | {"data_prep": GROUND | {"data", "metrics"}}
FORBIDDEN_BELOW = {("training", "data"), ("inference", "data")}
ONLY_IMPORTED_BY = {"data_prep": {"pipelines", "doctor"}, "config": {"pipelines", "doctor", "cli"}}
ONLY_KNOWN_TO = {
    "nibabel": {"data", "data_prep"},
    "SimpleITK": {"data", "data_prep"},
    "pydicom": {"data", "data_prep"},
    "monai": {"data", "config"},
}


@dataclass(frozen=True)
class Import:
    """One import statement: who (file, line), what, and whether it runs when the file is loaded."""

    file: Path
    line: int
    importer: str
    target: str
    inside_function: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.importer} imports {self.target}"


def test_imports_go_down_only(repository: Path) -> None:
    assert list(violations(repository)) == []


def test_no_modules_import_each_other_in_a_circle(repository: Path) -> None:
    assert circle(repository) is None


def test_the_walk_sees_every_module_and_its_imports(repository: Path) -> None:
    modules = modules_of(repository)
    assert {"uumamba", "uumamba.runtime.errors", "uumamba.runtime.files", "uumamba.data.case"} <= modules.keys()
    edges = {(found.importer, found.target) for found in imports_of(repository)}
    assert ("uumamba.data.case", "uumamba.runtime.files") in edges
    assert ("uumamba.runtime.files", "uumamba.runtime.errors") in edges


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("uumamba/optim/planted.py", "import uumamba.training", "optim may not import training"),
        ("uumamba/optim/planted.py", "def f():\n    from uumamba import training", "optim may not import training"),
        ("uumamba/optim/planted.py", "from ..data import case", "optim may not import data"),
        ("uumamba/optim/planted.py", "import importlib\nimportlib.import_module('uumamba.cli')", "import cli"),
        ("uumamba/losses/planted.py", "from uumamba.metrics import dice", "losses may not import metrics"),
        ("uumamba/nets/planted.py", "import sklearn", "nets may import torch, numpy and scipy only"),
        ("uumamba/training/planted.py", "from uumamba.data.case import Case", "training may not import data"),
        ("uumamba/training/planted.py", "from uumamba import inference", "training may not import inference"),
        ("uumamba/evaluation/planted.py", "import data_prep.acdc", "evaluation may not import data_prep"),
        ("uumamba/cli.py", "import data_prep.acdc", "cli may not import data_prep"),
        ("uumamba/training/planted.py", "def f():\n    import nibabel", "training may not know nibabel"),
        ("uumamba/config/planted.py", "import monai.losses", "monai only inside a function"),
        ("uumamba/data/planted.py", "import tests.conftest", "which is no part of the packages"),
        ("uumamba/runtime/errors.py", "import uumamba.ops", "runtime may not import ops"),
        ("uumamba/__init__.py", "import uumamba.runtime.errors", "uumamba/__init__.py may import nothing"),
        ("uumamba/attic/planted.py", "import math", "attic stands on no floor"),
        ("data_prep/planted.py", "import uumamba.pipelines", "data_prep may not import pipelines"),
        ("data_prep/planted.py", "import uumamba.nets", "data_prep may not import nets"),
    ],
)
def test_a_planted_violation_is_found(repository: Path, tmp_path: Path, file: str, line: str, complaint: str) -> None:
    house = copy_of_house(repository, tmp_path)
    plant(house / file, line)
    assert any(complaint in str(found) for found in violations(house)), list(violations(house))


def test_a_planted_circle_is_found(repository: Path, tmp_path: Path) -> None:
    house = copy_of_house(repository, tmp_path)
    plant(house / "uumamba/data/planted_a.py", "from uumamba.data import planted_b")
    plant(house / "uumamba/data/planted_b.py", "def later():\n    from uumamba.data.planted_a import thing")
    assert set(circle(house) or ()) == {"uumamba.data.planted_a", "uumamba.data.planted_b"}


def violations(root: Path) -> Iterator[str]:
    """Every broken rule, as one sentence with file and line."""
    for module in modules_of(root):
        if module != "uumamba" and room_of(module) not in FLOOR_OF:
            yield f"{module}: {room_of(module)} stands on no floor; give it one in design and test"
    for found in imports_of(root):
        complaint = complaint_about(found)
        if complaint:
            yield f"{found}; {complaint}"


def complaint_about(found: Import) -> str | None:
    """The rule that an import breaks, or None."""
    importer, target = room_of(found.importer), room_of(found.target)
    top = found.target.partition(".")[0]
    if top in {"uumamba", "data_prep"}:
        return complaint_about_own(found.importer, importer, found.target, target)
    if top in {"tests", "benchmarks", "configs"}:
        return f"{importer} may not import {top}, which is no part of the packages"
    if importer not in ONLY_KNOWN_TO.get(top, {importer}):
        return f"{importer} may not know {top}; only {', '.join(sorted(ONLY_KNOWN_TO[top]))} may"
    if top == "monai" and not found.inside_function:
        return "monai only inside a function: importing it costs about four seconds"
    if importer in TORCH_ONLY and top not in sys.stdlib_module_names | {"torch", "numpy", "scipy"}:
        return f"{importer} may import torch, numpy and scipy only, besides the ground and the standard library"
    return None


def complaint_about_own(importing_module: str, importer: str, imported_module: str, target: str) -> str | None:
    """The rule that an import of one of our own modules breaks, or None."""
    if importing_module == "uumamba":
        return "uumamba/__init__.py may import nothing of ours"
    if imported_module == "uumamba" or importer == target:
        return None
    below = FLOOR_OF.get(target, len(FLOORS)) < FLOOR_OF.get(importer, -1)
    allowed = target in ALLOWED_BELOW.get(importer, {target}) and importer in ONLY_IMPORTED_BY.get(target, {importer})
    if below and allowed and (importer, target) not in FORBIDDEN_BELOW:
        return None
    return f"{importer} may not import {target}"


def room_of(module: str) -> str:
    """``uumamba.optim.sam`` is in the room ``optim``; ``data_prep.acdc`` in ``data_prep``."""
    parts = module.split(".")
    return parts[1] if parts[0] == "uumamba" and len(parts) > 1 else parts[0]


def circle(root: Path) -> list[str] | None:
    """Modules that import each other in a circle, or None."""
    graph: dict[str, set[str]] = {module: set() for module in modules_of(root)}
    for found in imports_of(root):
        if found.target in graph and found.target != found.importer:
            graph[found.importer].add(found.target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return None


def modules_of(root: Path) -> dict[str, Path]:
    """Dotted name and file of every module of the two packages."""
    files = [file for package in ("uumamba", "data_prep") for file in sorted((root / package).rglob("*.py"))]
    return {".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports_of(root: Path) -> Iterator[Import]:
    """Every import of every module, wherever in the file it stands."""
    modules = modules_of(root)
    for module, file in modules.items():
        tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
        inside = {id(node) for function in ast.walk(tree) if is_function(function) for node in ast.walk(function)}
        for node in ast.walk(tree):
            for target in targets_of(node, package_of(module, file), modules):
                yield Import(file, node.lineno, module, target, id(node) in inside)


def targets_of(node: ast.AST, package: str, modules: dict[str, Path]) -> Iterator[str]:
    """The modules that one statement imports: ``from uumamba import data`` is ``uumamba.data``."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
        source = ".".join(filter(None, (base, node.module)))
        for alias in node.names:
            whole = f"{source}.{alias.name}"
            is_module = whole in modules or (source == "uumamba" and alias.name in FLOOR_OF)
            yield whole if is_module else source
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
        yield from (name.value for name in node.args[:1] if isinstance(name, ast.Constant))


def package_of(module: str, file: Path) -> str:
    """The package that a relative import starts from."""
    return module if file.name == "__init__.py" else module.rpartition(".")[0]


def is_function(node: ast.AST) -> bool:
    """Whether the code in a node runs only when called."""
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def copy_of_house(repository: Path, folder: Path) -> Path:
    """The two packages copied, so that a violation can be planted."""
    for package in ("uumamba", "data_prep"):
        shutil.copytree(repository / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def plant(file: Path, line: str) -> None:
    """Add lines to a module, or make it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(f"\n{line}\n")
