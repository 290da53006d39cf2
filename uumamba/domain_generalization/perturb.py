"""Image perturbations whose values per sample an ascent step chooses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from uumamba.runtime.errors import require
from uumamba.runtime.options import AtLeastTwo, Positive, check_options

StylePart = Literal["mean", "std", "gamma", "bias_field"]
STYLE: tuple[StylePart, ...] = ("mean", "std", "gamma", "bias_field")


@runtime_checkable
class Perturbation(Protocol):
    """Protocol of image perturbations of a given length.

    ``apply(image, values)`` is differentiable in the values and returns the image for values of 0.
    """

    def start(self, image: Tensor) -> Tensor:
        """Return values of 0 for each sample, ``(batch, ...)``."""

    def apply(self, image: Tensor, values: Tensor) -> Tensor:
        """Return the changed image."""

    def length(self, image: Tensor) -> float:
        """Return the Euclidean length of one sample's values."""


@check_options
@dataclass(frozen=True)
class InputPerturbation:
    r"""Additive change of every input entry.

    .. math:: \tilde x_i = x_i + p_i, \qquad \lVert p_i \rVert_2 = r

    Give exactly one of ``radius`` and ``rms``.

    Args:
        radius: r, the paper's :math:`\rho_x`, in the units of the input.
        rms: c in :math:`r = c \sqrt{n}` for n entries per sample: the root mean square change of an entry at any image
            size; 0.02 to 0.1 for images of unit variance.

    Raises:
        UsageError: neither or both are given, or the size is not positive.

    Example:
        >>> InputPerturbation(rms=0.05).length(torch.zeros(2, 1, 20, 20))
        1.0
    """

    radius: Positive | None = None
    rms: Positive | None = None

    def __post_init__(self) -> None:
        sizes = (self.radius, self.rms)
        require(sizes.count(None) == 1, "rms", got=sizes, expected="either radius or rms")

    def start(self, image: Tensor) -> Tensor:
        return torch.zeros_like(image)

    def apply(self, image: Tensor, values: Tensor) -> Tensor:
        return image + values

    def length(self, image: Tensor) -> float:
        return self.radius if self.rms is None else self.rms * math.sqrt(image[0].numel())  # type: ignore[return-value]  # either is given


