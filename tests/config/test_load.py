"""Reading a run's configuration: shipped names, overrides, and one sentence for what is wrong."""

from pathlib import Path

import pytest
import yaml

from uumamba.config import read_config, shipped_configs
from uumamba.errors import UsageError


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(read_config("demo").as_json()))
    return path


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_config_is_read_by_name_and_named_after_its_file(name: str) -> None:
    assert read_config(name).name == name


def test_the_four_runs_of_this_release_are_shipped() -> None:
    assert {"acdc_2d", "acdc_3d", "acdc_cpu", "demo"} <= set(shipped_configs())


def test_a_written_config_reads_back_equal(demo: Path) -> None:
    assert read_config(demo) == read_config("demo")


def test_an_override_is_applied_before_validation() -> None:
    assert read_config("demo", ["optim.rho=0.1", "training.epochs=3"]).optim.rho == 0.1


def test_a_misspelt_key_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(UsageError, match=r"training\.epoch is not a known key \(did you mean epochs\?\)"):
        read_config("demo", ["training.epoch=3"])


def test_a_misspelt_key_inside_a_union_is_named_as_the_yaml_shows_it() -> None:
    with pytest.raises(UsageError, match=r"demo\.yaml: optim\.roh is not a known key"):
        read_config("demo", ["optim.roh=0.1"])


def test_a_negative_learning_rate_is_refused_with_the_value() -> None:
    with pytest.raises(UsageError, match=r"optim\.base\.lr: .*greater than 0.*found -1"):
        read_config("demo", ["optim.base.lr=-1"])


def test_an_unknown_network_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="UMambaBot"):
        read_config("demo", ["net.name=VNet"])


def test_a_patch_of_the_wrong_dimension_is_refused() -> None:
    with pytest.raises(UsageError, match=r"spatial_dims is 2 but training\.patch_size has 3"):
        read_config("demo", ["training.patch_size=[8,64,64]"])


def test_a_patch_that_the_strides_do_not_divide_names_the_axis_and_the_nearest_sizes() -> None:
    with pytest.raises(
        UsageError, match=r"axis 1 of training\.patch_size \[96, 100\] has 100 voxels, which 16 .* use 96 or 112"
    ):
        read_config("demo", ["training.patch_size=[96,100]"])


def test_a_missing_file_lists_the_shipped_names() -> None:
    with pytest.raises(UsageError, match=r"no configuration absent\.yaml; give a YAML file or one of .*demo"):
        read_config("absent.yaml")


def test_a_file_that_is_not_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1, 2")
    with pytest.raises(UsageError, match="is not valid YAML"):
        read_config(path)


def test_an_override_without_a_value_is_refused() -> None:
    with pytest.raises(UsageError, match="key=value"):
        read_config("demo", ["optim.rho"])


def test_a_config_cannot_name_python_objects(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text("name: !!python/object/apply:os.system ['touch canary']")
    with pytest.raises(UsageError, match="not valid YAML"):
        read_config(path)
