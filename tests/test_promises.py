"""Tests that the packages read no pickle and run no data.

They also use no network and no environment variables for configuration.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

FORBIDDEN_MODULES = {
    **dict.fromkeys(
        ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"), "opening it runs code"
    ),
    **dict.fromkeys(("socket", "ssl", "urllib.request", "http", "ftplib", "smtplib"), "no network"),
    **dict.fromkeys(("requests", "httpx", "aiohttp", "urllib3", "huggingface_hub", "gdown"), "no network"),
    **dict.fromkeys(("torch.hub", "torch.utils.model_zoo", "monai.apps"), "no network"),
    "code": "no code from data",
}
FORBIDDEN_BUILTINS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_CALLS = {
    "torch.hub.load": "no network",
    "torch.hub.load_state_dict_from_url": "no network",
    "torch.utils.model_zoo.load_url": "no network",
    "pandas.read_pickle": "opening it runs code",
    "yaml.load": "use yaml.safe_load",
    "yaml.unsafe_load": "use yaml.safe_load",
    "yaml.full_load": "use yaml.safe_load",
    "os.system": "no shell",
    "os.popen": "no shell",
    "os.getenv": "environment variables configure nothing",
    "os.environ.get": "environment variables configure nothing",
    "pydoc.locate": "no import paths from data",
}
ENVIRONMENT = "os.environ"
CONSTANTS = "a dictionary of constants"
REQUIRED_KEYWORDS = {"torch.load": ("weights_only", True), "numpy.load": ("allow_pickle", False)}


def list_sources(root: Path) -> list[Path]:
    """List every Python file of the wheel."""
    return sorted(file for package in ("uumamba", "data_prep", "configs") for file in (root / package).rglob("*.py"))


def test_the_packages_keep_every_promise(repository: Path) -> None:
    files = list_sources(repository)
    assert repository / "uumamba" / "runtime" / "files.py" in files
    assert [complaint for file in files for complaint in find_breaches(file)] == []


def test_every_promise_of_security_md_names_tests_that_exist(repository: Path) -> None:
    text = (repository / "SECURITY.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if "| `tests" in line]
    assert len(rows) == 8
    for path in re.findall("`((?:tests|benchmarks)/[^`]*)`", "".join(rows)):
        assert (repository / path).exists(), path


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("import pickle", "pickle: opening it runs code"),
        ("def f():\n    from joblib import load", "joblib.load: opening it runs code"),
        ("from urllib import request", "urllib.request: no network"),
        ("import urllib.request as web", "urllib.request: no network"),
        ("import http.client", "http.client: no network"),
        ("import torch\ntorch.hub.load('a', 'b')", "torch.hub.load: no network"),
        ("from torch import hub", "torch.hub: no network"),
        ("eval('1')", "eval: no code from data"),
        ("exec('a = 1')", "exec: no code from data"),
        ("__import__('os')", "__import__: no code from data"),
        ("import importlib\nimportlib.import_module(name)", "importlib.import_module: no import paths"),
        ("import importlib\nHOMES = {'a': b}\nimportlib.import_module(HOMES[name])", "importlib.import_module: no"),
        ("import yaml\nyaml.load(text)", "yaml.load: use yaml.safe_load"),
        ("from yaml import load as read\nread(text)", "yaml.load: use yaml.safe_load"),
        ("import torch\ntorch.load(path)", "torch.load: needs weights_only=True"),
        ("import torch as t\nt.load(path, weights_only=False)", "torch.load: needs weights_only=True"),
        ("from torch import load\nload(path)", "torch.load: needs weights_only=True"),
        ("import numpy as np\nnp.load(path)", "numpy.load: needs allow_pickle=False"),
        ("import numpy as np\nnp.load(path, allow_pickle=True)", "numpy.load: needs allow_pickle=False"),
        ("import os\nos.system('ls')", "os.system: no shell"),
        ("import subprocess\nsubprocess.run('ls', shell=True)", "subprocess.run: no shell"),
        ("import os\na = os.environ['A']", "os.environ: environment variables configure nothing"),
        ("from os import environ\na = environ.get('A')", "os.environ.get: environment variables"),
    ],
)
def test_a_planted_breach_is_found(tmp_path: Path, source: str, complaint: str) -> None:
    file = tmp_path / "planted.py"
    file.write_text(source)
    assert any(complaint in found for found in find_breaches(file)), list(find_breaches(file))


@pytest.mark.parametrize(
    "source",
    [
        "net.eval()",
        "import re\nre.compile('a')",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import torch\ntorch.load(path, weights_only=True)",
        "from urllib.parse import quote",
        "import torch\ntorch.compile(net)",
        "import importlib\nimportlib.import_module('mamba_ssm')",
        "import importlib\nHOMES = {'a': 'json'}\nimportlib.import_module(HOMES[name])",
        "from safetensors.torch import load\nload(content)",
        "import os\nos.environ['OMP_NUM_THREADS'] = '1'",
    ],
)
def test_code_that_only_looks_like_a_breach_passes(tmp_path: Path, source: str) -> None:
    file = tmp_path / "innocent.py"
    file.write_text(source)
    assert list(find_breaches(file)) == []


def find_breaches(file: Path) -> Iterator[str]:
    """Yield every forbidden import, call and read of a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    names = dict(find_imported_names(tree)) | dict.fromkeys(find_constant_tables(tree), CONSTANTS)
    for node in ast.walk(tree):
        for complaint in find_node_breaches(node, names):
            yield f"{file}:{node.lineno}: {complaint}"


