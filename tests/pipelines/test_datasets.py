"""Names of data sets: what a config may name, and the reader of each."""

from pathlib import Path
from typing import get_args

import pytest

from uumamba.config.data import DatasetConfig
from uumamba.pipelines.datasets import READERS, read_dataset
from uumamba.runtime.errors import UsageError


def test_every_data_set_that_a_config_may_name_has_a_reader() -> None:
    assert get_args(DatasetConfig.model_fields["name"].annotation) == tuple(READERS)


@pytest.mark.parametrize("name", READERS)
def test_every_reader_refuses_a_folder_without_its_layout(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"^No (patient folder|case|subject) was found in .*; expected "):
        read_dataset(name, tmp_path)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no reader for the data set 'brats'; known are acdc, phantom, imagecas, "):
        read_dataset("brats", tmp_path)
