"""Training of each network, loss, optimizer and method in two precisions."""

from pathlib import Path

import numpy as np
import pytest

from tests.pipelines.run_files import MakeConfig
from uumamba.pipelines import load_predictor
from uumamba.pipelines.train import train
from uumamba.training import RunLog

pytestmark = pytest.mark.slow

BASE = "base: {name: AdamW, lr: 0.003}"
UDIM = (
    "domain_generalization={{name: UDIM, warmup_fraction: 0, voxels_a_class: 64, second_order: finite_difference,"
    " perturbation: {}}}"
)
SMALL = "{name: UMambaBot, spatial_dims: 2, features: [4,8], strides: [[1,1],[2,2]]}"
LARGE_PATCH = "training.patch_size=[64,64]"
CHOICES: dict[str, tuple[str, ...]] = {
    **{
        name: (f"optim={{name: {name}, {BASE}}}",)
        for name in ("Plain", "SAM", "ASAM", "GSAM", "FriendlySAM", "SAGM", "LookSAM", "MSAM", "StaleSAM", "TRAM")
    },
    "SGD": ("optim={name: Plain, base: {name: SGD}}",),
    "output bias forgetting": (f"optim={{name: SAM, ascent: {{name: output_bias_forgetting}}, {BASE}}}",),
    "the same by class": (f"optim={{name: SAM, ascent: {{name: output_bias_forgetting, class_mean: true}}, {BASE}}}",),
    "MESA": (f"optim={{name: Plain, {BASE}}}", "objective={name: MESA, decay: 0.9, start_step: 0}"),
    "UDIM, style": (UDIM.format("{name: style, radius: 0.3}"),),
    "UDIM, input": (UDIM.format("{name: input, rms: 0.1}"),),
    "USEFUL": ("training.useful={most_epochs: 2, views: 1}",),
    "few bits": (
        f"optim={{name: SAGM, {BASE}}}",
        "quantization={weight_bits: 4, act_bits: 4, calibration_batches: 2, gaqat: {every: 2}}",
    ),
    "three dimensions": (
        "net.spatial_dims=3",
        "net.strides=[[1,1,1],[1,2,2],[2,2,2]]",
        "training.patch_size=[4,32,32]",
        "augment.mirror_axes=[0,1,2]",
        "inference.mirror=true",
    ),
    "UMambaEnc": ("net.name=UMambaEnc",),
    "ResEncUNet": ("net.name=ResEncUNet",),
    "SegResNet": ("net={name: SegResNet, spatial_dims: 2, init_filters: 8, blocks_down: [1, 1], blocks_up: [1]}",),
    "SwinUNETR": ("net={name: SwinUNETR, spatial_dims: 2, feature_size: 12}", LARGE_PATCH),
    "UNETR": (
        "net={name: UNETR, spatial_dims: 2, feature_size: 4, hidden_size: 24, mlp_dim: 24, num_heads: 2}",
        LARGE_PATCH,
    ),
    "DynUNet": (
        "net={name: DynUNet, spatial_dims: 2, features: [8, 8, 8], strides: [[1,1],[2,2],[2,2]], "
        "kernel_sizes: [[3,3],[3,3],[3,3]]}",
        LARGE_PATCH,
    ),
    "CoarseToFine": (f"net={{name: CoarseToFine, factor: [2,2], coarse: {SMALL}, fine: {SMALL}}}",),
    "a loss of centrelines": ("loss={name: uncertainty_weighted, terms: [region, distribution, centreline]}",),
    "the released code's loss": ("loss={name: uncertainty_weighted, mode: released_code}",),
    "Dice and cross entropy": ("loss={name: dice_cross_entropy}",),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_run_in_bfloat16_has_the_loss_of_float32_and_predicts(
    choice: str, tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    losses, image = {}, np.random.default_rng(0).random((40, 44, 5), dtype=np.float32)
    for precision in ("float32", "bfloat16"):
        config = tiny_config(*CHOICES[choice], f"training.precision={precision}", "training.validate_every=2")
        (fold,) = train(config, data=tiny_prepared, out=tmp_path / precision, fold="all")
        rows = RunLog(fold / "metrics.jsonl").rows()
        assert rows[-1]["skipped_steps"] == 0
        losses[precision] = [row["loss"] for row in rows]
        assert load_predictor(fold)(image, spacing_mm=(3.0, 3.0, 8.0)).label.shape == image.shape
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
