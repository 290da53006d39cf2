"""Labels to ignore, in every part outside the losses that takes one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from uumamba.domain_generalization import probe_segmentation
from uumamba.domain_generalization.head import draw_voxels
from uumamba.optim import OutputBiasForgetting

CLASSES, IGNORED = 5, 255
Find = Callable[[Tensor, Tensor, int | None], Any]


def forget(logits: Tensor, label: Tensor, ignore_label: int | None) -> list[Tensor]:
    logits = logits.clone().requires_grad_()
    loss = OutputBiasForgetting(ignore_label=ignore_label)((logits, label))
    return [loss.detach(), *torch.autograd.grad(loss, logits)]


def probe(logits: Tensor, label: Tensor, ignore_label: int | None) -> list[Tensor]:
    found = probe_segmentation(nn.Identity(), [(logits, label)], ignore_label=ignore_label)
    return [found.vectors, found.losses, torch.tensor(found.error)]


def draw(logits: Tensor, label: Tensor, ignore_label: int | None) -> list[Tensor]:
    draw_all = {"voxels_a_class": 9, "generator": Generator().manual_seed(0), "ignore_label": ignore_label}
    whole, single = label.flatten(1), label.reshape(-1, 1)
    return [*draw_voxels(whole, **draw_all), *draw_voxels(single, **draw_all)]


def make_pair() -> tuple[Tensor, Tensor]:
    generator = Generator().manual_seed(0)
    label = torch.randint(CLASSES, (3, 1, 6), generator=generator, dtype=torch.uint8)
    label[:, :, 0] = 4
    return torch.randn(3, CLASSES, 6, generator=generator), label


@pytest.mark.parametrize("find", [forget, probe, draw])
def test_a_label_that_does_not_fit_the_labels_type_ignores_nothing(find: Find) -> None:
    logits, label = make_pair()
    # 260 is 4 modulo 256.
    for found, expected in zip(find(logits, label, 260), find(logits, label, None), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("find", [forget, probe])
def test_whatever_is_under_an_ignored_label_reaches_no_result(find: Find) -> None:
    logits, label = make_pair()
    label[:, :, 3] = IGNORED
    expected = find(logits, label, IGNORED)
    logits[:, :, 3] = float("nan")
    for found, right in zip(find(logits, label, IGNORED), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=0)
