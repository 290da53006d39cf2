"""Reading a run's configuration: shipped names, overrides, and the first wrong key."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from uumamba.config import RunConfig, read_config, shipped_configs
from uumamba.config.load import validate
from uumamba.config.registry import KINDS
from uumamba.runtime.errors import UsageError

GIVEN_CT = "preprocess.ct_statistics={low_hu: -50, high_hu: 500, mean_hu: 250, std_hu: 100}"
CT = "preprocess.normalisation=ct"
SGD = "base: {name: SGD}"
OBF = "ascent: {name: output_bias_forgetting}"
STYLE = "domain_generalization={name: UDIM, perturbation: {name: style}}"
INPUT = "domain_generalization={name: UDIM, perturbation: {name: input}}"
BUDGET = "schedule={name: budget, minutes: 5}"
NUMBERS = (
    "seed",
    "net.stem_blocks",
    "loss.focal_gamma",
    "optim.rho",
    "optim.max_grad_norm",
    "optim.base.lr",
    "schedule.power",
    "training.epochs",
    "training.ema_decay",
    "augment.noise_probability",
    "inference.overlap",
)
SAGM = f"optim={{name: SAGM, {SGD}}}"
THREE = [[3, 3]] * 3


def dynunet(strides: list[list[int]], kernel_sizes: list[list[int]]) -> str:
    return (
        f"net={{name: DynUNet, spatial_dims: 2, features: [8,8,8], strides: {strides}, kernel_sizes: {kernel_sizes}}}"
    )


class Halving(nn.Conv2d):
    """Network whose logits have half the image's size."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, stride=2)


