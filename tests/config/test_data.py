"""The preparation's configuration: CT with statistics given or left to be found, old runs unchanged."""

import pytest

from uumamba.config import read_config
from uumamba.config.data import PreprocessConfig
from uumamba.config.load import validate
from uumamba.data.preprocess import CtStatistics, PreprocessRecipe
from uumamba.runtime.errors import UsageError

GIVEN = "preprocess.ct_statistics={low_hu: -50, high_hu: 500, mean_hu: 250, std_hu: 100}"


def test_ct_may_leave_its_statistics_to_be_found() -> None:
    recipe = read_config("demo", ["preprocess.normalisation=ct"]).preprocess.build()
    assert recipe.normalisation == "ct"
    assert not recipe.is_complete


def test_given_statistics_are_the_recipes_also_after_a_round_through_json() -> None:
    config = read_config("demo", ["preprocess.normalisation=ct", GIVEN]).preprocess
    assert config.build().ct_statistics == CtStatistics(-50, 500, 250, 100)
    assert PreprocessConfig.model_validate(config.model_dump(mode="json")) == config


def test_without_ct_the_recipe_is_what_it_was() -> None:
    assert read_config("acdc_cpu").preprocess.build() == PreprocessRecipe((None, 1.5, 1.5))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([GIVEN], "ct_statistics are for the normalisation 'ct', got 'zscore'"),
        (["preprocess.normalisation=ct", GIVEN.replace("100", "0")], "a positive std_hu"),
        (["preprocess.normalisation=ct", GIVEN.replace("-50", "900")], "low_hu < high_hu"),
        (
            ["preprocess.normalisation=ct", GIVEN, "preprocess.clip_percentiles=[1,99]"],
            r"preprocess: ct_statistics give the limits, so clip_percentiles \(1\.0, 99\.0\) would change nothing",
        ),
        (["preprocess.normalisation=hu"], r"preprocess\.normalisation"),
    ],
)
def test_statistics_that_make_no_sense_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_config("demo", overrides)


def test_domains_are_null_unless_given_and_read_back_as_they_were_written() -> None:
    assert read_config("demo").dataset.domains is None
    given = {"train": ["A", "B"], "validate": ["C"], "leave_out": None}
    config = read_config("demo", ["dataset.domains={train: [A, B], validate: [C]}"])
    assert config.as_json()["dataset"]["domains"] == given
    assert validate(config.as_json(), source="stored") == config


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        ("{}", r"dataset\.domains: give train, validate or both of them, or leave_out alone; without domains, leave"),
        ("{train: [A], leave_out: B}", "give train, validate or both of them, or leave_out alone"),
        ("{train: []}", r"dataset\.domains\.train: name one or more domains, each once"),
        ("{validate: [A, A]}", r"dataset\.domains\.validate: name one or more domains, each once"),
        ("{train: A}", r"dataset\.domains\.train: .*, found 'A'"),
        ("{leave_out: ''}", r"dataset\.domains\.leave_out: .*at least 1 character"),
        ("{validated: [A]}", r"dataset\.domains\.validated is not a known key \(did you mean validate\?\)"),
        ("[A]", r"dataset\.domains: "),
    ],
)
def test_domains_that_say_nothing_or_two_things_are_refused(domains: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_config("demo", [f"dataset.domains={domains}"])
