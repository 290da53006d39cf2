"""Mirroring."""

import pytest
import torch

from uumamba.data.augmentation.draws import Drawn, draw_for_batch
from uumamba.data.augmentation.mirror import Mirror


def test_the_named_axes_are_flipped_in_image_and_label() -> None:
    image, label = torch.randn(2, 2, 3, 4, 5), torch.randint(0, 3, (2, 1, 3, 4, 5))
    flip = Drawn(rows=(1,), values={"flip": torch.tensor([[True, False]])})
    flipped, flipped_label = Mirror(dimensions=3, axes=(2, 0)).apply(image, label, flip)
    assert torch.equal(flipped[0], image[0])
    assert torch.equal(flipped[1], image[1].flip(3))  # spatial axis 2 of a sample with a channel axis
    assert torch.equal(flipped_label[1], label[1].flip(3))


def test_flipping_twice_is_the_identity() -> None:
    mirror = Mirror(dimensions=2, axes=(0, 1), probability=1.0)
    image, label = torch.randn(3, 1, 6, 7), torch.randint(0, 3, (3, 1, 6, 7))
    flips = draw_for_batch("mirror", range(3), mirror.draw)
    once = mirror.apply(image, label, flips)
    assert torch.equal(once[0], image.flip(2, 3))
    twice = mirror.apply(*once, flips)
    assert torch.equal(twice[0], image)
    assert torch.equal(twice[1], label)


def test_each_axis_is_flipped_at_its_rate_and_independently() -> None:
    mirror = Mirror(dimensions=2, axes=(0, 1), probability=0.5)
    drawn = draw_for_batch("mirror", range(2000), mirror.draw)
    flips = torch.zeros(2000, 2, dtype=torch.bool)
    flips[list(drawn.rows)] = drawn.values["flip"]
    tolerance = 4 * (0.25 / 2000) ** 0.5
    assert abs(flips[:, 0].float().mean() - 0.5) < tolerance
    assert abs(flips[:, 1].float().mean() - 0.5) < tolerance
    assert abs((flips[:, 0] & flips[:, 1]).float().mean() - 0.25) < tolerance


def test_without_axes_nothing_is_ever_drawn() -> None:
    assert draw_for_batch("mirror", range(50), Mirror(dimensions=2).draw).rows == ()


@pytest.mark.parametrize("axes", [(2,), (-1,), (0, 0)])
def test_axes_that_do_not_exist_or_repeat_are_refused(axes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="mirror_axes must be distinct axes from 0 to 1"):
        Mirror(dimensions=2, axes=axes)
