"""UDIM for segmentation in 2-D and 3-D, with voxels as samples."""

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
    """Two images with a bright and a dark corner, and their labels."""
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
def test_a_step_of_a_scan_network_with_a_compound_loss_changes_every_parameter(dims: int, perturbation: Any) -> None:
    net = scan_net(dims)
    terms = {"region": SoftDiceLoss(), "distribution": CrossEntropyLoss()}
    loss = DeepSupervisionLoss(UncertaintyWeightedLoss(terms))
    image, label = scans(dims)
    udim = UDIM(net, loss, perturbation, second_order="finite_difference")
    optimizer = SAM([*net.parameters(), *loss.parameters()], SGD, net=net)
    # The bias of a convolution before an instance norm has no gradient.
    before = {name: param.clone() for name, param in net.named_parameters() if "bias" not in name}
    value = optimizer.step(lambda: loss(net(image), label), at_weights=udim.at_weights(image, label))
    assert value.isfinite()
    assert optimizer.skipped_steps == 0
    assert all(not torch.equal(dict(net.named_parameters())[name], old) for name, old in before.items())


def test_a_scan_kernel_without_second_derivative_warns_and_uses_finite_differences() -> None:
    net = scan_net(2, deep_supervision=False)
    udim = UDIM(net, voxel_loss, InputPerturbation(rms=0.05))
    image, label = scans(2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        change = udim.perturbed(image, label) - image
    assert len(caught) == ("native" in scan_backends())
    assert all("has no second derivative" in str(each.message) for each in caught)
    torch.testing.assert_close(change.flatten(1).norm(dim=1), torch.full((2,), 0.05 * 8))


def test_more_background_changes_nothing_with_equal_numbers_of_voxels_per_class() -> None:
    torch.manual_seed(0)
    net = nn.Conv2d(1, 3, 1)
    label = scans(2)[1]
    image = torch.tensor([0.0, 1.0, -1.0])[label]  # one value per class: every draw of voxels has equal gradients
    found = {}
    for count in (9, 10_000):
        udim = UDIM(net, voxel_loss, InputPerturbation(radius=1e-6), voxels_a_class=count)
        narrow, wide = (udim.terms(F.pad(image, (0, by)), F.pad(label, (0, by))) for by in (0, 24))
        found[count] = float((wide["gradient_norm"] / narrow["gradient_norm"]).detach())
    assert found[9] == pytest.approx(1, abs=1e-4)
    assert abs(found[10_000] - 1) > 0.05


def test_labels_with_and_without_a_channel_give_equal_terms() -> None:
    net = scan_net(2, deep_supervision=False)
    image, label = scans(2)
    make = partial(UDIM, net, perturbation=InputPerturbation(rms=0.05), second_order=False)
    assert make(F.cross_entropy).terms(image, label[:, 0]) == make(voxel_loss).terms(image, label)


def test_a_step_with_ignored_voxels_only_has_no_penalty() -> None:
    torch.manual_seed(0)
    net, other = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 3, 1)
    other.load_state_dict(net.state_dict())
    image, label = scans(2)
    udim = UDIM(net, lambda logits, _: logits.square().mean(), InputPerturbation(0.1), ignore_label=255)
    added = udim.at_weights(image, torch.full_like(label, 255))
    SAM(net.parameters(), SGD).step(lambda: voxel_loss(net(image), label), at_weights=added)
    SAM(other.parameters(), SGD).step(lambda: voxel_loss(other(image), label))
    assert torch.equal(net.weight, other.weight)
