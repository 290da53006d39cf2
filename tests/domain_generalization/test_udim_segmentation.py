"""UDIM for segmentation: voxels are samples, a few of each class, in 2-D and 3-D."""

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.domain_generalization import UDIM, InputPerturbation, StylePerturbation
from uumamba.losses import CrossEntropyLoss, DeepSupervisionLoss, SoftDiceLoss, UncertaintyWeightedLoss
from uumamba.nets import UMambaBot
from uumamba.ops.scan_backends import scan_backends
from uumamba.optim import SAM

SGD = partial(torch.optim.SGD, lr=0.01)


def scan_net(dims: int, *, deep_supervision: bool = True) -> UMambaBot:
    torch.manual_seed(0)
    return UMambaBot(dims, 1, 3, features=(4, 8), strides=(1, 2), deep_supervision=deep_supervision)


def scans(dims: int) -> tuple[Tensor, Tensor]:
    """Two images with a bright and a dark corner on background, and their labels."""
    generator = torch.Generator().manual_seed(1)
    label = torch.zeros(2, 1, *(8,) * dims, dtype=torch.int64)
    label[(..., *(slice(0, 3),) * dims)], label[(..., *(slice(5, 8),) * dims)] = 1, 2
    image = torch.tensor([0.0, 1.0, -1.0])[label] + 0.3 * torch.randn(label.shape, generator=generator)
    return image, label


def voxel_loss(logits: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(logits, label[:, 0])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "perturbation", [InputPerturbation(rms=0.05), StylePerturbation(0.5)], ids=["intensity", "style"]
)
def test_a_step_of_a_scan_network_with_a_compound_loss_moves_every_parameter(dims: int, perturbation: Any) -> None:
    net = scan_net(dims)
    terms = {"region": SoftDiceLoss(), "distribution": CrossEntropyLoss()}
    loss = DeepSupervisionLoss(UncertaintyWeightedLoss(terms))
    image, label = scans(dims)
    udim = UDIM(net, loss, perturbation, second_order="finite_difference")
    optimizer = SAM([*net.parameters(), *loss.parameters()], SGD, net=net)
    # A convolution's bias before an instance norm has no slope.
    before = {name: param.clone() for name, param in net.named_parameters() if "bias" not in name}
    value = optimizer.step(lambda: loss(net(image), label), at_weights=udim.at_weights(image, label))
    assert value.isfinite()
    assert optimizer.skipped_steps == 0
    assert all(not torch.equal(dict(net.named_parameters())[name], old) for name, old in before.items())


def test_a_scan_whose_kernel_has_one_derivative_falls_back_to_differences_and_says_so() -> None:
    net = scan_net(2, deep_supervision=False)
    udim = UDIM(net, voxel_loss, InputPerturbation(rms=0.05))
    image, label = scans(2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        moved = udim.perturbed(image, label) - image
    assert len(said) == ("native" in scan_backends())
    assert all("has no second derivative" in str(each.message) for each in said)
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.full((2,), 0.05 * 8))


def test_more_background_changes_nothing_where_classes_give_equally_many() -> None:
    torch.manual_seed(0)
    net = nn.Conv2d(1, 3, 1)
    label = scans(2)[1]
    image = torch.tensor([0.0, 1.0, -1.0])[
        label
    ]  # of one value a class, so that any draw of voxels has their gradients
    found = {}
    for count in (9, 10_000):
        udim = UDIM(net, voxel_loss, InputPerturbation(radius=1e-6), voxels_a_class=count)
        narrow, wide = (udim.terms(F.pad(image, (0, by)), F.pad(label, (0, by))) for by in (0, 24))
        found[count] = float((wide["gradient_norm"] / narrow["gradient_norm"]).detach())
    assert found[9] == pytest.approx(1, abs=1e-4)
    assert abs(found[10_000] - 1) > 0.05


@pytest.mark.parametrize("shape", ["B1S", "BS"])
def test_labels_with_and_without_a_channel_are_the_same(shape: str) -> None:
    net = scan_net(2, deep_supervision=False)
    image, label = scans(2)
    given, loss = (label, voxel_loss) if shape == "B1S" else (label[:, 0], F.cross_entropy)
    options: Any = {"second_order": False}
    found = UDIM(net, loss, InputPerturbation(rms=0.05), **options).terms(image, given)
    expected = UDIM(net, voxel_loss, InputPerturbation(rms=0.05), **options).terms(image, label)
    assert found == expected


def test_where_everything_is_ignored_the_step_goes_on_without() -> None:
    torch.manual_seed(0)
    net, other = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 3, 1)
    other.load_state_dict(net.state_dict())
    image, label = scans(2)
    udim = UDIM(net, lambda logits, _: logits.square().mean(), InputPerturbation(0.1), ignore_label=255)
    added = udim.at_weights(image, torch.full_like(label, 255))
    SAM(net.parameters(), SGD).step(partial(loss_of, net, image, label), at_weights=added)
    SAM(other.parameters(), SGD).step(partial(loss_of, other, image, label))
    assert torch.equal(net.weight, other.weight)


def loss_of(net: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    return voxel_loss(net(image), label)
