"""Reading a run's configuration: shipped names, overrides, and one sentence for what is wrong."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from uumamba.config import read_config, shipped_configs
from uumamba.runtime.errors import UsageError


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


def test_the_run_with_slow_cases_is_acdc_cpu_but_for_them() -> None:
    own, plain = (read_config(name).as_json() for name in ("acdc_dg_useful", "acdc_cpu"))
    assert own["training"].pop("useful")["group_by"] == "phase"
    assert plain["training"].pop("useful") is None
    assert own | {"name": "acdc_cpu"} == plain


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


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        (
            "quantization={bits: 4}",
            "quantization.bits is not a known key (did you mean weight_bits, act_bits or first_last_bits?)",
        ),
        ("training.batch=4", "training.batch is not a known key (did you mean batches_per_epoch or batch_size?)"),
        ("optim.roh=0.1", "optim.roh is not a known key (did you mean rho?)"),
        (
            "schedule.cosine=1",
            "schedule.cosine is not a known key (known there are name, power, warmup_epochs, minutes)",
        ),
        (
            "dataset.domains={xyz: [A]}",
            "dataset.domains.xyz is not a known key (known there are train, validate, leave_out)",
        ),
        ("optim.base.decay=1", "optim.base.decay is not a known key (did you mean weight_decay?)"),
    ],
)
def test_suggestions_are_keys_of_the_same_section(override: str, suggestion: str) -> None:
    with pytest.raises(UsageError, match=re.escape(suggestion)):
        read_config("demo", [override])


def test_keys_of_another_member_of_a_union_are_not_suggested() -> None:
    with pytest.raises(UsageError, match=r"known there are name, base[^)]*\)") as refused:
        read_config("demo", ["optim={name: Plain, base: {name: AdamW, lr: 0.1}, xyz: 1}"])
    assert "rho" not in str(refused.value)


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
        UsageError, match=r"training\.patch_size has 100 voxels on spatial axis 1 of \(96, 100\), .* to 96 or 112"
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


def test_an_override_whose_value_is_not_yaml_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--set optim\.rho=\[: the value is not YAML"):
        read_config("demo", ["optim.rho=["])


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(b"\x1f\x8b\x08\x00")
    with pytest.raises(UsageError, match=r"scan\.nii\.gz cannot be read as a configuration"):
        read_config(path)


def test_a_name_longer_than_any_file_can_have_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a{300} cannot be read as a configuration \(File name too long\)"):
        read_config("a" * 300)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (
            "demo",
            ["schedule.warmup_epochs=3", "training.epochs=1"],
            r"schedule: warmup_epochs is 3 and training\.epochs 1, .*set schedule\.warmup_epochs lower",
        ),
        ("acdc_cpu", ["training.epochs=1"], r"schedule: warmup_epochs is 1 and training\.epochs 1, "),
        ("demo", ["optim.base={name: SGD, momentum: 0}"], "optim: Nesterov momentum requires a momentum"),
        ("demo", ["optim.base.betas=[1.5,0.9]"], r"optim: Invalid beta parameter at index 0: 1\.5"),
        ("demo", ["net.encoder_blocks=[1,1,1]"], r"net: encoder_blocks should have 5 numbers .*found \(1, 1, 1\)"),
        ("demo", ["net.kernel_sizes=2"], r"net: kernel_sizes should be odd"),
        ("demo", ["net={name: SegResNet, spatial_dims: 2, init_filters: 7}"], r"net: num_channels \(7\)"),
        ("demo", ["net={name: SwinUNETR, spatial_dims: 2, feature_size: 13}"], "net: feature_size should be divisible"),
        ("demo", ["augment.scale=[-1,0]"], r"augment: scale must lie above 0\.0, got \(-1\.0, 0\.0\)"),
        ("demo", ["augment.mirror_axes=[0,0]"], r"augment: mirror_axes must be distinct axes .*got \(0, 0\)"),
        ("demo", ["preprocess.clip_percentiles=[90,10]"], r"preprocess: clip_percentiles rise within 0 and 100"),
    ],
)
def test_what_a_class_would_refuse_is_refused_when_it_is_read(name: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=rf"{name}\.yaml: {message}"):
        read_config(name, overrides)


@pytest.mark.parametrize("net", ["SegResNet", "UNETR", "SwinUNETR"])
def test_a_network_of_monai_is_read_with_its_defaults(net: str) -> None:
    assert read_config("demo", [f"net={{name: {net}, spatial_dims: 2}}"]).net.name == net


def test_reading_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    read_config("demo")
    read_config("demo", ["net={name: SwinUNETR, spatial_dims: 2}"])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_config_cannot_name_python_objects(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text("name: !!python/object/apply:os.system ['touch canary']")
    with pytest.raises(UsageError, match="not valid YAML"):
        read_config(path)


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("gaqat={every: 5}", "gaqat is not a known key here (it stands in quantization)"),
        ("training.quantization={}", "training.quantization is not a known key here (it stands outermost)"),
        ("rho=0.1", "rho is not a known key here (it stands in domain_generalization or in optim)"),
    ],
)
def test_a_key_that_belongs_elsewhere_is_told_where(override: str, where: str) -> None:
    with pytest.raises(UsageError, match=re.escape(where)):
        read_config("demo", [override])