def find_node_breaches(node: ast.AST, names: dict[str, str]) -> Iterator[str]:
    """Yield the breaches of one node of the syntax tree."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from find_import_breaches(node)
    elif isinstance(node, ast.Call):
        yield from find_call_breaches(node, names)
    elif (
        isinstance(node, ast.Subscript)
        and isinstance(node.ctx, ast.Load)
        and resolve_name(node.value, names) == ENVIRONMENT
    ):
        yield "os.environ: environment variables configure nothing"


def find_import_breaches(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Yield forbidden imports: pickle readers, code execution, network."""
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    else:
        modules = [f"{node.module}.{alias.name}" for alias in node.names]
    for module in modules:
        for forbidden, reason in FORBIDDEN_MODULES.items():
            if f"{module}.".startswith(f"{forbidden}."):
                yield f"{module}: {reason}"


def find_call_breaches(node: ast.Call, names: dict[str, str]) -> Iterator[str]:
    """Yield forbidden calls, and calls without their required keyword."""
    called = resolve_name(node.func, names)
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    if isinstance(node.func, ast.Name) and called in FORBIDDEN_BUILTINS:
        yield f"{called}: no code from data"
    if called in FORBIDDEN_CALLS:
        yield f"{called}: {FORBIDDEN_CALLS[called]}"
    if called in REQUIRED_KEYWORDS:
        keyword, value = REQUIRED_KEYWORDS[called]
        given = keywords.get(keyword)
        if not (isinstance(given, ast.Constant) and given.value is value):
            yield f"{called}: needs {keyword}={value}"
    if called == "importlib.import_module":
        path = node.args[0]
        is_listed = isinstance(path, ast.Subscript) and resolve_name(path.value, names) == CONSTANTS
        if not (isinstance(path, ast.Constant) or is_listed):
            yield f"{called}: no import paths from data"
    shell = keywords.get("shell")
    if called.startswith("subprocess.") and shell is not None and ast.unparse(shell) != "False":
        yield f"{called}: no shell"


def find_imported_names(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield local and full name of every import: ``np`` is ``numpy``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname, alias.name) if alias.asname else (alias.name.partition(".")[0],) * 2
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def find_constant_tables(tree: ast.Module) -> Iterator[str]:
    """Yield the names of a module's dictionaries of constants."""
    for node in tree.body:
        values = node.value.values if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) else [None]
        if all(isinstance(value, ast.Constant) for value in values):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def resolve_name(node: ast.AST, names: dict[str, str]) -> str:
    """Return ``numpy.load`` for ``np.load``; empty for anything but a plain dotted name."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([names.get(node.id, node.id), *reversed(parts)])
