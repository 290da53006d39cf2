"""The fine network sees what the coarse one said of the same place, and both learn."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from uumamba.nets import CoarseToFine, ResEncUNet, UMambaBot

CLASSES = 3
STAGES = {"features": (4, 8, 8), "strides": (1, 2, 2), "encoder_blocks": (1, 1, 1), "decoder_blocks": (1, 1)}


@pytest.fixture
def net() -> CoarseToFine:
    torch.manual_seed(0)
    coarse = UMambaBot(3, 1, CLASSES, **STAGES)
    return CoarseToFine(coarse, ResEncUNet(3, 1 + CLASSES, CLASSES, **STAGES), factor=(1, 2, 2))


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 1, 8, 16, 16, generator=torch.Generator().manual_seed(1))


def test_it_is_the_fine_network_of_the_image_and_of_the_coarse_answer(net: CoarseToFine, image: Tensor) -> None:
    net, image = net.eval().double(), image.double()
    small = image.unfold(3, 2, 2).unfold(4, 2, 2).mean((-1, -2))  # blocks of 1 x 2 x 2 voxels
    answer = F.interpolate(net.coarse(small).softmax(1), (8, 16, 16), mode="trilinear", align_corners=False)
    torch.testing.assert_close(net(image), net.fine(torch.cat((image, answer), 1)))


def test_in_training_the_coarse_logits_come_second(net: CoarseToFine, image: Tensor) -> None:
    sizes = [tuple(logits.shape[2:]) for logits in net.train()(image)]
    assert sizes == [(8, 16, 16), (8, 8, 8), (4, 8, 8), (4, 4, 4)]


def test_the_finest_logits_alone_teach_both_networks(net: CoarseToFine, image: Tensor) -> None:
    net.train()(image)[0].square().mean().backward()
    for part in (net.coarse, net.fine):
        weights = part.encoder.get_parameter("stages.0.0.conv1.weight")
        assert weights.grad is not None
        assert weights.grad.norm() > 0


def test_what_the_coarse_network_says_changes_the_answer(net: CoarseToFine, image: Tensor) -> None:
    net.eval()
    before = net(image)
    head = net.coarse.decoder.get_parameter("seg_layers.1.bias")
    with torch.no_grad():
        head[1] += 10.0
    assert not torch.allclose(net(image), before, atol=1e-3)


def test_the_patch_must_be_divisible_for_both(net: CoarseToFine) -> None:
    assert net.required_divisor == (4, 8, 8)
    assert net.minimum_patch == (4, 8, 16)
    with pytest.raises(ValueError, match=r"the image has 12 voxels on spatial axis 2 .* multiple of 8 .* 8 or 16"):
        net(torch.zeros(1, 1, 4, 8, 12))


def test_a_factor_that_makes_no_sense_is_refused(net: CoarseToFine) -> None:
    with pytest.raises(ValueError, match=r"one number of axes, found 3, 3 and 2"):
        CoarseToFine(net.coarse, net.fine, factor=(2, 2))
    with pytest.raises(ValueError, match=r"factor should be 1 or more on every axis, found \(0, 2, 2\)"):
        CoarseToFine(net.coarse, net.fine, factor=(0, 2, 2))
