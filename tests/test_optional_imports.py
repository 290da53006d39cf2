"""Generic rooms serve someone without medical code: they load and run with the medical packages blocked."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

MEDICAL = ("monai", "nibabel", "SimpleITK", "mamba_ssm", "causal_conv1d", "pydicom")
TORCH_ONLY_ROOMS = (
    *("ops", "nets", "losses", "optim"),
    *("domain_generalization", "quantization", "federated", "unlearning"),
)
GENERIC_ROOMS = (*TORCH_ONLY_ROOMS, "metrics", "training", "inference")
LOADED_AT_FIRST_USE = ("uumamba.ops.triton_kernels",)
"""Kernels are loaded when the first scan on a GPU needs them."""

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


def modules_of(root: Path, rooms: tuple[str, ...]) -> list[str]:
    """List the dotted names of every module in the rooms that exist."""
    files = [file for room in rooms for file in sorted((root / "uumamba" / room).rglob("*.py"))]
    names = (".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for file in files)
    return [name for name in names if name not in LOADED_AT_FIRST_USE]


def load_rooms(root: Path, *, then: str = "") -> tuple[list[str], str]:
    """Load the generic rooms in a fresh interpreter; return packages beside torch, and errors."""
    torch_only, generic = (modules_of(root, rooms) for rooms in (TORCH_ONLY_ROOMS, GENERIC_ROOMS))
    script = textwrap.dedent(SCRIPT.format(medical=MEDICAL, torch_only=torch_only, generic=generic)) + then
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, encoding="utf-8")
    return json.loads(done.stdout or "[]"), done.stderr


def test_generic_rooms_load_and_train_with_torch_alone(repository: Path) -> None:
    assert {"uumamba.nets", "uumamba.losses", "uumamba.optim"} <= set(modules_of(repository, GENERIC_ROOMS))
    assert load_rooms(repository, then=TRAIN_ONE_STEP) == ([], "")


def test_planted_imports_are_found(tmp_path: Path) -> None:
    for room, package in (("", "math"), ("optim", "scipy"), ("training", "SimpleITK")):
        (tmp_path / "uumamba" / room).mkdir()
        (tmp_path / "uumamba" / room / "__init__.py").write_text(f"import {package}")
    beside_torch, errors = load_rooms(tmp_path)
    assert "scipy" in beside_torch
    assert "SimpleITK is blocked" in errors
