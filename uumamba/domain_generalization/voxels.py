"""A few voxels of each class, so that a head's gradients are neither all of a volume nor all background."""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor


def stratified_voxels(
    label: Tensor, *, voxels_a_class: int, generator: Generator, ignore_label: int | None = None
) -> tuple[Tensor, Tensor]:
    """Where to look: of every image at most so many voxels of each class in it, drawn without repetition.

    A class with fewer gives all that it has. Images with one voxel are samples of a classifier, and all of them are
    taken. Nothing is left where everything is ignored.

    Args:
        label: classes, ``(batch, voxels)``.
        voxels_a_class: the most of one class from one image.
        generator: on the processor; the draw is the same on every device.
        ignore_label: voxels with this label are never taken.

    Returns:
        Indices of images and of voxels in them, ``(samples,)`` each.

    Example:
        >>> label = torch.tensor([[0, 0, 0, 0, 1, 2]])
        >>> images, voxels = stratified_voxels(label, voxels_a_class=2, generator=Generator().manual_seed(0))
        >>> label[images, voxels]
        tensor([0, 0, 1, 2])
    """
    if label.shape[1] == 1:
        keep = torch.ones_like(label[:, 0], dtype=torch.bool) if ignore_label is None else label[:, 0] != ignore_label
        images = keep.nonzero()[:, 0]
        return images, torch.zeros_like(images)
    drawn = list(_drawn(label, voxels_a_class, generator, ignore_label))
    if not drawn:
        nowhere = torch.zeros(0, dtype=torch.int64, device=label.device)
        return nowhere, nowhere
    images = torch.cat([torch.full_like(voxels, row) for row, voxels in drawn])
    return images, torch.cat([voxels for _, voxels in drawn])


def _drawn(
    label: Tensor, voxels_a_class: int, generator: Generator, ignore_label: int | None
) -> Iterator[tuple[int, Tensor]]:
    for row, classes in enumerate(label):
        for value in classes.unique().tolist():
            if value == ignore_label:
                continue
            where = (classes == value).nonzero()[:, 0]
            if len(where) > voxels_a_class:
                where = where[torch.randperm(len(where), generator=generator)[:voxels_a_class].to(where.device)]
            yield row, where
