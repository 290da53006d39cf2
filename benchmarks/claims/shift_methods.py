"""The methods that train on ACDC's own style and are tested on others, each a row of one table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.claims.acdc import Start
from benchmarks.claims.members import MEMBERS
from benchmarks.claims.training import Recipe

PLAIN = "plain"
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
"""The augmentation of intensities, more often and further than nnU-Net's; fixed before any result was seen."""


@dataclass(frozen=True)
class ShiftMethod:
    """How a method trains.

    Attributes:
        recipe: network, objective and optimizer of what every method starts with. A method with something to add at
            the unclimbed weights gives a recipe whose ``step`` hands it to the optimizer.
        settings: of the configuration, beside the shared ones.
        cases: the cases to feed, perhaps one twice, from those of the training split, the prepared folder and the
            run's seed; all of them without it. It may train a probe.
        share: of the steps that the method's time buys, the rest having gone into ``cases``.
        controls: what it must be better than, beside the plain optimizer.
    """

    recipe: Callable[[Start], Recipe]
    settings: Sequence[str] = ()
    cases: Callable[[Sequence[str], Path, int], Sequence[str]] | None = None
    share: float = 1.0
    controls: Sequence[str] = ()


def member(name: str, start: Start) -> Recipe:
    """A member of the sharpness-aware family, with its published number."""
    return MEMBERS[name].recipe(start.net, start.loss, start.base, engine=start.engine)


METHODS: Mapping[str, ShiftMethod] = {
    PLAIN: ShiftMethod(partial(member, "base")),
    "strong augmentation": ShiftMethod(partial(member, "base"), settings=STRONG),
    "SAM": ShiftMethod(partial(member, "SAM")),
}
"""Every method by name, the plain one first."""
