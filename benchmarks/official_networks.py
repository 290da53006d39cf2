"""Released networks and ours: equal logits from the same weights.

python -m benchmarks.official_networks --official UU-Mamba --json benchmarks/results/official_networks.json

DIR is a clone of github.com/tiffany9056/UU-Mamba, which holds both layouts, or of github.com/bowang-lab/U-Mamba, which
holds the current layout. Their network files are run unchanged. They need ``pip install
dynamic-network-architectures``. Their mamba_ssm needs a GPU and is replaced by the recurrence in this file. Of nnunetv2
only the names imported by the network files are replaced, by empty modules.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from math import ceil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.result_file import write_result
from uumamba.nets import load_official
from uumamba.runtime.files import write_text
from uumamba.runtime.seeds import generator_for

TOLERANCE = 1e-5
STRIDES = {
    2: [[1, 1], [2, 2], [2, 2], [2, 2], [2, 2], [2, 2]],
    3: [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 2]],
}
KERNELS = {2: [[3, 3]] * 6, 3: [[1, 3, 3]] + [[3, 3, 3]] * 5}
WIDEST = {2: 512, 3: 320}
ACDC_PATCH = {2: (256, 224), 3: (20, 256, 224)}
SMALL_PATCH = {2: (64, 96), 3: (8, 64, 96)}


@dataclass(frozen=True)
class Official:
    """Network file of a released repository."""

    name: str
    file: str
    spatial_dims: int
    takes_patch: bool = False

    @property
    def network(self) -> str:
        """Name of the class in the file."""
        return self.file.partition("_")[0]


OFFICIAL = (
    Official("umamba_bot_2d", "UMambaBot_2d", 2),
    Official("umamba_bot_3d", "UMambaBot_3d", 3),
    Official("umamba_enc_2d", "UMambaEnc_2d", 2, takes_patch=True),
    Official("umamba_enc_3d", "UMambaEnc_3d", 3, takes_patch=True),
    Official("legacy_bot_2d", "UMambaBot", 2),
    Official("legacy_bot_3d", "UMambaBot", 3),
    Official("legacy_enc_2d", "UMambaEnc", 2),
    Official("legacy_enc_3d", "UMambaEnc", 3),
)


class WrittenOutMamba(nn.Module):
    """Mamba as in its paper: a sequential recurrence with mamba_ssm's parameters."""

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        d_model = int(d_model)
        inner, self.rank, self.states = expand * d_model, ceil(d_model / 16), d_state
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(inner, self.rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def forward(self, sequence: Tensor) -> Tensor:
        """Map ``(batch, length, d_model)`` to the same shape."""
        x, z = self.in_proj(sequence).chunk(2, dim=-1)
        x = F.silu(self.conv1d(x.mT)[..., : x.shape[1]].mT)
        low_rank, B, C = self.x_proj(x).split((self.rank, self.states, self.states), dim=-1)
        steps, A = F.softplus(self.dt_proj(low_rank)), -torch.exp(self.A_log)
        state, outputs = x.new_zeros(x.shape[0], *A.shape), []
        for position in range(x.shape[1]):
            step = steps[:, position, :, None]
            state = torch.exp(step * A) * state + step * B[:, position, None] * x[:, position, :, None]
            outputs.append((state * C[:, position, None]).sum(-1))
        return self.out_proj((torch.stack(outputs, dim=1) + self.D * x) * F.silu(z))


def main(given: Sequence[str] | None = None) -> None:
    """Compare every network of the clone; exit 1 if any differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, metavar="DIR", help="a clone of UU-Mamba or U-Mamba")
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--quick", action="store_true", help="an eighth of the width")
    parser.add_argument("--facts", type=Path, metavar="DIR", help="only write names and shapes of all weights there")
    options = parser.parse_args(given)
    sources = find_sources(options.official)
    install_stand_ins()
    if options.facts is not None:
        for official, source in sources.items():
            write_facts(official, source, options.facts / f"{official.name}.json")
        return
    rows = []
    for official, source in sources.items():
        rows.append(compare(official, source, base=4 if options.quick else 32))
        print(rows[-1], flush=True)
    if options.json is not None:
        write_result(options.json, rows, title="Released networks and ours", about=describe_table(options.quick))
    if not all(row["equal"] for row in rows):
        sys.exit(1)


def describe_table(quick: bool) -> str:
    """Describe the table."""
    width = "An eighth of ACDC's width" if quick else "ACDC's stages and widths"
    return (
        f"{width}, random weights, a random image. The released file's state dict was written as nnU-Net writes a "
        "checkpoint and read by load_official. Differences are the largest over all heads of deep supervision, divided "
        "by the largest logit. Rounding is the released network's own, its float32 against its float64. Equal means at "
        f"most {TOLERANCE:g} in float64, and in float32 at most this or three times the rounding, which random weights "
        "amplify from norm to norm. Mamba in the released network is replaced by a sequential recurrence."
    )


def find_sources(folder: Path | None) -> dict[Official, Path]:
    """Find the network files of a clone, or exit with instructions."""
    files = {} if folder is None else {path.stem: path for path in folder.glob("**/nnunetv2/nets/UMamba*.py")}
    found = {official: files[official.file] for official in OFFICIAL if official.file in files}
    if not found:
        sys.exit(
            f"--official: got {folder}, expected a folder with nnunetv2/nets/UMamba*.py. Fix: git clone "
            "https://github.com/tiffany9056/UU-Mamba (both layouts) or https://github.com/bowang-lab/U-Mamba."
        )
    if importlib.util.find_spec("dynamic_network_architectures") is None:
        sys.exit(
            "dynamic_network_architectures: got no such package, expected the released networks' blocks. Fix: pip "
            "install --no-deps dynamic-network-architectures."
        )
    return found


def install_stand_ins() -> None:
    """Install stand-in modules for the released files' imports.

    Building a network calls no function of nnunetv2.
    """
    names: dict[str, dict[str, Any]] = {
        "mamba_ssm": {"Mamba": WrittenOutMamba},
        "nnunetv2": {},
        "nnunetv2.utilities": {},
        "nnunetv2.utilities.plans_handling": {},
        "nnunetv2.utilities.plans_handling.plans_handler": {"ConfigurationManager": None, "PlansManager": None},
        "nnunetv2.utilities.network_initialization": {"InitWeights_He": None},
    }
    for name, content in names.items():
        module = ModuleType(name)
        vars(module).update(content)
        sys.modules[name] = module


def build_official(official: Official, source: Path, patch: Sequence[int], base: int) -> nn.Module:
    """Build a released network from nnU-Net's plans for ACDC.

    The patch size and width are arguments.
    """
    spec = importlib.util.spec_from_file_location(f"released_{official.name}", source)
    if spec is None or spec.loader is None:
        sys.exit(f"{source}: got no Python file, expected a released network. Fix: clone the repository again.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    dims = official.spatial_dims
    constructor: Callable[..., nn.Module] = getattr(module, official.network)
    with redirect_stdout(StringIO()):  # the released constructors print
        return constructor(
            **({"input_size": list(patch)} if official.takes_patch else {}),
            input_channels=1,
            n_stages=6,
            features_per_stage=compute_widths(dims, base),
            conv_op=nn.Conv2d if dims == 2 else nn.Conv3d,
            kernel_sizes=[list(kernel) for kernel in KERNELS[dims]],
            strides=[list(stride) for stride in STRIDES[dims]],
            n_conv_per_stage=[2] * 6,
            num_classes=4,
            n_conv_per_stage_decoder=[2] * 5,
            conv_bias=True,
            norm_op=nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            deep_supervision=True,
        )


def compute_widths(spatial_dims: int, base: int) -> list[int]:
    """Return widths that double per stage, up to nnU-Net's scaled limit."""
    return [min(base * 2**stage, WIDEST[spatial_dims] * base // 32) for stage in range(6)]


def compare(official: Official, source: Path, *, base: int) -> dict[str, Any]:
    """Make one row: size of the network and difference of the outputs."""
    patch = SMALL_PATCH[official.spatial_dims]
    generator = generator_for(0, official.name)
    theirs = build_official(official, source, patch, base)
    for parameter in theirs.parameters():  # initial norms and skips could hide a mistake
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator) / max(1, parameter[0].numel()) ** 0.5
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint_final.pth"
        torch.save(make_checkpoint(official, theirs, patch), path)
        ours = load_official(path).train()  # in training mode every head returns logits
    image = torch.randn(1, 1, *patch, generator=generator)
    with torch.no_grad():
        theirs_single, ours_single = theirs(image), ours(image)
        theirs_double, ours_double = theirs.double()(image.double()), ours.double()(image.double())
    single, double = measure_difference(ours_single, theirs_single), measure_difference(ours_double, theirs_double)
    rounding = measure_difference(theirs_single, theirs_double)
    return {
        "network": f"{type(ours).__name__}, {official.spatial_dims}-D",
        "file": f"{official.file}.py",
        "patch": "x".join(map(str, patch)),
        "parameters": sum(parameter.numel() for parameter in ours.parameters()),
        "keys": len(theirs.state_dict()),
        "kept": len(ours.state_dict()),
        "heads": len([*ours.decoder.get_submodule("seg_layers").children()]),
        "float64": float(f"{double:.2g}"),
        "float32": float(f"{single:.2g}"),
        "rounding": float(f"{rounding:.2g}"),
        "equal": double <= TOLERANCE and single <= max(TOLERANCE, 3 * rounding),
    }


def make_checkpoint(official: Official, net: nn.Module, patch: Sequence[int]) -> dict[str, Any]:
    """Return a checkpoint in the form that nnU-Net's trainer writes.

    Its log holds NumPy numbers.
    """
    dims = official.spatial_dims
    name = "2d" if dims == 2 else "3d_fullres"
    stages = {"patch_size": list(patch), "pool_op_kernel_sizes": STRIDES[dims], "conv_kernel_sizes": KERNELS[dims]}
    return {
        "network_weights": net.state_dict(),
        "optimizer_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(0.5)]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1,
        "init_args": {"plans": {"configurations": {name: stages}}, "configuration": name, "fold": "all"},
        "trainer_name": "nnUNetTrainerUMambaEnc",
    }


def measure_difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest relative difference over all heads.

    Differences are divided by the largest logit; different shapes give infinity.
    """
    if [each.shape for each in found] != [each.shape for each in expected]:
        return float("inf")
    largest = max(float(each.abs().max()) for each in expected)
    return max(float((one - other).abs().max()) for one, other in zip(found, expected, strict=True)) / largest


def write_facts(official: Official, source: Path, path: Path) -> None:
    """Write names and shapes of a released network's state dict for ACDC.

    Duplicates are included. The network is built without memory for its weights.
    """
    patch = ACDC_PATCH[official.spatial_dims]
    with torch.device("meta"):
        net = build_official(official, source, patch, 32)
    head = {
        "source": f"written by benchmarks/official_networks.py --facts from the state dict of {source.name}, "
        "duplicates included, for ACDC on the meta device",
        "spatial_dims": official.spatial_dims,
        "patch_size": list(patch),
        "strides": STRIDES[official.spatial_dims],
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
    }
    lines = [f"{json.dumps(key)}: {list(value.shape)}" for key, value in net.state_dict().items()]
    shapes = '"shapes": {\n' + ",\n".join(lines) + "\n}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(head)[:-1] + ",\n" + shapes + "}\n")


if __name__ == "__main__":
    main()
