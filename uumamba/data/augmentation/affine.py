"""Rotation, scaling and crop to the patch, in one resampling."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from uumamba.data.augmentation.parameters import Drawn, SpatialTransform, Values, draw_event, draw_uniform
from uumamba.runtime.errors import require
from uumamba.runtime.options import PositiveRange, Probability, Range, check_options

ANISOTROPY = 3.0  # ratio of in-plane to through-plane size above which a 3-D patch is flat


def rotates_in_plane_only(patch_size: Sequence[int]) -> bool:
    """Return whether a 3-D patch ``(Z, Y, X)`` is flat.

    By nnU-Net's rule, the slices of a flat patch are transformed like 2-D images.

    Example:
        >>> rotates_in_plane_only((20, 256, 224)), rotates_in_plane_only((96, 160, 160))
        (True, False)
    """
    return len(patch_size) == 3 and max(patch_size) / patch_size[0] > ANISOTROPY


def default_rotation_deg(patch_size: Sequence[int]) -> Range:
    """Return the range of rotation angles of nnU-Net.

    The range is 180 degrees in plane, 15 for oblong 2-D patches, 30 about each axis in 3-D.

    Example:
        >>> default_rotation_deg((160, 160)), default_rotation_deg((128, 320)), default_rotation_deg((96, 160, 160))
        ((-180.0, 180.0), (-15.0, 15.0), (-30.0, 30.0))
    """
    if len(patch_size) == 2:
        limit = 15.0 if max(patch_size) / min(patch_size) > 1.5 else 180.0
    else:
        limit = 180.0 if rotates_in_plane_only(patch_size) else 30.0
    return -limit, limit


class Affine(SpatialTransform):
    r"""Rotation and scaling about the patch's centre, and crop.

    The image is interpolated linearly, the label to the nearest voxel. A point at offset :math:`p` voxels from the
    centre is moved to :math:`s R p`. In plane :math:`R = \begin{pmatrix}\cos & -\sin \\ \sin & \cos\end{pmatrix}` on
    ``(y, x)``, so a positive angle turns the Y axis towards X; in 3-D :math:`R = R_z R_y R_x`. Pixels are assumed to be
    square, voxels (of a 3-D patch that is not flat) to be cubes. Outside the given window the image repeats its border
    and the label is 0. Samples that are neither rotated nor scaled are cropped without resampling, bit for bit.

    Args:
        patch_size: ``(Y, X)`` or ``(Z, Y, X)`` of the result; larger inputs are cropped about their centre.
        rotation_probability: probability that a sample is rotated.
        rotation_deg: range of the angle, or of each of the three angles in 3-D; None is :func:`default_rotation_deg`.
        scale_probability: probability that a sample is scaled.
        scale: range of the factor; above 1 enlarges.

    Raises:
        UsageError: a probability, a range or the patch size is invalid.
    """

    name = "affine"

    @check_options
    def __init__(
        self,
        *,
        patch_size: Sequence[int],
        rotation_probability: Probability,
        scale_probability: Probability,
        scale: PositiveRange,
        rotation_deg: Range | None = None,
    ) -> None:
        require(
            len(patch_size) in (2, 3) and min(patch_size) >= 1,
            "patch_size",
            got=tuple(patch_size),
            expected="two or three positive integers",
        )
        self.patch_size = tuple(int(size) for size in patch_size)
        self.in_plane_only = len(patch_size) == 2 or rotates_in_plane_only(patch_size)
        self.rotation_probability = rotation_probability
        self.rotation_deg = rotation_deg or default_rotation_deg(patch_size)
        self.scale_probability = scale_probability
        self.scale = scale

    def draw(self, generator: Generator) -> Values | None:
        """Draw the angles and the scale of one sample.

        The result is ``angles_deg`` (one, or three about Z, Y and X) and ``scale``, or None without any change.
        """
        rotated = draw_event(generator, self.rotation_probability)
        scaled = draw_event(generator, self.scale_probability)
        if not rotated and not scaled:
            return None
        count = 1 if self.in_plane_only else 3
        angles_deg = draw_uniform(generator, self.rotation_deg, count)
        scale = draw_uniform(generator, self.scale)
        return {
            "angles_deg": angles_deg if rotated else torch.zeros(count),
            "scale": scale if scaled else torch.ones(()),
        }

    def apply(self, image: Tensor, label: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Crop to new tensors of the patch size, and resample drawn samples.

        Args:
            image: ``(batch, channels, *spatial)``, at least as large as the patch.
            label: ``(batch, 1, *spatial)``.
            drawn: samples to resample, with their parameters.

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
        if drawn.rows:
            rows = torch.tensor(drawn.rows, device=image.device)
            patch[rows] = self._resample(image[rows], starts, drawn.values, mode="bilinear", border="border")
            moved = self._resample(label[rows].float(), starts, drawn.values, mode="nearest", border="zeros")
            patch_label[rows] = moved.to(label.dtype)
        return patch, patch_label

    def _resample(self, array: Tensor, starts: tuple[int, ...], values: Values, *, mode: str, border: str) -> Tensor:
        depth = 1 if array.ndim == 5 and values["angles_deg"].shape[1] == 1 else 0  # one angle: rotation in plane
        if depth:
            array = array.narrow(2, starts[0], self.patch_size[0])
        planes = array.flatten(1, 1 + depth)
        grid = _sampling_grid(values, tuple(planes.shape[2:]), self.patch_size[depth:], starts[depth:])
        return F.grid_sample(planes, grid.to(array), mode=mode, padding_mode=border, align_corners=False).reshape(
            *array.shape[:2], *self.patch_size
        )


def rotation_matrices(angles_deg: Tensor) -> Tensor:
    """Compute rotation matrices on offsets in array-axis order.

    The result is ``(rows, 2, 2)`` for one angle, ``(rows, 3, 3)`` for three angles.

    Example:
        >>> rotation_matrices(torch.tensor([[90.0]])).round().abs().int().tolist()
        [[[0, 1], [1, 0]]]
    """
    angles = angles_deg.double() * (math.pi / 180.0)
    if angles.shape[1] == 1:
        return _rotate_in_plane(angles[:, 0], dimensions=2, plane=[0, 1])
    about_z, about_y, about_x = (
        _rotate_in_plane(angles[:, axis], dimensions=3, plane=plane)
        for axis, plane in enumerate([[1, 2], [0, 2], [0, 1]])
    )
    return about_z @ about_y @ about_x


def _rotate_in_plane(angle: Tensor, *, dimensions: int, plane: list[int]) -> Tensor:
    matrix = torch.eye(dimensions, dtype=angle.dtype).repeat(len(angle), 1, 1)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).reshape(-1, 2, 2)
    matrix[:, torch.tensor(plane)[:, None], torch.tensor(plane)] = turn
    return matrix


def _sampling_grid(
    values: Values, size: tuple[int, ...], patch_size: tuple[int, ...], starts: tuple[int, ...]
) -> Tensor:
    """Compute the input position of each voxel of the patch, for grid_sample.

    Output voxel o has the offset p = o - (P - 1) / 2 from the centre and is interpolated at M p + c with M = (s R)^-1
    and the centre c = start + (P - 1) / 2. Torch's normalised coordinate of voxel v of n is (2 v + 1) / n - 1, so it is
    2 p / P for the output and (2 (M p + c) + 1) / n - 1 for the input. Torch's first coordinate is the last axis.
    """
    inverse = rotation_matrices(values["angles_deg"]).transpose(1, 2) / values["scale"].double()[:, None, None]
    extent, patch, start = (torch.tensor(numbers, dtype=torch.float64) for numbers in (size, patch_size, starts))
    linear = inverse * patch[None, None, :] / extent[None, :, None]
    shift = (2.0 * start + patch) / extent - 1.0
    theta = torch.cat([linear.flip(1, 2), shift.flip(0).expand(len(linear), -1)[:, :, None]], dim=2)
    return F.affine_grid(theta.float(), [len(theta), 1, *patch_size], align_corners=False)
