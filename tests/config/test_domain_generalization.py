"""Domain-generalization methods of a configuration."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uumamba.config import RunConfig, read_config
from uumamba.config.registry import KINDS
from uumamba.domain_generalization import UDIM, InputPerturbation, StylePerturbation
from uumamba.pipelines.build import build_loss

STYLE = "domain_generalization={name: UDIM, perturbation: {name: style}}"
SMALL = ["net.features=[4,8]", "net.strides=[[1,1],[2,2]]", "net.encoder_blocks=null", "net.decoder_blocks=null"]
NETWORKS = {
    "UMambaBot": SMALL,
    "without deep supervision": [*SMALL, "net.deep_supervision=false"],
    "CoarseToFine": [
        "net={name: CoarseToFine, factor: [2,2],"
        " coarse: {name: ResEncUNet, spatial_dims: 2, features: [4,8], strides: [[1,1],[2,2]]},"
        " fine: {name: ResEncUNet, spatial_dims: 2, features: [4,8], strides: [[1,1],[2,2]]}}"
    ],
    "SegResNet": ["net={name: SegResNet, spatial_dims: 2, init_filters: 8}"],
    "DynUNet": [
        "net={name: DynUNet, spatial_dims: 2, features: [4,8,8], strides: [[1,1],[2,2],[2,2]],"
        " kernel_sizes: [[3,3],[3,3],[3,3]]}"
    ],
    "UNETR": ["net={name: UNETR, spatial_dims: 2, feature_size: 4, hidden_size: 12, mlp_dim: 12, num_heads: 2}"],
    "SwinUNETR": ["net={name: SwinUNETR, spatial_dims: 2, feature_size: 12}"],
}


def small(*overrides: str) -> RunConfig:
    """Read the demo's run with a small network."""
    return read_config("demo", [*SMALL, *overrides])


def built(config: RunConfig, **where: Any) -> UDIM:
    net = config.build_net(classes=3)
    found = config.build_method(net, build_loss(config), **where)
    assert isinstance(found, UDIM)
    return found


def test_a_run_without_a_method_adds_nothing() -> None:
    config = read_config("demo")
    assert config.as_json()["domain_generalization"] is None
    assert config.build_method(nn.Identity(), nn.Identity()) is None


def test_udim_gets_its_options_and_the_run_s_seed_and_steps() -> None:
    udim = built(
        small(
            "domain_generalization={name: UDIM, lambda1: 7, lambda2: 3, warmup_fraction: 0.25, direction: random,"
            " second_order: finite_difference, voxels_a_class: 9,"
            " perturbation: {name: style, radius: 0.2, parts: [mean, gamma], control_points: 3}}",
            "training.epochs=4",
            "training.batches_per_epoch=10",
            "seed=5",
        )
    )
    assert (udim.lambda1, udim.lambda2, udim.direction, udim.seed) == (7, 3, "random", 5)
    assert udim.warmup_steps == 10, "a quarter of 4 times 10"
    assert udim.perturbation == StylePerturbation(0.2, parts=("mean", "gamma"), control_points=3)
    assert udim._ascent.second_order == "finite_difference"
    assert udim._head.voxels_a_class == 9


@pytest.mark.parametrize("size", [{"rms": 0.1}, {"radius": 2.0}])
def test_the_perturbation_may_be_one_of_the_input(size: dict[str, float]) -> None:
    name, value = next(iter(size.items()))
    udim = built(small(f"domain_generalization={{name: UDIM, perturbation: {{name: input, {name}: {value}}}}}"))
    assert udim.perturbation == InputPerturbation(**size)


@pytest.mark.parametrize(
    ("overrides", "rho"),
    [
        (["optim.rho=0.3"], 0.3),
        (["optim={name: ASAM, rho: 0.7, base: {name: AdamW}}"], 0.7),
        (["optim={name: Plain, base: {name: AdamW}}"], 0.0),
        (["optim.rho=0.3", "domain_generalization.rho=0.05"], 0.05),
    ],
)
def test_rho_is_the_optimizer_s_unless_given(overrides: list[str], rho: float) -> None:
    assert built(small(STYLE, *overrides))._ascent.rho == rho


def test_two_ranks_draw_different_directions() -> None:
    config = small(STYLE, "domain_generalization.direction=random")
    image, label = torch.randn(1, 1, 96, 96), torch.zeros(1, 1, 96, 96, dtype=torch.int64)
    first, again, other = (built(config, rank=rank).perturbed(image, label) for rank in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_a_configuration_has_a_linear_head_for_udim(name: str) -> None:
    first_order = "domain_generalization.second_order=false"
    config = read_config("demo", [*NETWORKS[name], "training.patch_size=[64,64]", STYLE, first_order])
    net, loss = config.build_net(classes=3).train(), build_loss(config)
    udim = config.build_method(net, loss)
    assert udim is not None
    config.check()
    udim.warmup_steps = 0
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 1, 64, 64, generator=generator)
    label = torch.randint(3, image.shape, generator=generator)
    scalar = udim.at_weights(image, label, domains=["A", "B"])
    assert scalar is not None
    scalar().backward()
    gradients = [param.grad for param in net.parameters() if param.grad is not None]
    assert sum(grad.abs().sum() for grad in gradients) > 0


class Rectified(nn.Module):
    """Network that changes the output of its last layer."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(image).relu() + 1


def wide_kernel(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Module:
    """Make a network with a last layer of kernel 3."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1))


def with_dropout(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Module:
    """Make a network that draws random numbers in every pass."""
    return nn.Sequential(nn.Conv2d(in_channels, 4, 1), nn.Dropout(0.5), nn.Conv2d(4, out_channels, 1))


@pytest.fixture
def toy_nets(monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (Rectified, wide_kernel, with_dropout):
        monkeypatch.setitem(KINDS["net"].parts, make.__name__, f"{__name__}:{make.__name__}")


@pytest.mark.usefixtures("toy_nets")
@pytest.mark.parametrize("name", ["Rectified", "wide_kernel"])
def test_a_network_without_a_linear_head_is_refused_by_the_check(refused: Any, name: str) -> None:
    net = f"net={{name: {name}, spatial_dims: 2}}"
    with refused("net.name", got=name) as error:
        read_config("demo", [net, STYLE]).check()
    assert "head" in error.value.expected
    read_config("demo", [net]).check()


@pytest.mark.usefixtures("toy_nets")
@pytest.mark.parametrize("net", ["{name: with_dropout, spatial_dims: 2}", "{name: SegResNet, spatial_dims: 2}"])
@pytest.mark.parametrize("bits", ["null", "{}", "{act_bits: null, start_step: 5}"])
def test_the_check_of_a_head_draws_no_random_number_and_allows_few_bits(net: str, bits: str) -> None:
    before = torch.get_rng_state()
    read_config("demo", [f"net={net}", STYLE, f"quantization={bits}"]).check()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_budget_without_a_warm_up_is_read() -> None:
    config = read_config(
        "demo", [STYLE, "domain_generalization.warmup_fraction=0", "schedule={name: budget, minutes: 5}"]
    )
    assert built(config).warmup_steps == 0
