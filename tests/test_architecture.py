"""Tests of the import rules, from the syntax trees of all modules.

Imports inside functions count. Also tested are names and numbers of files.
"""

import ast
import graphlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

LAYERS = (
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
LAYER_OF = {package: layer for layer, packages in enumerate(LAYERS) for package in packages}
LOWEST = {*LAYERS[0], *LAYERS[1]}
TORCH_ONLY = {*LAYERS[2]} - {"metrics"}
ALLOWED_BELOW = dict.fromkeys(TORCH_ONLY, LOWEST) | {"data_prep": LOWEST | {"data", "metrics"}}
FORBIDDEN_BELOW = {("training", "data"), ("inference", "data")}
ONLY_IMPORTED_BY = {"data_prep": {"pipelines", "doctor"}, "config": {"pipelines", "doctor", "cli"}}
ONLY_KNOWN_TO = {
    "nibabel": {"data", "data_prep"},
    "SimpleITK": {"data", "data_prep"},
    "pydicom": {"data", "data_prep"},
    "monai": {"data", "config"},
    "nvflare": {"federated"},
}

LOADED_AT_FIRST_USE = "uumamba.federated.nvflare_components"
"""Module of classes that derive from NVFlare's."""
ONLY_INSIDE_FUNCTIONS = {
    "monai": "importing it costs about four seconds",
    "nvflare": "it is optional",
    LOADED_AT_FIRST_USE: "it imports nvflare, which is optional",
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


SHARED_NAMES = {"__init__", "__main__", "dice", "cl_dice"}
"""Package files, and terms that a loss and a metric share."""
MAX_PIPELINE_FILES = 17


@pytest.fixture(scope="module")
def codebase(repository: Path) -> "Codebase":
    return Codebase(repository)


def test_imports_go_down_only(codebase: "Codebase") -> None:
    assert list(find_violations(codebase)) == []


def test_no_modules_import_each_other_in_a_cycle(codebase: "Codebase") -> None:
    assert find_cycle(codebase) is None


def test_the_walk_sees_every_module_and_its_imports(codebase: "Codebase") -> None:
    assert {
        "uumamba",
        "uumamba.runtime.errors",
        "uumamba.runtime.files",
        "uumamba.data.case",
    } <= codebase.modules.keys()
    edges = {(found.importer, found.target) for found in codebase.imports}
    assert ("uumamba.data.case", "uumamba.runtime.files") in edges
    assert ("uumamba.runtime.files", "uumamba.runtime.errors") in edges


def test_no_two_files_share_a_name(codebase: "Codebase") -> None:
    files: dict[str, list[str]] = {}
    for file in codebase.modules.values():
        files.setdefault(file.stem, []).append(file.relative_to(codebase.root).as_posix())
    shared = {name: paths for name, paths in files.items() if len(paths) > 1 and name not in SHARED_NAMES}
    assert shared == {}


def test_pipelines_has_one_file_per_verb_and_few_others(repository: Path) -> None:
    files = {file.stem for file in (repository / "uumamba" / "pipelines").glob("*.py")}
    assert {"prepare", "train", "predict", "unlearn", "evaluate", "report", "run", "demo"} <= files
    assert len(files) <= MAX_PIPELINE_FILES


def test_only_list_jobs_splits_the_cases(codebase: "Codebase", repository: Path) -> None:
    files = [*codebase.modules.values(), *(repository / "benchmarks").rglob("*.py")]
    assert find_callers(repository, files, "split_cases") == ["uumamba/pipelines/jobs.py: list_jobs"]


def test_a_planted_caller_is_found(tmp_path: Path) -> None:
    plant(tmp_path / "uumamba/a.py", "class C:\n    def f(self):\n        return [split.split_cases(x) for x in y]")
    plant(tmp_path / "uumamba/b.py", "sides = partial(split_cases, 1)")
    found = find_callers(tmp_path, sorted(tmp_path.rglob("*.py")), "split_cases")
    assert found == ["uumamba/a.py: f", "uumamba/b.py: <module>"]


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
        ("uumamba/federated/planted.py", "import nvflare.apis", "nvflare only inside a function"),
        (
            "uumamba/federated/planted.py",
            "from uumamba.federated.nvflare_components import TOPIC",
            "nvflare_components only inside a function",
        ),
        ("uumamba/unlearning/planted.py", "def f():\n    import nvflare", "unlearning may not know nvflare"),
        ("uumamba/data/planted.py", "import tests.conftest", "which is no part of the packages"),
        ("uumamba/runtime/errors.py", "import uumamba.ops", "runtime may not import ops"),
        ("uumamba/__init__.py", "import uumamba.runtime.errors", "uumamba/__init__.py may import nothing"),
        ("uumamba/attic/planted.py", "import math", "attic is in no layer"),
        ("data_prep/planted.py", "import uumamba.pipelines", "data_prep may not import pipelines"),
        ("data_prep/planted.py", "import uumamba.nets", "data_prep may not import nets"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, line: str, complaint: str) -> None:
    plant(tmp_path / file, line)
    found = list(find_violations(Codebase(tmp_path)))
    assert any(complaint in each for each in found), found


def test_a_planted_cycle_is_found(tmp_path: Path) -> None:
    plant(tmp_path / "uumamba/data/planted_a.py", "from uumamba.data import planted_b")
    plant(tmp_path / "uumamba/data/planted_b.py", "def later():\n    from uumamba.data.planted_a import thing")
    assert set(find_cycle(Codebase(tmp_path)) or ()) == {"uumamba.data.planted_a", "uumamba.data.planted_b"}


class Codebase:
    """Modules of the two packages below a folder, and their imports."""

    def __init__(self, root: Path) -> None:
        self.root = root
        files = [file for package in ("uumamba", "data_prep") for file in sorted((root / package).rglob("*.py"))]
        self.modules = {
            ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files
        }
        self.imports = list(find_imports(self.modules))


def find_violations(codebase: Codebase) -> Iterator[str]:
    """Yield every broken rule as a message with file and line."""
    for module in codebase.modules:
        if module != "uumamba" and find_package(module) not in LAYER_OF:
            yield f"{module}: {find_package(module)} is in no layer; add it to LAYERS"
    for found in codebase.imports:
        complaint = find_violation(found)
        if complaint:
            yield f"{found}; {complaint}"


def find_violation(found: Import) -> str | None:
    """Name the rule that an import breaks, or None."""
    importer, target = find_package(found.importer), find_package(found.target)
    top = found.target.partition(".")[0]
    for banned in {top, found.target} & ONLY_INSIDE_FUNCTIONS.keys():
        if not found.inside_function and found.importer != LOADED_AT_FIRST_USE:
            return f"{banned} only inside a function: {ONLY_INSIDE_FUNCTIONS[banned]}"
    if top in {"uumamba", "data_prep"}:
        return find_own_violation(found.importer, importer, found.target, target)
    if top in {"tests", "benchmarks", "configs"}:
        return f"{importer} may not import {top}, which is no part of the packages"
    if importer not in ONLY_KNOWN_TO.get(top, {importer}):
        return f"{importer} may not know {top}; only {', '.join(sorted(ONLY_KNOWN_TO[top]))} may"
    if importer in TORCH_ONLY and top not in sys.stdlib_module_names | {"torch", "numpy", "scipy", "nvflare"}:
        return f"{importer} may import torch, numpy and scipy only, the lowest packages and the standard library"
    return None


def find_own_violation(importing_module: str, importer: str, imported_module: str, target: str) -> str | None:
    """Name the rule that an import between our modules breaks, or None."""
    if importing_module == "uumamba":
        return "uumamba/__init__.py may import nothing of ours"
    if imported_module == "uumamba" or importer == target:
        return None
    below = LAYER_OF.get(target, len(LAYERS)) < LAYER_OF.get(importer, -1)
    allowed = target in ALLOWED_BELOW.get(importer, {target}) and importer in ONLY_IMPORTED_BY.get(target, {importer})
    if below and allowed and (importer, target) not in FORBIDDEN_BELOW:
        return None
    return f"{importer} may not import {target}"


def find_package(module: str) -> str:
    """Return a module's package: ``optim`` for ``uumamba.optim.sam``.

    It is ``data_prep`` for ``data_prep.acdc``.
    """
    parts = module.split(".")
    return parts[1] if parts[0] == "uumamba" and len(parts) > 1 else parts[0]


def find_cycle(codebase: Codebase) -> list[str] | None:
    """Find modules that import each other in a cycle."""
    graph: dict[str, set[str]] = {module: set() for module in codebase.modules}
    for found in codebase.imports:
        if found.target in graph and found.target != found.importer:
            graph[found.importer].add(found.target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return None


def find_callers(root: Path, files: Iterable[Path], name: str) -> list[str]:
    """List the functions that use another function of this name, as ``file: function``."""
    found = []
    for file in files:
        module = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
        owner = {id(node): "<module>" for node in ast.walk(module)}
        for body in ast.walk(module):  # outer functions come first
            if isinstance(body, ast.FunctionDef | ast.AsyncFunctionDef):
                owner |= {id(node): body.name for node in ast.walk(body)}
        uses = {
            owner[id(node)]
            for node in ast.walk(module)
            if isinstance(node, ast.Name | ast.Attribute) and getattr(node, "id", getattr(node, "attr", "")) == name
        }
        found += [f"{file.relative_to(root).as_posix()}: {use}" for use in sorted(uses)]
    return found


def find_imports(modules: dict[str, Path]) -> Iterator[Import]:
    """Yield every import of every module, anywhere in the file."""
    functions = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    for module, file in modules.items():
        tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
        bodies = (node for node in ast.walk(tree) if isinstance(node, functions))
        inside = {id(node) for body in bodies for node in ast.walk(body)}
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(tree):
            for target in find_targets(node, package, modules):
                yield Import(file, node.lineno, module, target, id(node) in inside)


def find_targets(node: ast.AST, package: str, modules: dict[str, Path]) -> Iterator[str]:
    """Yield the modules that a statement imports.

    ``from uumamba import data`` imports ``uumamba.data``.
    """
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
        source = ".".join(filter(None, (base, node.module)))
        for alias in node.names:
            whole = f"{source}.{alias.name}"
            is_module = whole in modules or (source == "uumamba" and alias.name in LAYER_OF)
            yield whole if is_module else source
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
        yield from (name.value for name in node.args[:1] if isinstance(name, ast.Constant))


def plant(file: Path, line: str) -> None:
    """Append lines to a module, which is created if absent."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(f"\n{line}\n")
