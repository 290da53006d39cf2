"""Imports go down only, read from the syntax trees, inside functions too; and names and numbers of files."""

import ast
import graphlib
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
    """One import statement: importer, target, and whether it is inside a function."""

    file: Path
    line: int
    importer: str
    target: str
    inside_function: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.importer} imports {self.target}"


SAME_NAME_ALLOWED = {"__init__", "__main__", "dice", "cl_dice"}
"""Package files, and terms that a loss and a metric share."""
MOST_PIPELINE_FILES = 16


@pytest.fixture(scope="module")
def house(repository: Path) -> "House":
    return House(repository)


def test_imports_go_down_only(house: "House") -> None:
    assert list(violations(house)) == []


def test_no_modules_import_each_other_in_a_circle(house: "House") -> None:
    assert circle(house) is None


def test_the_walk_sees_every_module_and_its_imports(house: "House") -> None:
    assert {"uumamba", "uumamba.runtime.errors", "uumamba.runtime.files", "uumamba.data.case"} <= house.modules.keys()
    edges = {(found.importer, found.target) for found in house.imports}
    assert ("uumamba.data.case", "uumamba.runtime.files") in edges
    assert ("uumamba.runtime.files", "uumamba.runtime.errors") in edges


def test_no_two_files_share_a_name(house: "House") -> None:
    files: dict[str, list[str]] = {}
    for file in house.modules.values():
        files.setdefault(file.stem, []).append(file.relative_to(house.root).as_posix())
    shared = {name: paths for name, paths in files.items() if len(paths) > 1 and name not in SAME_NAME_ALLOWED}
    assert shared == {}


def test_pipelines_has_one_file_a_verb_and_few_others(repository: Path) -> None:
    files = {file.stem for file in (repository / "uumamba" / "pipelines").glob("*.py")}
    assert {"prepare", "train", "predict", "evaluate", "report", "run", "demo"} <= files
    assert len(files) <= MOST_PIPELINE_FILES


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
        ("uumamba/attic/planted.py", "import math", "attic is on no floor"),
        ("data_prep/planted.py", "import uumamba.pipelines", "data_prep may not import pipelines"),
        ("data_prep/planted.py", "import uumamba.nets", "data_prep may not import nets"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, line: str, complaint: str) -> None:
    plant(tmp_path / file, line)
    found = list(violations(House(tmp_path)))
    assert any(complaint in each for each in found), found


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    plant(tmp_path / "uumamba/data/planted_a.py", "from uumamba.data import planted_b")
    plant(tmp_path / "uumamba/data/planted_b.py", "def later():\n    from uumamba.data.planted_a import thing")
    assert set(circle(House(tmp_path)) or ()) == {"uumamba.data.planted_a", "uumamba.data.planted_b"}


class House:
    """Modules of the two packages below a folder, and their imports."""

    def __init__(self, root: Path) -> None:
        self.root = root
        files = [file for package in ("uumamba", "data_prep") for file in sorted((root / package).rglob("*.py"))]
        self.modules = {
            ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files
        }
        self.imports = list(imports_of(self.modules))


def violations(house: House) -> Iterator[str]:
    """Yield every broken rule, as one sentence with file and line."""
    for module in house.modules:
        if module != "uumamba" and room_of(module) not in FLOOR_OF:
            yield f"{module}: {room_of(module)} is on no floor; give it one in design and test"
    for found in house.imports:
        complaint = complaint_about(found)
        if complaint:
            yield f"{found}; {complaint}"


def complaint_about(found: Import) -> str | None:
    """Name the rule that an import breaks, or None."""
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
    """Name the rule that an import of one of our own modules breaks, or None."""
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
    """Name a module's room: ``optim`` of ``uumamba.optim.sam``, ``data_prep`` of ``data_prep.acdc``."""
    parts = module.split(".")
    return parts[1] if parts[0] == "uumamba" and len(parts) > 1 else parts[0]


def circle(house: House) -> list[str] | None:
    """Find modules that import each other in a circle."""
    graph: dict[str, set[str]] = {module: set() for module in house.modules}
    for found in house.imports:
        if found.target in graph and found.target != found.importer:
            graph[found.importer].add(found.target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return None


def imports_of(modules: dict[str, Path]) -> Iterator[Import]:
    """Yield every import of every module, anywhere in the file."""
    functions = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    for module, file in modules.items():
        tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
        bodies = (node for node in ast.walk(tree) if isinstance(node, functions))
        inside = {id(node) for body in bodies for node in ast.walk(body)}
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(tree):
            for target in targets_of(node, package, modules):
                yield Import(file, node.lineno, module, target, id(node) in inside)


def targets_of(node: ast.AST, package: str, modules: dict[str, Path]) -> Iterator[str]:
    """Yield the modules that one statement imports: ``from uumamba import data`` is ``uumamba.data``."""
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


def plant(file: Path, line: str) -> None:
    """Add lines to a module of an empty house, or make it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(f"\n{line}\n")
