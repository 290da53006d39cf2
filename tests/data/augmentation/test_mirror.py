"""Mirroring."""

import pytest
import torch

from uumamba.data.augmentation.parameters import Drawn, draw_for_batch
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


def test_a_flip_along_an_axis_with_swaps_exchanges_the_labels_and_no_other_flip_does() -> None:
    image, label = torch.randn(4, 1, 3, 4), torch.randint(0, 5, (4, 1, 3, 4))
    mirror = Mirror(dimensions=2, axes=(0, 1), swaps={1: [(1, 3), (2, 4)]})
    flips = [[False, True], [True, False], [True, True]]
    drawn = Drawn(rows=(0, 1, 2), values={"flip": torch.tensor(flips)})
    flipped, swapped = mirror.apply(image, label.clone(), drawn)
    exchanged = torch.tensor([0, 3, 4, 1, 2])
    assert torch.equal(swapped[0], exchanged[label[0].flip(2)])
    assert torch.equal(swapped[1], label[1].flip(1))
    assert torch.equal(swapped[2], exchanged[label[2].flip(1, 2)])
    assert torch.equal(swapped[3], label[3])
    assert torch.equal(flipped[2], image[2].flip(1, 2))


def test_swaps_change_no_draw_and_write_to_no_given_label() -> None:
    image, label = torch.randn(3, 1, 4, 4), torch.randint(0, 3, (3, 1, 4, 4))
    plain, swapping = Mirror(dimensions=2, axes=(1,)), Mirror(dimensions=2, axes=(1,), swaps={1: [(1, 2)]})
    drawn, same = (draw_for_batch("mirror", range(3), mirror.draw) for mirror in (plain, swapping))
    assert drawn.rows == same.rows
    before = label.clone()
    swapping.apply(image, label, same)
    assert torch.equal(label, before)


@pytest.mark.parametrize(
    ("swaps", "message"),
    [
        ({0: [(1, 2)]}, r"mirror_swaps must be of mirrored axes \(1,\), got axes \[0\]"),
        ({1: [(1, 2), (2, 3)]}, "mirror_swaps must exchange labels from 0 to 255, each once"),
        ({1: [(1, 256)]}, "mirror_swaps must exchange labels from 0 to 255, each once"),
    ],
)
def test_swaps_that_make_no_sense_are_refused(swaps: dict[int, list[tuple[int, int]]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mirror(dimensions=2, axes=(1,), swaps=swaps)
