"""Every method trains in bfloat16, which ``precision: auto`` selects where the processor has it, as in float32."""

from collections.abc import Callable
from pathlib import Path

import pytest

from uumamba.config import RunConfig
from uumamba.pipelines.train import train
from uumamba.training import RunLog

pytestmark = pytest.mark.slow

BASE = "base: {name: AdamW, lr: 0.003}"
UDIM = (
    "domain_generalization={{name: UDIM, warmup_fraction: 0, voxels_a_class: 64, second_order: finite_difference,"
    " perturbation: {}}}"
)
SMALL = "{name: UMambaBot, spatial_dims: 2, features: [4,8], strides: [[1,1],[2,2]]}"
CHOICES: dict[str, tuple[str, ...]] = {
    **{
        name: (f"optim={{name: {name}, {BASE}}}",)
        for name in ("Plain", "SAM", "ASAM", "GSAM", "FriendlySAM", "SAGM", "LookSAM", "MSAM", "StaleSAM", "TRAM")
    },
    "output bias forgetting": (f"optim={{name: SAM, ascent: {{name: output_bias_forgetting}}, {BASE}}}",),
    "MESA": (f"optim={{name: Plain, {BASE}}}", "objective={name: MESA, decay: 0.9, start_step: 0}"),
    "UDIM, style": (UDIM.format("{name: style, radius: 0.3}"),),
    "UDIM, input": (UDIM.format("{name: input, rms: 0.1}"),),
    "USEFUL": ("training.useful={most_epochs: 2, views: 1}",),
    "few bits": (
        f"optim={{name: SAGM, {BASE}}}",
        "quantization={weight_bits: 4, act_bits: 4, calibration_batches: 2, gaqat: {every: 2}}",
    ),
    "UMambaEnc": ("net.name=UMambaEnc",),
    "SegResNet": ("net={name: SegResNet, spatial_dims: 2, init_filters: 8, blocks_down: [1, 1], blocks_up: [1]}",),
    "SwinUNETR": ("net={name: SwinUNETR, spatial_dims: 2, feature_size: 12}", "training.patch_size=[64,64]"),
    "CoarseToFine": (f"net={{name: CoarseToFine, factor: [2,2], coarse: {SMALL}, fine: {SMALL}}}",),
    "a loss of centrelines": ("loss={name: uncertainty_weighted, terms: [region, distribution, centreline]}",),
    "Dice and cross entropy": ("loss={name: dice_cross_entropy}",),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_run_in_bfloat16_has_the_loss_of_float32(
    choice: str, tiny_prepared: Path, tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        config = tiny_config(*CHOICES[choice], f"training.precision={precision}", "training.validate_every=2")
        (fold,) = train(config, data=tiny_prepared, out=tmp_path / precision, fold="all")
        rows = RunLog(fold / "metrics.jsonl").rows()
        assert rows[-1]["skipped_steps"] == 0
        losses[precision] = [row["loss"] for row in rows]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
