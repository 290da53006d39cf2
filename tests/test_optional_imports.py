"""The generic rooms serve someone without medical code: they load and run with the medical packages blocked."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

MEDICAL = ("monai", "nibabel", "SimpleITK", "mamba_ssm", "causal_conv1d", "pydicom")
TORCH_ONLY_ROOMS = (
    *("ops", "nets", "losses", "optim"),
    *("domain_generalization", "quantization", "federated", "unlearning"),
)
GENERIC_ROOMS = (*TORCH_ONLY_ROOMS, "metrics", "training", "inference")

BLOCK = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {MEDICAL!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
"""

TRAIN_ONE_STEP = """
import torch
from uumamba.losses import CrossEntropyLoss, SoftDiceLoss, UncertaintyWeightedLoss
from uumamba.nets import UMambaBot
from uumamba.optim import SAM

net = UMambaBot(2, 1, 3, features=(4, 8), strides=(1, 2), deep_supervision=False)
loss = UncertaintyWeightedLoss({"region": SoftDiceLoss(), "distribution": CrossEntropyLoss()})
image, label = torch.randn(2, 1, 16, 16), torch.randint(0, 3, (2, 1, 16, 16))
optimizer = SAM([*net.parameters(), *loss.parameters()], lambda groups: torch.optim.SGD(groups, lr=0.01))
assert optimizer.step(lambda: loss(net(image), label)).isfinite()
"""


# Kernels are loaded when the first scan on a GPU needs them.
LOADED_AT_FIRST_USE = ("uumamba.ops.triton_kernels",)


def rooms_present(root: Path, rooms: tuple[str, ...]) -> list[str]:
    """Dotted names of every module in those of the rooms that exist."""
    files = [file for room in rooms for file in sorted((root / "uumamba" / room).rglob("*.py"))]
    names = (".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for file in files)
    return [name for name in names if name not in LOADED_AT_FIRST_USE]


def run(code: str, *, root: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter whose first path entry is ``root``."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, cwd=root, capture_output=True, encoding="utf-8")


def import_blocked(root: Path) -> subprocess.CompletedProcess[str]:
    """Import every module of the generic rooms with the medical packages blocked."""
    modules = rooms_present(root, GENERIC_ROOMS)
    return run(f"{BLOCK}\nimport importlib\nfor name in {modules!r}:\n    importlib.import_module(name)\n", root=root)


def packages_beside_torch(root: Path) -> list[str]:
    """Packages that the torch-only rooms load besides what torch and NumPy load by themselves."""
    modules = rooms_present(root, TORCH_ONLY_ROOMS)
    done = run(
        f"""
        import importlib, json, sys
        import numpy, torch, torch.nn.functional
        before = set(sys.modules)
        for name in {modules!r}:
            importlib.import_module(name)
        tops = {{name.partition(".")[0] for name in set(sys.modules) - before}}
        print(json.dumps(sorted(tops - set(sys.stdlib_module_names) - {{"uumamba", "torch", "numpy"}})))
        """,
        root=root,
    )
    assert done.returncode == 0, done.stderr
    loaded: list[str] = json.loads(done.stdout)
    return loaded


def test_there_are_generic_rooms_to_import(repository: Path) -> None:
    assert {"uumamba.nets", "uumamba.losses", "uumamba.optim"} <= set(rooms_present(repository, GENERIC_ROOMS))


def test_generic_rooms_load_without_the_medical_packages(repository: Path) -> None:
    done = import_blocked(repository)
    assert done.returncode == 0, done.stderr


def test_a_network_trains_without_the_medical_packages(repository: Path) -> None:
    done = run(BLOCK + TRAIN_ONE_STEP, root=repository)
    assert done.returncode == 0, done.stderr


def test_torch_only_rooms_load_nothing_beside_torch(repository: Path) -> None:
    assert packages_beside_torch(repository) == []


@pytest.mark.parametrize("package", ["monai", "nibabel", "SimpleITK", "mamba_ssm"])
def test_a_planted_medical_import_is_found(tmp_path: Path, package: str) -> None:
    plant_room(tmp_path, f"import {package}.planted")
    assert f"{package} is blocked" in import_blocked(tmp_path).stderr


def test_a_planted_heavy_import_is_found(tmp_path: Path) -> None:
    plant_room(tmp_path, "import scipy")
    assert "scipy" in packages_beside_torch(tmp_path)


def plant_room(root: Path, line: str) -> None:
    """A package ``uumamba`` with one room, whose only module holds one line."""
    (root / "uumamba" / "optim").mkdir(parents=True)
    (root / "uumamba" / "__init__.py").write_text("")
    (root / "uumamba" / "optim" / "__init__.py").write_text(line)
