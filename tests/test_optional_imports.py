"""Tests that generic packages work without the medical dependencies."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

MEDICAL = ("monai", "nibabel", "SimpleITK", "mamba_ssm", "causal_conv1d", "pydicom")
TORCH_ONLY = (
    *("ops", "nets", "losses", "optim"),
    *("domain_generalization", "quantization", "federated", "unlearning"),
)
GENERIC = (*TORCH_ONLY, "metrics", "training", "inference")
LOADED_AT_FIRST_USE = ("uumamba.ops.triton_kernels", "uumamba.federated.nvflare_components")
"""Kernels are loaded by the first selective scan on a GPU, NVFlare by the first job for it."""

SCRIPT = """
import importlib, json, sys
import numpy, torch, torch.nn.functional

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {medical!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
before = set(sys.modules)
for name in {torch_only!r}:
    importlib.import_module(name)
tops = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(json.dumps(sorted(tops - set(sys.stdlib_module_names) - {{"uumamba", "torch", "numpy"}})))
for name in {generic!r}:
    importlib.import_module(name)
"""

TRAIN_ONE_STEP = """
from uumamba.losses import CrossEntropyLoss, SoftDiceLoss, UncertaintyWeightedLoss
from uumamba.nets import UMambaBot
from uumamba.optim import SAM

net = UMambaBot(2, 1, 3, features=(4, 8), strides=(1, 2), deep_supervision=False)
loss = UncertaintyWeightedLoss({"region": SoftDiceLoss(), "distribution": CrossEntropyLoss()})
image, label = torch.randn(2, 1, 16, 16), torch.randint(0, 3, (2, 1, 16, 16))
optimizer = SAM([*net.parameters(), *loss.parameters()], lambda groups: torch.optim.SGD(groups, lr=0.01))
assert optimizer.step(lambda: loss(net(image), label)).isfinite()
"""


def list_modules(root: Path, packages: tuple[str, ...]) -> list[str]:
    """List the dotted names of every module in some packages."""
    files = [file for folder in packages for file in sorted((root / "uumamba" / folder).rglob("*.py"))]
    names = (".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for file in files)
    return [name for name in names if name not in LOADED_AT_FIRST_USE]


def load_packages(root: Path, *, then: str = "") -> tuple[list[str], str]:
    """Load the generic packages in a new interpreter.

    Return the loaded packages other than torch, and the errors.
    """
    torch_only, generic = (list_modules(root, packages) for packages in (TORCH_ONLY, GENERIC))
    script = textwrap.dedent(SCRIPT.format(medical=MEDICAL, torch_only=torch_only, generic=generic)) + then
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, encoding="utf-8")
    return json.loads(done.stdout or "[]"), done.stderr


def test_generic_packages_load_and_train_with_torch_only(repository: Path) -> None:
    assert {"uumamba.nets", "uumamba.losses", "uumamba.optim"} <= set(list_modules(repository, GENERIC))
    assert load_packages(repository, then=TRAIN_ONE_STEP) == ([], "")


def test_planted_imports_are_found(tmp_path: Path) -> None:
    for folder, package in (("", "math"), ("optim", "scipy"), ("training", "SimpleITK")):
        (tmp_path / "uumamba" / folder).mkdir()
        (tmp_path / "uumamba" / folder / "__init__.py").write_text(f"import {package}")
    others, errors = load_packages(tmp_path)
    assert "scipy" in others
    assert "SimpleITK is blocked" in errors


def test_the_command_names_a_package_that_is_missing(repository: Path) -> None:
    code = "import sys; sys.modules['typer'] = None; from uumamba.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("uumamba: the command line needs the package typer, which is missing. Fix: pip inst")
    assert "Traceback" not in done.stderr
