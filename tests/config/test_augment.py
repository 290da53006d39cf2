"""The augmentation's configuration stays in step with the class it builds."""

import inspect

import pytest

from uumamba.config import read_config
from uumamba.config.augment import AugmentConfig
from uumamba.data.augment import Augment
from uumamba.runtime.errors import UsageError


def test_every_argument_of_the_augmentation_has_its_key_and_default() -> None:
    arguments = {
        name: argument.default
        for name, argument in inspect.signature(Augment).parameters.items()
        if name not in ("patch_size", "mirror_swaps")  # the run's and the data set's
    }
    fields = {name: field.default for name, field in AugmentConfig.model_fields.items() if name != "swap_sides"}
    assert arguments == fields


def test_a_range_the_wrong_way_round_is_refused() -> None:
    with pytest.raises(UsageError, match=r"augment\.scale: the lower end 1\.4 is above the upper end 0\.7"):
        read_config("demo", ["augment.scale=[1.4,0.7]"])
