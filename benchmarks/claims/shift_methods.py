"""Methods trained in ACDC's own style and tested in other styles.

Each is a row of one table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from benchmarks.claims.acdc import WARMUP, Start, make_feed, make_start, read_acdc_config
from benchmarks.claims.members import MEMBERS
from benchmarks.claims.run_log import Run, print_progress
from benchmarks.claims.training import Recipe
from uumamba.config import RunConfig
from uumamba.data.prepared import PreparedFolder
from uumamba.domain_generalization import UDIM, Probe, SlowExamples, StylePerturbation, find_slow, upsampled
from uumamba.domain_generalization.udim import Direction
from uumamba.pipelines.slow_cases import probe_cases
from uumamba.training.schedule import constant

PLAIN = "plain"
UDIM_NAME, RANDOM_DIRECTION = "UDIM", "UDIM, random direction"
STRONG = (
    "augment.bias_field_probability=0.5",
    "augment.bias_field_strength=[0.1, 0.8]",
    "augment.noise_probability=0.4",
    "augment.noise_std=[0.0, 0.3]",
    "augment.blur_probability=0.4",
    "augment.blur_channel_probability=1.0",
    "augment.blur_sigma_voxels=[0.5, 1.5]",
    "augment.brightness_probability=0.4",
    "augment.brightness=[0.5, 1.5]",
    "augment.contrast_probability=0.4",
    "augment.contrast=[0.5, 1.5]",
    "augment.low_resolution_probability=0.4",
    "augment.low_resolution_channel_probability=1.0",
    "augment.low_resolution=[0.3, 1.0]",
    "augment.gamma_probability=0.5",
    "augment.gamma=[0.4, 2.0]",
    "augment.inverted_gamma_probability=0.3",
)
"""Intensity augmentation, more frequent and stronger than nnU-Net's; fixed before any result was known."""
STYLE_RADIUS, LAMBDA1, LAMBDA2, UDIM_WARMUP = 0.5, 1.0, 0.1, 0.2
"""UDIM's numbers and the share of its warm-up steps with SAM only, fixed before any shifted style was scored.

The radius is small, because a random direction works as well at a large radius (digits, ten seeds). At 60, 120 and 180
steps of SAM on the training patients the gradients of gap and norm at this radius had norms of 0.2 to 1.1 and 2.3 to
4.8, the gradient of the loss 0.7 to 1.0. With these weights each term's gradient has a quarter to the full norm of the
loss's. The warm-up is that of UDIM's scripts for PACS.
"""
PROBE_EPOCHS, PROBE_EPOCH, VIEWS = 4, 0.016, 3
"""USEFUL's probe: largest number of epochs, share of the run's steps per epoch, and patches per case.

Its five predictions of all 48 cases take as long as 50 steps (measured). With 75 steps of training the probe takes less
than a tenth of the time of 1308 steps, and ``share`` subtracts that tenth.
"""


@dataclass(frozen=True)
class ShiftMethod:
    """Training method for the test in other styles.

    Attributes:
        recipe: function from the common parts and the run's number of steps to a recipe; the number is 0 when the cost
            of a step is measured.
        settings: changes of the common configuration.
        cases: function from the training cases, the prepared folder and the run to the cases to train on, possibly
            repeated; None uses all training cases. It may train a probe.
        share: share of the affordable steps that remain after the time of ``cases``.
        begins_as: method of the first steps, with their share; their cost is that method's.
        controls: methods to be compared with, in addition to the plain optimizer.
    """

    recipe: Callable[[Start, int], Recipe]
    settings: Sequence[str] = ()
    cases: Callable[[Sequence[str], Path, Run], Sequence[str]] | None = None
    share: float = 1.0
    begins_as: tuple[str, float] | None = None
    controls: Sequence[str] = ()


def make_member_recipe(name: str, start: Start, steps: int) -> Recipe:
    """Make the recipe of a sharpness-aware member with its published number."""
    return MEMBERS[name].build(start.net, start.loss, start.base, engine=start.engine)


def make_udim_recipe(start: Start, steps: int, *, direction: Direction, style_radius: float = STYLE_RADIUS) -> Recipe:
    """Make the recipe of UDIM on SAM.

    After a warm-up, the inconsistency between a batch and its perturbed style is added.
    """
    recipe = make_member_recipe("SAM", start, steps)
    method = UDIM(
        recipe.net,
        start.loss,
        StylePerturbation(style_radius),
        lambda1=LAMBDA1,
        lambda2=LAMBDA2,
        rho=recipe.optimizer.param_groups[0]["rho"],
        warmup_steps=round(UDIM_WARMUP * steps),
        direction=direction,
        second_order="finite_difference",
    )
    return replace(recipe, method=method)


def repeat_slow_cases(training: Sequence[str], prepared: Path, run: Run) -> Sequence[str]:
    """Return the training cases, with slowly learned cases repeated."""
    found = find_slow_cases(
        read_acdc_config(), prepared, training, seed=run.seed, steps_per_epoch=round(PROBE_EPOCH * run.steps)
    )
    return upsampled(training, found.slow)


def find_slow_cases(
    config: RunConfig,
    prepared: Path,
    training: Sequence[str],
    *,
    seed: int,
    steps_per_epoch: int,
    warmup_steps: int = WARMUP,
) -> SlowExamples:
    """Find the cases that a short training learns slowly.

    The training is that of the plain method from the run's initialisation, at a constant rate after the warm-up, in the
    original style only.
    """
    folder = PreparedFolder(prepared)
    recipe = make_member_recipe("base", make_start(config, prepared, seed), 0)
    feed = make_feed(config, prepared, seed, cases=training)
    schedule, probe = constant(recipe.optimizer, warmup_steps + 1, warmup_steps), Probe()
    for epoch in range(PROBE_EPOCHS + 1):
        outputs = probe_cases(
            recipe.net, folder, training, patch_size=config.training.patch_size, views=VIEWS, group_by="phase"
        )
        if probe.add(outputs) or epoch == PROBE_EPOCHS:
            break
        recipe.net.train()
        for _, batch in islice(feed, max(1, steps_per_epoch)):
            recipe.step(batch)
            schedule.step()
    found = find_slow(outputs, seed=seed)
    print_progress(
        f"acdc: the probe's errors {[round(each, 3) for each in probe.errors]}, {len(found.slow)} slow of {found.size}"
    )
    return found


METHODS: Mapping[str, ShiftMethod] = {
    PLAIN: ShiftMethod(partial(make_member_recipe, "base")),
    "strong augmentation": ShiftMethod(partial(make_member_recipe, "base"), settings=STRONG),
    "SAM": ShiftMethod(partial(make_member_recipe, "SAM")),
    UDIM_NAME: ShiftMethod(
        partial(make_udim_recipe, direction="ascent"),
        begins_as=("SAM", UDIM_WARMUP),
        controls=("SAM", RANDOM_DIRECTION),
    ),
    RANDOM_DIRECTION: ShiftMethod(partial(make_udim_recipe, direction="random"), begins_as=("SAM", UDIM_WARMUP)),
    "USEFUL": ShiftMethod(partial(make_member_recipe, "base"), cases=repeat_slow_cases, share=0.9),
}
"""Every method by name, the plain optimizer first."""