@check_options
@dataclass(frozen=True)
class StylePerturbation:
    r"""Change of brightness, contrast, gamma and a smooth bias field.

    For each sample, with :math:`m, s, a, b` the mean, standard deviation, minimum and maximum of a channel and values p
    for each part in ``parts``,

    .. math::
        \text{gamma:}\quad & x \leftarrow x + (b - a) (t^{\exp p_\gamma} - t), \quad t = (x - a) / (b - a) \\
        \text{bias field:}\quad & x \leftarrow a + (x - a) \exp\textstyle\sum_{j} B_j\, p_j \\
        \text{mean, std:}\quad & x \leftarrow m + (x - m) \exp p_s + p_m\, s

    The style of the image changes, the anatomy stays. Mean and standard deviation have one value per channel, gamma has
    one value, and the field has ``control_points`` along every axis, with :math:`B_j` the products of Bernstein
    polynomials. The field is a Bezier surface; with four points it is cubic, as smooth as the sensitivity of an MR
    coil. All values are of order 1, so a single length fits all parts. Statistics come from the image and are not
    differentiated. A constant channel does not change.

    Args:
        radius: Euclidean length of one sample's values.
        parts: any of ``"mean"``, ``"std"``, ``"gamma"`` and ``"bias_field"``.
        control_points: control points of the field along each axis; at least 2.

    Raises:
        UsageError: the radius is not positive, a part is unknown or given twice, or there are too few control points;
            or, from :meth:`start`, the input has no spatial axes.

    Example:
        >>> brighter = StylePerturbation(0.5, parts=("mean",))
        >>> image = torch.tensor([[[0.0, 2.0]]])  # mean 1, standard deviation 1
        >>> brighter.apply(image, torch.tensor([[0.5]]))
        tensor([[[0.5000, 2.5000]]])

    References:
        Zhong et al., *Adversarial Style Augmentation for Domain Generalized Urban-Scene Segmentation*, NeurIPS 2022,
        arXiv:2207.04892 (mean and standard deviation).
        Differs from the paper: each sample's perturbation has a fixed length instead of a learning rate; gamma and
        field are an extension of this project.
    """

    radius: Positive = 0.5
    parts: Sequence[StylePart] = STYLE
    control_points: AtLeastTwo = 4

    def __post_init__(self) -> None:
        is_valid = self.parts and len({*self.parts}) == len(self.parts)
        require(is_valid, "parts", got=self.parts, expected=f"different names out of {', '.join(STYLE)}")

    def start(self, image: Tensor) -> Tensor:
        require(
            image.ndim >= 3,
            "image",
            got=tuple(image.shape),
            expected="a batch of images (batch, channels, *spatial)",
            fix="use InputPerturbation for inputs without spatial axes",
        )
        return image.new_zeros(image.shape[0], sum(self._sizes(image)))

    def apply(self, image: Tensor, values: Tensor) -> Tensor:
        part = dict(zip(self.parts, values.split(self._sizes(image), 1), strict=True))
        axes = tuple(range(2, image.ndim))
        std, mean = torch.std_mean(image, axes, correction=0, keepdim=True)
        least, spread = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True) - image.amin(axes, keepdim=True)
        if "gamma" in part:
            t = (image - least) / spread.clamp(min=torch.finfo(image.dtype).tiny)
            image = image + spread * (t ** _append_axes(part["gamma"], image).exp() - t)
        if "bias_field" in part:
            image = least + (image - least) * self._field(part["bias_field"], image).exp()
        if "std" in part:
            image = mean + (image - mean) * _append_axes(part["std"], image).exp()
        return image + _append_axes(part["mean"], image) * std if "mean" in part else image

    def length(self, image: Tensor) -> float:
        return self.radius

    def _sizes(self, image: Tensor) -> list[int]:
        sizes = {"mean": image.shape[1], "std": image.shape[1], "gamma": 1}
        sizes["bias_field"] = self.control_points ** (image.ndim - 2)
        return [sizes[part] for part in self.parts]

    def _field(self, values: Tensor, image: Tensor) -> Tensor:
        """Return the logarithm of the field, ``(batch, 1, *spatial)``."""
        field = values.unflatten(1, (self.control_points,) * (image.ndim - 2))
        with torch.autocast(image.device.type, enabled=False):  # bfloat16 products would make steps in the field
            for length in image.shape[2:]:
                # Each product replaces the first axis of control points by a spatial axis at the end.
                field = torch.tensordot(field, bernstein(length, self.control_points, like=image), dims=([1], [0]))
        return field[:, None]


def bernstein(length: int, count: int, *, like: Tensor) -> Tensor:
    r"""Return Bernstein polynomials on a grid from 0 to 1.

    .. math:: B_j(u) = \binom{n}{j} u^j (1 - u)^{n - j}, \qquad n = \mathrm{count} - 1, \qquad \sum_j B_j = 1

    Args:
        length: number of grid points u.
        count: number of polynomials.
        like: tensor whose type and device the result has.

    Returns:
        ``(count, length)``.

    Example:
        >>> bernstein(3, 3, like=torch.zeros(()))
        tensor([[1.0000, 0.2500, 0.0000],
                [0.0000, 0.5000, 0.0000],
                [0.0000, 0.2500, 1.0000]])
    """
    u = torch.linspace(0, 1, length, dtype=like.dtype, device=like.device)
    degree = count - 1
    return torch.stack([math.comb(degree, j) * u**j * (1 - u) ** (degree - j) for j in range(count)])


def scale_to_length(direction: Tensor, length: float) -> Tensor:
    """Scale each sample's direction to a Euclidean length; 0 stays 0.

    Example:
        >>> scale_to_length(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), 10.0)
        tensor([[6., 8.],
                [0., 0.]])
    """
    flat = direction.flatten(1)
    largest = flat.abs().amax(1, keepdim=True)  # gradients of a mean over a large batch may be too small to square
    scaled = flat / largest.clamp(min=torch.finfo(flat.dtype).tiny)
    unit = scaled / torch.linalg.vector_norm(scaled, dim=1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)
    return (length * unit).view_as(direction)


def _append_axes(values: Tensor, image: Tensor) -> Tensor:
    return values.reshape(*values.shape, *(1,) * (image.ndim - 2))
