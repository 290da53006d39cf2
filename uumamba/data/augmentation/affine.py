"""Rotation and scaling in one resampling, and the crop to the patch."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from uumamba.data.augmentation.parameters import Drawn, Range, Values, check_probability, check_range, fires, uniform
from uumamba.runtime.errors import require

ANISOTROPY = 3.0
"""A 3-D patch this many times longer in plane than through it is rotated, scaled and coarsened in plane alone."""


def rotates_in_plane_only(patch_size: Sequence[int]) -> bool:
    """Check for a 3-D patch so flat that its slices count as images.

    This is nnU-Net's rule for ``(Z, Y, X)``.

    Example:
        >>> rotates_in_plane_only((20, 256, 224)), rotates_in_plane_only((96, 160, 160))
        (True, False)
    """
    return len(patch_size) == 3 and max(patch_size) / patch_size[0] > ANISOTROPY


def default_rotation_deg(patch_size: Sequence[int]) -> Range:
    """Rotation range of nnU-Net.

    Any angle in plane, 15 degrees for oblong 2-D patches, 30 about each axis in 3-D.

    Example:
        >>> default_rotation_deg((160, 160)), default_rotation_deg((128, 320)), default_rotation_deg((96, 160, 160))
        ((-180.0, 180.0), (-15.0, 15.0), (-30.0, 30.0))
    """
    if len(patch_size) == 2:
        limit = 15.0 if max(patch_size) / min(patch_size) > 1.5 else 180.0
    else:
        limit = 180.0 if rotates_in_plane_only(patch_size) else 30.0
    return -limit, limit


class Affine:
    r"""Rotate and scale about the patch's centre, and crop.

    The image is resampled linearly, the label to the nearest voxel. A point at offset :math:`p` voxels from the centre
    moves to :math:`s R p`. In plane :math:`R = \begin{pmatrix}\cos & -\sin \\ \sin & \cos\end{pmatrix}` on ``(y, x)``,
    so a positive angle turns the Y axis towards X; in 3-D it is :math:`R_z R_y R_x`. Pixels are taken to be square,
    voxels (where a 3-D patch is not flat) to be cubes. Beyond what was read the image continues its border and the
    label is 0. Samples that are neither rotated nor scaled are cropped without resampling, bit for bit.

    Args:
        patch_size: ``(Y, X)`` or ``(Z, Y, X)`` of the result; larger inputs are cropped about their centre.
        rotation_probability: of a sample being rotated.
        rotation_deg: range of the angle, of each of the three angles in 3-D; None takes :func:`default_rotation_deg`.
        scale_probability: of a sample being scaled.
        scale: range of the factor; above 1 enlarges the heart.

    Raises:
        UsageError: a probability, a range or the patch size is invalid.
    """

    name = "affine"

    def __init__(
        self,
        *,
        patch_size: Sequence[int],
        rotation_probability: float = 0.2,
        rotation_deg: Range | None = None,
        scale_probability: float = 0.2,
        scale: Range = (0.7, 1.4),
    ) -> None:
        require(
            len(patch_size) in (2, 3) and min(patch_size) >= 1,
            "patch_size",
            got=tuple(patch_size),
            expected="two or three positive numbers",
        )
        self.patch_size = tuple(int(size) for size in patch_size)
        self.in_plane_only = len(patch_size) == 2 or rotates_in_plane_only(patch_size)
        self.rotation_probability = check_probability("rotation_probability", rotation_probability)
        self.rotation_deg = check_range("rotation_deg", rotation_deg or default_rotation_deg(patch_size))
        self.scale_probability = check_probability("scale_probability", scale_probability)
        self.scale = check_range("scale", scale, above=0.0)

    def draw(self, generator: Generator) -> Values | None:
        """Draw the angles and the scale of one sample.

        ``angles_deg`` (one, or three about Z, Y and X) and ``scale``, or None where neither fires.
        """
        rotated = fires(generator, self.rotation_probability)
        scaled = fires(generator, self.scale_probability)
        if not rotated and not scaled:
            return None
        count = 1 if self.in_plane_only else 3
        angles_deg = uniform(generator, self.rotation_deg, count)
        scale = uniform(generator, self.scale)
        return {
            "angles_deg": angles_deg if rotated else torch.zeros(count),
            "scale": scale if scaled else torch.ones(()),
        }

    def apply(self, image: Tensor, label: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Crop to new tensors of the patch size, resampled where drawn.

        Args:
            image: ``(batch, channels, *spatial)``, at least as large as the patch.
            label: ``(batch, 1, *spatial)``.
            drawn: the samples to resample.

        Raises:
            UsageError: the batch is smaller than the patch or of another dimension.
        """
        size, patch_size = tuple(image.shape[2:]), self.patch_size
        require(
            len(size) == len(patch_size) and all(have >= want for have, want in zip(size, patch_size, strict=True)),
            "image",
            got=size,
            expected=f"a spatial shape of at least the patch size {patch_size}",
        )
        starts = tuple((have - want) // 2 for have, want in zip(size, patch_size, strict=True))
        window: Any = (..., *(slice(start, start + want) for start, want in zip(starts, patch_size, strict=True)))
        patch, patch_label = (array[window].clone(memory_format=torch.contiguous_format) for array in (image, label))
        if drawn:
            rows = torch.tensor(drawn.rows, device=image.device)
            patch[rows] = self._resample(image[rows], starts, drawn.values, mode="bilinear", border="border")
            moved = self._resample(label[rows].float(), starts, drawn.values, mode="nearest", border="zeros")
            patch_label[rows] = moved.to(label.dtype)
        return patch, patch_label

    def _resample(self, array: Tensor, starts: tuple[int, ...], values: Values, *, mode: str, border: str) -> Tensor:
        depth = 1 if array.ndim == 5 and values["angles_deg"].shape[1] == 1 else 0  # one angle turns planes alone
        if depth:
            array = array.narrow(2, starts[0], self.patch_size[0])
        planes = array.flatten(1, 1 + depth)
        grid = _sampling_grid(values, tuple(planes.shape[2:]), self.patch_size[depth:], starts[depth:])
        moved = F.grid_sample(planes, grid.to(array), mode=mode, padding_mode=border, align_corners=False)
        return moved.reshape(*array.shape[:2], *self.patch_size)


def rotation_matrices(angles_deg: Tensor) -> Tensor:
    """Compute rotation matrices on offsets in array-axis order.

    ``(rows, 2, 2)`` of one angle, ``(rows, 3, 3)`` of three.

    Example:
        >>> rotation_matrices(torch.tensor([[90.0]])).round().abs().int().tolist()
        [[[0, 1], [1, 0]]]
    """
    angles = angles_deg.double() * (math.pi / 180.0)
    if angles.shape[1] == 1:
        return _turn(angles[:, 0], dimensions=2, plane=[0, 1])
    about_z, about_y, about_x = (
        _turn(angles[:, axis], dimensions=3, plane=plane) for axis, plane in enumerate([[1, 2], [0, 2], [0, 1]])
    )
    return about_z @ about_y @ about_x


def _turn(angle: Tensor, *, dimensions: int, plane: list[int]) -> Tensor:
    matrix = torch.eye(dimensions, dtype=angle.dtype).repeat(len(angle), 1, 1)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).reshape(-1, 2, 2)
    matrix[:, torch.tensor(plane)[:, None], torch.tensor(plane)] = turn
    return matrix


def _sampling_grid(
    values: Values, size: tuple[int, ...], patch_size: tuple[int, ...], starts: tuple[int, ...]
) -> Tensor:
    """Compute the position in the input of each voxel of the patch.

    The coordinates are grid_sample's. Output voxel o is p = o - (P - 1) / 2 from the centre and is read at M p + c with
    M = (s R)^-1 and the centre c = start + (P - 1) / 2. Both of torch's coordinates put voxel v of n at (2 v + 1) / n -
    1, which makes them 2 p / P on the output and (2 (M p + c) + 1) / n - 1 on the input, and count the last axis first.
    """
    inverse = rotation_matrices(values["angles_deg"]).transpose(1, 2) / values["scale"].double()[:, None, None]
    extent, patch, start = (torch.tensor(numbers, dtype=torch.float64) for numbers in (size, patch_size, starts))
    linear = inverse * patch[None, None, :] / extent[None, :, None]
    shift = (2.0 * start + patch) / extent - 1.0
    theta = torch.cat([linear.flip(1, 2), shift.flip(0).expand(len(linear), -1)[:, :, None]], dim=2)
    return F.affine_grid(theta.float(), [len(theta), 1, *patch_size], align_corners=False)
