"""Training methods compared on hearts, with candidates for their numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from benchmarks.claims.acdc import Start
from benchmarks.claims.members import MEMBERS
from benchmarks.claims.shift_methods import STRONG, STYLE_RADIUS, make_udim_recipe
from benchmarks.claims.training import Recipe
from uumamba.domain_generalization import MixStyle, RandConv
from uumamba.domain_generalization.udim import Direction

PLAIN, SAM = "plain", "SAM"
UDIM_STYLE, UDIM_RANDOM = "UDIM", "UDIM, random direction"
USEFUL, RANDOM_COPIES = "USEFUL", "random copies"
TRAINED_PLAIN, TRAINED_TRAM = "plain, from a trained start", "TRAM, from a trained start"
FOUR_BITS, ROUNDED = "4 bits, trained", "4 bits, rounded after training"
RADII = (0.025, 0.05, 0.1, 0.2)

Build = Callable[[Start, int, float | None], Recipe]


@dataclass(frozen=True)
class HeartMethod:
    """Training method of one row.

    Attributes:
        build: function from the common parts, the number of steps and the tuned number to a recipe.
        grid: candidates for the number; empty if nothing is tuned.
        passes: cost of a step in steps of the plain optimizer, for the estimate of hours.
        settings: changes of the common configuration.
        images: function that makes a transform of each batch's images.
        first_half: method of the first half of the steps, after which the schedule starts again.
        copies: cases that are shown twice: ``"slow"``, found by a probe, or as many at ``"random"``.
        bits: bit width of weights and activations, rounded after the first two thirds of the steps (``rounds_early``)
            or after all.
        rounds_early: train the last third of the steps with rounded weights and activations.
    """

    build: Build
    grid: tuple[float, ...] = ()
    passes: float = 1.0
    settings: Sequence[str] = ()
    images: Callable[[], Callable[[Tensor], Tensor]] | None = None
    first_half: str | None = None
    copies: str | None = None
    bits: int | None = None
    rounds_early: bool = False


def make_member_recipe(name: str, start: Start, steps: int, value: float | None) -> Recipe:
    """Make the recipe of a member of the sharpness-aware family."""
    return MEMBERS[name].build(start.net, start.loss, start.base, value, engine=start.engine)


def make_mixstyle_recipe(start: Start, steps: int, value: float | None) -> Recipe:
    """Make the plain recipe with MixStyle after the encoder's first stage."""
    stages = start.net.get_submodule("encoder.stages")
    assert isinstance(stages, nn.ModuleList)
    stages[0] = nn.Sequential(stages[0], MixStyle())
    return make_member_recipe("base", start, steps, None)


def make_tuned_udim_recipe(start: Start, steps: int, value: float | None, *, direction: Direction) -> Recipe:
    """Make the recipe of UDIM on SAM; its number is a radius."""
    radius = STYLE_RADIUS if value is None else value
    return make_udim_recipe(start, steps, direction=direction, style_radius=radius)


def _perturb(name: str, grid: tuple[float, ...] = RADII, passes: float = 2.0) -> HeartMethod:
    return HeartMethod(partial(make_member_recipe, name), grid, passes)


_plain = partial(make_member_recipe, "base")
METHODS: Mapping[str, HeartMethod] = {
    PLAIN: HeartMethod(_plain),
    SAM: _perturb("SAM"),
    "ASAM": _perturb("ASAM", (0.25, 0.5, 1.0, 2.0)),
    "GSAM": _perturb("GSAM"),
    "FriendlySAM": _perturb("FriendlySAM"),
    "LookSAM(5)": _perturb("LookSAM(5)", passes=1.2),
    "MSAM": _perturb("MSAM", (0.3, 1.0, 3.0, 9.0), passes=1.0),
    "SAGM": _perturb("SAGM"),
    "OBF": _perturb("OBF"),
    "MESA": _perturb("MESA", (0.9, 0.97, 0.99, 0.997), passes=1.4),
    TRAINED_PLAIN: HeartMethod(_plain, first_half=PLAIN),
    TRAINED_TRAM: HeartMethod(
        partial(make_member_recipe, "TRAM, previous"), (1.0, 4.0, 16.0, 64.0), 1.5, first_half=PLAIN
    ),
    "strong augmentation": HeartMethod(_plain, settings=STRONG),
    "MixStyle": HeartMethod(make_mixstyle_recipe),
    "RandConv": HeartMethod(_plain, images=RandConv),
    UDIM_STYLE: HeartMethod(partial(make_tuned_udim_recipe, direction="ascent"), (0.25, 0.5, 1.0, 2.0), 6.0),
    UDIM_RANDOM: HeartMethod(partial(make_tuned_udim_recipe, direction="random"), passes=6.0),
    USEFUL: HeartMethod(_plain, passes=1.1, copies="slow"),
    RANDOM_COPIES: HeartMethod(_plain, passes=1.1, copies="random"),
    FOUR_BITS: HeartMethod(_plain, passes=1.3, bits=4, rounds_early=True),
    ROUNDED: HeartMethod(_plain, bits=4),
}
"""Every method by name, the plain optimizer first; UDIM's control gets UDIM's radius."""
