"""Cascade: input of the fine network, outputs and gradients."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from uumamba.nets import CoarseToFine, ResEncUNet, UMambaBot

CLASSES = 3
STAGES = {"features": (4, 8, 8), "strides": (1, 2, 2), "encoder_blocks": (1, 1, 1), "decoder_blocks": (1, 1)}


@pytest.fixture
def net() -> CoarseToFine:
    coarse = UMambaBot(3, 1, CLASSES, **STAGES)
    return CoarseToFine(coarse, ResEncUNet(3, 1 + CLASSES, CLASSES, **STAGES), factor=(1, 2, 2))


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 1, 8, 16, 16)


def test_fine_network_gets_the_image_and_the_coarse_prediction(net: CoarseToFine, image: Tensor) -> None:
    net, image = net.eval().double(), image.double()
    small = image.unfold(3, 2, 2).unfold(4, 2, 2).mean((-1, -2))  # blocks of 1 x 2 x 2 voxels
    prediction = F.interpolate(net.coarse(small).softmax(1), (8, 16, 16), mode="trilinear", align_corners=False)
    torch.testing.assert_close(net(image), net.fine(torch.cat((image, prediction), 1)))


def test_coarse_logits_are_second_and_the_finest_have_gradients_in_both_networks(net: CoarseToFine, image: Tensor):
    logits = net.train()(image)
    assert [tuple(each.shape[2:]) for each in logits] == [(8, 16, 16), (8, 8, 8), (4, 8, 8), (4, 4, 4)]
    logits[0].square().mean().backward()
    for part in (net.coarse, net.fine):
        assert part.encoder.get_parameter("stages.0.0.conv1.weight").grad.norm() > 0


def test_patch_must_be_divisible_for_both_networks(net: CoarseToFine, refused) -> None:
    assert net.required_divisor == (4, 8, 8)
    assert net.minimum_patch == (4, 8, 16)
    with refused("image", got=(4, 8, 12)):
        net(torch.zeros(1, 1, 4, 8, 12))


@pytest.mark.parametrize("factor", [(2, 2), (0, 2, 2)])
def test_wrong_factor_is_refused(net: CoarseToFine, refused, factor) -> None:
    with refused("factor", got=factor):
        CoarseToFine(net.coarse, net.fine, factor=factor)


def test_networks_of_different_dimensions_are_refused(net: CoarseToFine, refused) -> None:
    with refused("fine", got="2-D"):
        CoarseToFine(net.coarse, ResEncUNet(2, 4, CLASSES, **STAGES), factor=(1, 2, 2))
