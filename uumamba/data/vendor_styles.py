"""Five named styles of how another scanner would show the same heart, to test what a model holds against."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Generator

from uumamba.data.augmentation.draws import uniform
from uumamba.runtime.seeds import generator_for

Volume = NDArray[np.float32]
_WHITE_PERCENTILE = 99.5


class Effect(Protocol):
    """What a style does to an image ``(Z, Y, X)`` whose air is 0 and whose bright tissue is about 1."""

    def apply(self, image: Volume, *, strength: float, spacing_mm: Sequence[float], generator: Generator) -> Volume:
        """The image, changed; the generator is keyed by case, style and seed."""
        ...


@dataclass(frozen=True)
class CoilField:
    r"""One loop at the body's surface: :math:`x\,(1 + d^2 / R^2)^{-3s/2}` at a distance :math:`d` from the loop.

    This is the field on the axis of a loop of radius :math:`R`. It lies beside the middle plane, on the ellipse through
    the middles of the image's edges.

    Attributes:
        radius_mm: :math:`R`; a smaller one sees less deep.
    """

    radius_mm: float = 130.0

    def apply(self, image: Volume, *, strength: float, spacing_mm: Sequence[float], generator: Generator) -> Volume:
        """The image as the loop sees it."""
        angle = float(uniform(generator, (0.0, 2 * math.pi)))
        half_mm = [(length - 1) / 2 * mm for length, mm in zip(image.shape, spacing_mm, strict=True)]
        loop_mm = (0.0, half_mm[1] * math.sin(angle), half_mm[2] * math.cos(angle))
        z, y, x = (
            (np.linspace(-half, half, length) - at) ** 2
            for half, length, at in zip(half_mm, image.shape, loop_mm, strict=True)
        )
        squared_mm = z[:, None, None] + y[:, None] + x
        return (image * (1 + squared_mm / self.radius_mm**2) ** (-1.5 * strength)).astype(np.float32)


@dataclass(frozen=True)
class Gamma:
    r"""Another reconstruction's grey scale: :math:`x^{\gamma^s}`; the order of intensities stays.

    Attributes:
        gamma: range of :math:`\gamma`; below 1 lifts lung and muscle towards blood.
    """

    gamma: tuple[float, float] = (0.4, 0.55)

    def apply(self, image: Volume, *, strength: float, spacing_mm: Sequence[float], generator: Generator) -> Volume:
        """The image, bent."""
        return np.power(image, float(uniform(generator, self.gamma)) ** strength, dtype=np.float32)


@dataclass(frozen=True)
class DarkBlood:
    r"""A sequence whose blood is dark: :math:`(1 - s)\,x + s\,m\,h / (h + x)`, which reverses the order of tissues.

    :math:`m = v^2 / (v^2 + c^2)` with :math:`v` the image blurred in plane, so that air about the body stays dark.

    Attributes:
        half: :math:`h`, the intensity that comes out at a half; about that of muscle.
        air: :math:`c`, what counts as air.
        blur_mm: standard deviation of the blur.
    """

    half: float = 0.3
    air: float = 0.05
    blur_mm: float = 3.0

    def apply(self, image: Volume, *, strength: float, spacing_mm: Sequence[float], generator: Generator) -> Volume:
        """The image, reversed."""
        sigmas = (0.0, self.blur_mm / spacing_mm[1], self.blur_mm / spacing_mm[2])
        squared = ndimage.gaussian_filter(image, sigmas) ** 2
        reversed_order = squared / (squared + self.air**2) * self.half / (self.half + image)
        return (1 - strength) * image + strength * reversed_order


@dataclass(frozen=True)
class CoarseMatrix:
    r"""Fewer phase and frequency encodings, filled up with zeros: blurred, with the ringing of a cut spectrum.

    In each plane only frequencies up to :math:`1 / (2 r)` stay, :math:`r = (1 - s)\,r_0 + s\,R` along each axis of
    spacing :math:`r_0`; an axis that is as coarse already stays as it is.

    Attributes:
        resolution_mm: range of :math:`R`.
    """

    resolution_mm: tuple[float, float] = (3.5, 4.0)

    def apply(self, image: Volume, *, strength: float, spacing_mm: Sequence[float], generator: Generator) -> Volume:
        """The magnitude image of what is left of k-space."""
        wanted = float(uniform(generator, self.resolution_mm))
        space = np.fft.fft2(image.astype(np.float64))
        for axis in (1, 2):
            reached = max(spacing_mm[axis], (1 - strength) * spacing_mm[axis] + strength * wanted)
            kept = np.abs(np.fft.fftfreq(image.shape[axis], spacing_mm[axis])) <= 0.5 / reached
            space *= np.expand_dims(kept, [each for each in range(3) if each != axis])
        return np.abs(np.fft.ifft2(space)).astype(np.float32)


@dataclass(frozen=True)
class ParallelNoise:
    r"""A fast scan with many coils: Rician noise, correlated between pixels and strongest amid the image.

    :math:`\sqrt{(x + \sigma n_1)^2 + (\sigma n_2)^2}`, where :math:`n_1, n_2` have the amplitude spectrum
    :math:`1 / (1 + (f \ell)^2)` and unit variance, and :math:`\sigma` is :math:`s` times the noise, times 1 at the
    border and ``geometry`` in the middle.

    Attributes:
        noise: range of the standard deviation at the border.
        geometry: factor in the middle, as where coils see alike (the g-factor).
        correlation_mm: :math:`\ell`, over which noise is alike.
    """

    noise: tuple[float, float] = (0.025, 0.035)
    geometry: float = 2.0
    correlation_mm: float = 4.0

    def apply(self, image: Volume, *, strength: float, spacing_mm: Sequence[float], generator: Generator) -> Volume:
        """The image with its noise; each plane has its own."""
        level = strength * float(uniform(generator, self.noise)) * self._geometry_factor(image.shape)
        real, imaginary = (self._coloured(image.shape, spacing_mm, generator) for _ in range(2))
        return np.hypot(image + level * real, level * imaginary).astype(np.float32)

    def _coloured(self, shape: tuple[int, ...], spacing_mm: Sequence[float], generator: Generator) -> NDArray[Any]:
        white = torch.randn(shape, generator=generator, dtype=torch.float64).numpy()
        y, x = (np.fft.fftfreq(shape[axis], spacing_mm[axis]) for axis in (1, 2))
        amplitude = 1 / (1 + self.correlation_mm**2 * (y[:, None] ** 2 + x**2))
        coloured = np.fft.ifft2(np.fft.fft2(white) * amplitude).real
        return coloured / math.sqrt(float(np.mean(amplitude**2)))

    def _geometry_factor(self, shape: tuple[int, ...]) -> NDArray[Any]:
        y, x = (np.linspace(-1.0, 1.0, length) for length in shape[1:])
        return 1 + (self.geometry - 1) * np.cos(np.pi / 2 * y[:, None]) * np.cos(np.pi / 2 * x)


STYLES: Mapping[str, Effect] = {
    "surface_coil": CoilField(),
    "lifted_shadows": Gamma(),
    "dark_blood": DarkBlood(),
    "coarse_matrix": CoarseMatrix(),
    "fast_scan": ParallelNoise(),
}
"""The styles by name."""


def shift_style(
    image: NDArray[Any],
    style: str,
    *,
    case_id: str,
    spacing_mm: Sequence[float],
    seed: int = 0,
    strength: float = 1.0,
) -> Volume:
    """Show a scan as another scanner might have; where everything lies does not change.

    Each style changes one thing: ``surface_coil`` the brightness from place to place, ``lifted_shadows`` the grey
    scale, ``dark_blood`` the order of tissues, ``coarse_matrix`` the resolution in plane, ``fast_scan`` the noise. What
    a style leaves open is drawn from a generator keyed by seed, style and case, so that equal arguments give equal
    bytes. The strength scales the effect; at 0 the image comes back as it is, bit for bit, as does one of a single
    value.

    Intensities are taken from the smallest value (0) to their 99.5th percentile (1), so the result follows any linear
    change of the scale. It may reach beyond the image's range by a little.

    Args:
        image: a volume in any axis order; the axis of the largest spacing (the first of equals) runs through plane.
        style: a name of :data:`STYLES`.
        case_id: names the case.
        spacing_mm: of the axes.
        seed: another one gives other draws.
        strength: 0 to 1.

    Raises:
        ValueError: there is no such style, the strength is not between 0 and 1, or the image has not three axes.

    Example:
        >>> image = np.arange(60.0).reshape(5, 4, 3)
        >>> shifted = shift_style(image, "dark_blood", case_id="patient001_frame01", spacing_mm=(1.5, 1.5, 10.0))
        >>> shifted.shape, bool(shifted[-1, -1, -1] < shifted[1, 1, 1])
        ((5, 4, 3), True)

    References:
        Campello et al., IEEE TMI 40(12), 2021, doi 10.1109/TMI.2021.3090082: what differs between vendors. Robson et
        al., *Comprehensive quantification of signal-to-noise ratio and g-factor*, MRM 60, 2008, on the noise.
        MONAI's transforms cut k-space by pixels, not millimetres, and have white noise alone.
    """
    if style not in STYLES:
        raise ValueError(f"There is no style {style!r}; known are {', '.join(STYLES)}.")
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"The strength of a style lies between 0 and 1, got {strength:g}.")
    if image.ndim != 3 or len(spacing_mm) != 3:
        raise ValueError(f"A style needs three axes, got the shape {image.shape} and {len(spacing_mm)} spacings.")
    lowest, white = float(image.min()), float(np.percentile(image, _WHITE_PERCENTILE))
    if strength == 0.0 or not white > lowest:
        return image.astype(np.float32)
    through_plane = int(np.argmax(spacing_mm))
    order = (through_plane, *(axis for axis in range(3) if axis != through_plane))
    oriented = np.ascontiguousarray(image.transpose(order), dtype=np.float64)
    normalised = ((oriented - lowest) / (white - lowest)).astype(np.float32)
    changed = STYLES[style].apply(
        normalised,
        strength=strength,
        spacing_mm=[spacing_mm[axis] for axis in order],
        generator=generator_for(seed, "vendor style", style, case_id),
    )
    native = np.moveaxis(changed, 0, through_plane).astype(np.float64) * (white - lowest) + lowest
    return np.ascontiguousarray(native, dtype=np.float32)
