"""One step of each shipped run changes every parameter.

The released UU-Mamba code made its loss again after the optimizer had the first loss's parameters, and no test failed.
Here each config's objects are built once. Every parameter must be in the optimizer, get a gradient and change.
"""

import pytest
import torch
from torch import nn

from uumamba.config import RunConfig, read_config, shipped_configs
from uumamba.config.net import find_divisor
from uumamba.config.optim import build_optimizer
from uumamba.pipelines.build import build_loss
from uumamba.quantization import calibrate
from uumamba.training import SupervisedObjective

CLASSES = 4


def smallest(name: str) -> RunConfig:
    """Read the run with batch 1, few features and the smallest patch."""
    config = read_config(name)
    divisor = find_divisor(config.net, axes=len(config.training.patch_size))
    parts = {"net.coarse": config.net.coarse, "net.fine": config.net.fine} if name == "aorta_coarse_to_fine" else {}
    narrow = {key: [min(8, width) for width in net.features] for key, net in (parts or {"net": config.net}).items()}
    features = [f"{key}.features={widths}" for key, widths in narrow.items()]
    patch = [*divisor[:-1], 2 * divisor[-1]]
    return read_config(name, [*features, f"training.patch_size={patch}", "training.batch_size=1"])


def batch_of(config: RunConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (1, 1, *config.training.patch_size)
    return {
        "image": torch.randn(shape, generator=generator),
        "label": torch.randint(0, CLASSES, shape, generator=generator),
    }


def net_of(config: RunConfig) -> nn.Module:
    """Build the trained network with the run's bit widths."""
    net = config.build_net(classes=CLASSES)
    return net if config.quantization is None else config.quantization.bind()(net)


def excepted(net: nn.Module) -> dict[str, str]:
    """Find parameters that get no gradient by design, with the reason."""
    reasons = {}
    modules = dict(net.named_modules())
    for name, _ in net.named_parameters():
        owner, _, kind = name.rpartition(".")
        parent, _, own = owner.rpartition(".")
        norm_follows = own.startswith("conv") and any(
            f"{parent}.{sibling}" in modules for sibling in ("norm", own.replace("conv", "norm"))
        )
        if kind == "bias" and norm_follows and not isinstance(modules[owner], nn.Conv1d):
            reasons[name] = "the instance norm after it subtracts the bias"
    coarsest = "coarse.decoder.seg_layers.0." if "coarse" in modules else "decoder.seg_layers.0."
    if sum("decoder.seg_layers." in name for name, _ in net.named_parameters()) > 2:
        reasons |= {
            name: "the coarsest deep-supervision head has weight 0"
            for name, _ in net.named_parameters()
            if name.startswith(coarsest)
        }
    return reasons


@pytest.mark.parametrize("name", shipped_configs())
def test_every_parameter_of_net_and_loss_gets_a_gradient_and_changes(name: str) -> None:
    config = smallest(name)
    torch.manual_seed(0)
    net, objective = net_of(config).train(), SupervisedObjective(build_loss(config))
    if config.quantization is not None:
        calibrate(net, [batch_of(config)["image"]])
    optimizer = build_optimizer(config.optim, net, objective)
    named = {f"net.{key}": value for key, value in net.named_parameters()}
    named |= {f"objective.{key}": value for key, value in objective.named_parameters()}
    assert any(key.startswith("objective.") for key in named), "the loss has weights of its own"
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in named.values()}

    batch = batch_of(config)
    objective(net, batch).backward()
    skip = {f"net.{key}" for key in excepted(net)}
    for key, parameter in named.items():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert key in skip or parameter.grad.abs().sum() > 0, key

    before = {key: parameter.detach().clone() for key, parameter in named.items()}
    optimizer.step(lambda: objective(net, batch))
    still = [key for key, parameter in named.items() if key not in skip and torch.equal(parameter, before[key])]
    assert not still


@pytest.mark.parametrize("name", shipped_configs())
def test_the_loss_weights_are_neither_perturbed_nor_decayed(name: str) -> None:
    config = smallest(name)
    with torch.device("meta"):
        net = net_of(config)
    objective = SupervisedObjective(build_loss(config))
    own = {id(parameter) for parameter in objective.parameters()}
    for group in build_optimizer(config.optim, net, objective).param_groups:
        if any(id(parameter) in own for parameter in group["params"]):
            assert group["perturb"] is False
            assert group["weight_decay"] == 0
