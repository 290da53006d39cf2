"""Wrong values and misspelt keys at every place of a configuration."""

import math
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from uumamba.config import read_config
from uumamba.config.bind import UNKNOWN
from uumamba.config.load import validate

STAGES = "spatial_dims: 2, features: [4, 8], strides: [[1, 1], [2, 2]]"
COMPLETE = (
    f"net={{name: CoarseToFine, coarse: {{name: UMambaBot, {STAGES}}}, fine: {{name: UMambaEnc, {STAGES}}},"
    " factor: [2, 2]}",
    "dataset.domains={train: [A], validate: [B]}",
    "preprocess.normalisation=ct",
    "preprocess.spacing_mm=[5, 2, 2]",
    "preprocess.ct_statistics={low_hu: -50, high_hu: 500, mean_hu: 250, std_hu: 100}",
    "loss.terms=[region, centreline]",
    "optim={name: SAGM, base: {name: AdamW}, max_grad_norm: 12}",
    "quantization={overrides: {'decoder.*': 4}, gaqat: {}}",
    "domain_generalization={name: UDIM, rho: 0.1, perturbation: {name: style, radius: 0.3}}",
    "schedule={name: budget, minutes: 5}",
    "training.sampling={class_weights: {RV: 2}}",
    "training.useful={most_epochs: 3}",
    "training.samples_at_once=1",
    "augment.rotation_deg=[-10, 10]",
    "augment.bias_field_probability=0.5",
)
OTHERS = (
    (
        "optim={name: LookSAM, base: {name: SGD}, trigger: {total_steps: 10}}",
        "objective={name: MESA, weight: 0.5}",
        "net={name: SegResNet, spatial_dims: 2}",
    ),
    ("optim={name: SAM, base: {name: SGD}, ascent: {name: output_bias_forgetting}}",),
)
STORED = [read_config("demo", overrides).as_json() for overrides in (COMPLETE, *OTHERS)]
SECTIONS = {
    *("dataset", "dataset.domains", "preprocess", "preprocess.ct_statistics", "net", "net.coarse", "net.fine", "loss"),
    *("objective", "optim", "optim.base", "optim.ascent", "optim.trigger", "quantization", "quantization.gaqat"),
    *("domain_generalization", "domain_generalization.perturbation", "schedule", "augment", "inference"),
    *("training", "training.sampling", "training.useful"),
}
"""Places of a configuration that the tests go through, among others."""
NAMES_ARE_FREE = ("training.sampling.class_weights", "quantization.overrides")
MAY_BE_NEGATIVE = (
    *("optim.trigger.start", "optim.trigger.end", "augment.rotation_deg.0", "augment.rotation_deg.1"),
    *(f"preprocess.ct_statistics.{key}_hu" for key in ("low", "high", "mean")),
)
REJECTED_LATER = ("preprocess.ct_statistics.std_hu", "preprocess.clip_percentiles.0", "preprocess.clip_percentiles.1")
"""Numbers whose range only the recipe checks, in ``RunConfig.check``."""


def list_places(value: Any, *place: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield every place in a stored configuration with its value."""
    yield place, value
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from list_places(each, *place, key)


def replace_at(stored: Any, place: tuple[Any, ...], value: Any) -> Any:
    changed = deepcopy(stored)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


def list_cases(kinds: tuple[type, ...]) -> Iterator[Any]:
    for number, stored in enumerate(STORED):
        for place, value in list_places(stored):
            if type(value) in kinds:
                key = ".".join(map(str, place))
                yield pytest.param(stored, place, key, id=f"{number} {key}")


def test_every_section_is_tried() -> None:
    assert {case.values[2] for case in list_cases((dict,))} >= SECTIONS


@pytest.mark.parametrize(("stored", "place", "key"), [*list_cases((int, float))])
def test_true_nan_and_minus_one_are_refused_for_every_number(refused, stored, place, key) -> None:
    for value in (True, math.nan, math.inf, "x", -1):
        if value == -1 and key in (*MAY_BE_NEGATIVE, *REJECTED_LATER):
            continue
        with refused(key) as error:
            validate(replace_at(stored, place, value), source="mine.yaml")
        assert error.value.expected
        assert "mine.yaml" in error.value.fix


@pytest.mark.parametrize(("stored", "place", "key"), [*list_cases((dict,))])
def test_a_misspelt_key_is_refused_in_every_section(refused, stored, place, key) -> None:
    if key in NAMES_ARE_FREE:
        return
    section = stored
    for each in place:
        section = section[each]
    valid = list(section)[-1]
    with refused(".".join(filter(None, (key, f"{valid}x"))), got=UNKNOWN) as error:
        validate(replace_at(stored, (*place, f"{valid}x"), section[valid]), source="mine.yaml")
    assert valid in error.value.expected
    assert "mine.yaml" in error.value.fix


@pytest.mark.parametrize(("stored", "place", "key"), [*list_cases((dict,))])
def test_a_section_that_is_no_mapping_is_refused(refused, stored, place, key) -> None:
    if place:
        with refused(key, got=5) as error:
            validate(replace_at(stored, place, 5), source="mine.yaml")
        assert "mapping" in error.value.expected


@pytest.mark.parametrize(("stored", "place", "key"), [*list_cases((str,))])
def test_an_unknown_name_is_refused_in_every_section(refused, stored, place, key) -> None:
    if place[-1] == "name" and len(place) > 1:
        with refused(key, got="Unheard") as error:
            validate(replace_at(stored, place, "Unheard"), source="mine.yaml")
        assert stored[place[0]] is None or error.value.expected


@pytest.mark.parametrize("value", ["1e-3", "0.001", 0.001])
def test_text_that_is_a_number_is_read_as_one(value: Any) -> None:
    stored = replace_at(STORED[0], ("optim", "base", "lr"), value)
    stored = replace_at(stored, ("training", "ema_decay"), value)
    config = validate(stored, source="mine.yaml")
    assert (config.optim.base.lr, config.training.ema_decay) == (0.001, 0.001)


def test_the_text_none_is_none_where_text_is_not_valid() -> None:
    stored = replace_at(STORED[0], ("training", "ema_decay"), "None")
    assert validate(stored, source="mine.yaml").training.ema_decay is None