class ReadingValues(nn.Conv2d):
    """Network whose forward pass needs values."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image) if image.max() > 0 else image


class OneDivisor(ReadingValues):
    """Network that declares one divisor for two axes."""

    @staticmethod
    def find_divisor(options: object) -> tuple[int, ...]:
        return (1,)


@pytest.fixture
def toy_nets(monkeypatch: pytest.MonkeyPatch) -> None:
    for made in (Halving, ReadingValues, OneDivisor):
        monkeypatch.setitem(KINDS["net"].parts, made.__name__, f"{__name__}:{made.__name__}")


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_config_is_named_after_its_file_and_can_be_built(name: str) -> None:
    config = read_config(name)
    assert config.name == name
    config.check()
    config.check_takes_effect()


def test_a_written_config_reads_back_equal(tmp_path: Path) -> None:
    config = read_config("demo", ["dataset.domains={train: [A, B], validate: [C]}", CT, GIVEN_CT, STYLE])
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(config.as_json()))
    assert read_config(path) == config == validate(config.as_json(), source="stored")


def test_later_keys_have_defaults_that_change_nothing() -> None:
    stored = read_config("demo").as_json()
    for key in ("domain_generalization", "quantization", "objective"):
        del stored[key]
    del stored["dataset"]["domains"]
    del stored["training"]["useful"]
    assert RunConfig.model_validate(stored) == read_config("demo")


def test_trackers_are_not_stored() -> None:
    followed = read_config("demo", ["track=[tensorboard]"])
    assert followed.track == ("tensorboard",)
    assert followed.as_json() == read_config("demo").as_json()


def test_an_override_is_applied_before_validation() -> None:
    assert read_config("demo", ["optim.rho=0.1", "training.epochs=3"]).optim.rho == 0.1


@pytest.mark.parametrize(
    ("override", "key", "nearest"),
    [
        ("training.epoch=3", "training.epoch", "epochs"),
        ("optim.roh=0.1", "optim.roh", "rho"),
        ("optim.base.decay=1", "optim.base.decay", "weight_decay"),
        ("quantization={bits: 4}", "quantization.bits", "weight_bits or act_bits or first_last_bits"),
        ("quantization={gaqat: {treshold: 1}}", "quantization.gaqat.treshold", "threshold"),
        ("schedule.cosine=1", "schedule.cosine", "one of name, power, warmup_epochs, minutes"),
        ("dataset.domains={xyz: [A]}", "dataset.domains.xyz", "one of train, validate, leave_out"),
        ("dataset.domains={validated: [A]}", "dataset.domains.validated", "validate"),
        (f"optim={{name: Plain, {SGD}, xyz: 1}}", "optim.xyz", "one of name, base, max_grad_norm, ascent"),
        (f"optim={{name: Plain, {SGD}, perturb: all}}", "optim.perturb", "perturb in optim with another name"),
        ("gaqat={every: 5}", "gaqat", "gaqat in quantization"),
        ("rho=0.1", "rho", "rho in domain_generalization or in optim"),
        ("training.quantization={}", "training.quantization", "quantization at the top level"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_valid_one(refused, override, key, nearest) -> None:
    with refused(key) as error:
        read_config("demo", [override])
    assert error.value.expected == nearest
    assert f"--set {override}" in error.value.fix


@pytest.mark.parametrize(
    ("overrides", "origin"),
    [
        (["optim.rho=0.1", "training.epochs=1"], "demo.yaml"),
        (["optim.base.lr=1", "optim.rho=-1"], "--set optim.rho=-1"),
        (["optim={name: SAM, rho: -1, base: {name: SGD}}", "seed=1"], "--set optim={name: SAM, rho: -1"),
    ],
)
def test_a_wrong_value_names_the_override_that_set_it_or_the_file(tmp_path, overrides, origin) -> None:
    file, stored = tmp_path / "demo.yaml", read_config("demo").as_json()
    stored["seed"] = "many" if origin == "demo.yaml" else 0
    file.write_text(yaml.safe_dump(stored), encoding="utf-8")
    with pytest.raises(UsageError) as error:
        read_config(file, overrides)
    assert origin in error.value.fix


@pytest.mark.parametrize(
    ("overrides", "key", "got"),
    [
        (["optim.base.lr=-1"], "optim.base.lr", -1),
        (["net.name=VNet"], "net.name", "VNet"),
        (["optim.base.betas=[1.5,0.9]"], "optim.base.betas.0", 1.5),
        (["optim={name: SAM, base: SGD}"], "optim.base", "SGD"),
        (["training.patch_size=[8,64,64]"], "training.patch_size", (8, 64, 64)),
        (["augment.mirror_axes=[2]"], "augment.mirror_axes", (2,)),
        (["augment.scale=[1.4,0.7]"], "augment.scale", (1.4, 0.7)),
        (["augment.scale=[-1,0]"], "augment.scale.0", -1),
        (["net.encoder_blocks=[1,1,1]"], "net.encoder_blocks", (1, 1, 1)),
        (["net.strides=[[2,2],[2,2]]"], "net.strides", ((2, 2), (2, 2))),
        (["schedule.name=budget"], "schedule.minutes", None),
        (["schedule.minutes=25"], "schedule.minutes", 25.0),
        (["loss.terms=[dice]"], "loss.terms.0", "dice"),
        (["preprocess.normalisation=hu"], "preprocess.normalisation", "hu"),
        (["dataset.domains={train: [A], leave_out: B}"], "dataset.domains", None),
        (["dataset.domains={}"], "dataset.domains", None),
        (["dataset.domains={train: []}"], "dataset.domains.train", ()),
        (["dataset.domains={validate: [A, A]}"], "dataset.domains.validate", ("A", "A")),
        (["dataset.domains={leave_out: ''}"], "dataset.domains.leave_out", ""),
        (["track=[wandb]"], "track.0", "wandb"),
        (["objective={name: SAF}"], "objective.name", "SAF"),
        *(([f"{key}=true"], key, True) for key in NUMBERS),
        *(([f"{key}=.nan"], key, None) for key in NUMBERS),
        *(([f"{key}=-1"], key, -1) for key in NUMBERS),
        (["training.patch_size=[true,96]"], "training.patch_size.0", True),
        (["training.sampling={class_weights: {RV: true}}"], "training.sampling.class_weights.RV", True),
        (["quantization={calibration_batches: 41}"], "quantization.calibration_batches", 41),
        (["quantization={overrides: {'decoder.*': none}}"], "quantization.overrides.decoder.*", "none"),
        (["quantization={}", "objective={name: MESA}"], "objective.name", "MESA"),
        (["quantization={gaqat: {}}"], "optim", "name SAM, perturb all, rho 0.05"),
        (["quantization={gaqat: {}}", SAGM, "optim.rho=0"], "optim", "name SAGM, perturb all, rho 0.0"),
        ([f"optim={{name: LookSAM, k: 0, {SGD}}}"], "optim.k", 0),
        ([f"optim={{name: LookSAM, trigger: {{start: 1.0}}, {SGD}}}"], "optim.trigger.total_steps", "nothing"),
        ([f"optim={{name: FriendlySAM, lam: 1.0, {SGD}}}"], "optim.lam", 1.0),
        ([f"optim={{name: SAM, perturb: norms, {SGD}}}"], "optim.perturb", "norms"),
        ([f"optim={{name: SAM, perturbation: one, {SGD}}}"], "optim.perturbation", "one"),
        ([f"optim={{name: Plain, {SGD}, {OBF}}}"], "optim.ascent", "output_bias_forgetting"),
        ([f"optim={{name: SAM, {SGD}, ascent: {{name: forgetting}}}}"], "optim.ascent.name", "forgetting"),
        ([f"optim={{name: TRAM, {SGD}, trust: theta}}"], "optim.trust", "theta"),
        (["domain_generalization={name: UDIM}"], "domain_generalization.perturbation", "nothing"),
        ([STYLE, "domain_generalization.lambda1=-1"], "domain_generalization.lambda1", -1),
        (["quantization={weight_bits: 9}"], "quantization.weight_bits", 9),
        (["optim.base={name: SGD, momentum: 1}"], "optim.base.momentum", 1),
        ([dynunet([], THREE)], "net.strides", ()),
        ([dynunet([[1, 1, 1], [2, 2, 2], [2, 2, 2]], THREE)], "net.strides", None),
        ([dynunet([[1, 1], [2, 2], [2]], THREE)], "net.strides", None),
        ([dynunet([[2, 2], [2, 2], [2, 2]], THREE)], "net.strides", None),
        ([dynunet([[1, 1], [2, 2], [2, 2]], [[3, 3], [2, 2], [3, 3]])], "net.kernel_sizes", None),
        ([dynunet([[1, 1], [2, 2], [2, 2]], [[3, 3], [3, 3]])], "net.kernel_sizes", None),
        (["quantization={gaqat: {every: 1}}", SAGM], "quantization.gaqat.every", 1),
    ],
)
def test_a_wrong_value_is_rejected_when_the_configuration_is_read(refused, overrides, key, got) -> None:
    with refused(key) as error:
        read_config("demo", overrides)
    assert got is None or error.value.got == got


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["optim.base={name: SGD, nesterov: true}"], "optim"),
        ([f"optim={{name: GSAM, rho_min: 0.01, {SGD}}}"], "optim"),
        (["optim={name: MSAM, base: {name: SGD, momentum: 0, nesterov: false}}"], "optim"),
        ([f"optim={{name: TRAM, {SGD}, min_distance: 2, max_distance: 1}}"], "optim"),
        ([f"optim={{name: TRAM, {SGD}}}", "objective={name: MESA}"], "objective.name"),
        ([f"optim={{name: SAM, {SGD}, {OBF}}}", "objective={name: MESA}"], "objective.name"),
        (["loss.terms=[region,region]"], "loss.terms"),
        (["loss.mode=released_code", "loss.terms=[region]"], "loss.terms"),
        (["loss.terms=[]"], "loss.terms"),
        (["net={name: SegResNet, spatial_dims: 2, init_filters: 7}"], "net"),
        (["net={name: SegResNet, spatial_dims: 2, blocks_up: [1]}"], "net.blocks_up"),
        (["net={name: SegResNet, spatial_dims: 2, blocks_down: [1]}"], "net.blocks_up"),
        (["net={name: SegResNet, spatial_dims: 2, blocks_down: []}"], "net.blocks_down"),
        ([dynunet([[1, 1], [4, 4], [2, 2]], [[1, 1], [1, 1], [3, 3]])], "net"),
        (["net={name: SwinUNETR, spatial_dims: 2}", "training.patch_size=[32,32]"], "net"),
        (["net={name: SwinUNETR, spatial_dims: 2, feature_size: 13}"], "net"),
        (["preprocess.clip_percentiles=[90,10]"], "preprocess"),
        ([GIVEN_CT], "preprocess"),
        ([CT, GIVEN_CT.replace("100", "0")], "preprocess"),
        ([CT, GIVEN_CT, "preprocess.clip_percentiles=[1,99]"], "preprocess.clip_percentiles"),
        (["quantization={overrides: {'head.*': 8}}"], "quantization"),
        ([INPUT], "domain_generalization.perturbation.rms"),
        ([STYLE, BUDGET], "domain_generalization.warmup_fraction"),
        ([STYLE, "domain_generalization.perturbation.parts=[mean,mean]"], "domain_generalization"),
    ],
)
def test_values_that_a_constructor_rejects_are_rejected_by_the_check(overrides, key) -> None:
    config = read_config("demo", overrides)
    with pytest.raises(UsageError) as error:
        config.check()
    assert error.value.key.startswith(key)


@pytest.mark.usefixtures("toy_nets")
def test_the_check_refuses_logits_of_another_size_than_the_patch(refused) -> None:
    with refused("net", got="logits of the shape (1, 2, 48, 48)") as error:
        read_config("demo", ["net={name: Halving}"]).check()
    assert "(1, 2, 96, 96)" in error.value.expected


@pytest.mark.usefixtures("toy_nets")
def test_the_check_allows_a_network_whose_pass_needs_values() -> None:
    read_config("demo", ["net={name: ReadingValues}"]).check()


@pytest.mark.usefixtures("toy_nets")
def test_an_error_of_python_while_reading_has_the_file_as_key_and_is_short(refused) -> None:
    with refused("demo.yaml") as error:
        read_config("demo", ["net={name: OneDivisor}"])
    assert len(str(error.value)) < 200


def test_a_check_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    read_config("demo").check()
    read_config("demo", ["net={name: SwinUNETR, spatial_dims: 2}", "training.patch_size=[64,64]"]).check()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_patch_that_the_strides_do_not_divide_is_refused_with_the_nearest_sizes(refused) -> None:
    with refused("training.patch_size", got=(96, 100)) as error:
        read_config("demo", ["training.patch_size=[96,100]"])
    assert "axis 1 to 96 or 112" in error.value.fix


@pytest.mark.parametrize("override", ["optim.rho", "optim.rho=[", "training.epochs.x=1"])
def test_an_override_that_sets_nothing_is_refused(refused, override: str) -> None:
    with refused("--set", got=override):
        read_config("demo", [override])


@pytest.mark.parametrize("content", [b"a: [1, 2", b"- 1", b"name: !!python/object/apply:os.system ['touch canary']"])
def test_a_file_that_is_no_configuration_is_refused(refused, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with refused(str(path)):
        read_config(path)
    assert not Path("canary").exists()


def test_a_key_given_twice_is_refused_and_a_merged_one_is_not(refused, tmp_path: Path) -> None:
    path, text = tmp_path / "mine.yaml", yaml.safe_dump(read_config("demo").as_json())
    path.write_text(f"{text}seed: 5\n")
    with refused(str(path), got="the key seed twice in line 1 and below"):
        read_config(path)
    merged = text.replace("training:\n", "training:\n  <<: {epochs: 7}\n")
    assert merged != text
    path.write_text(merged)
    assert read_config(path) == read_config("demo")


def test_a_file_that_cannot_be_read_is_refused(refused, tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(b"\x1f\x8b\x08\x00")
    with refused(str(path), got="binary data"):
        read_config(path)
    with refused("a" * 300, got="File name too long"):
        read_config("a" * 300)
    with refused("CONFIG", got="absent.yaml, which does not exist") as error:
        read_config("absent.yaml")
    assert "demo" in error.value.expected


def test_the_presets_of_a_study_differ_only_in_the_named_sections() -> None:
    names = ("acdc_uu_mamba", "acdc_dg_strong", "acdc_dg_sam", "acdc_dg_udim")
    plain, strong, sam, udim = (read_config(name).as_json() for name in names)
    changed = [
        {key for key in a if a[key] != b[key]} - {"name"} for a, b in ((plain, strong), (strong, sam), (sam, udim))
    ]
    assert changed == [{"augment", "optim"}, {"optim"}, {"domain_generalization"}]
    assert plain["optim"] == sam["optim"]
    useful = read_config("acdc_dg_useful").as_json()
    assert useful["training"].pop("useful")["group_by"] == "phase"
    assert plain["training"].pop("useful") is None
    assert useful | {"name": "acdc_uu_mamba"} == plain
