"""Image styles of other scanners, to test the robustness of models."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Generator

from uumamba.data.augmentation.parameters import draw_uniform
from uumamba.data.grid import Image
from uumamba.runtime.errors import require
from uumamba.runtime.seeds import generator_for

# effect(image, strength, spacing_mm, generator) returns the changed image; 0 is air, about 1 is bright tissue.
Effect = Callable[[Image, float, Sequence[float], Generator], Image]

_WHITE_PERCENTILE = 99.5


def surface_coil(
    image: Image, strength: float, spacing_mm: Sequence[float], generator: Generator, *, radius_mm: float = 130.0
) -> Image:
    r"""Multiply by the sensitivity of a surface coil.

    The sensitivity is :math:`(1 + d^2 / R^2)^{-3s/2}` at a distance :math:`d` from the loop, the field on the axis of a
    loop of radius :math:`R`. The loop is in the middle plane, at the body's surface: on the ellipse through the middles
    of the image's edges.

    Args:
        image: ``(Z, Y, X)``.
        strength: :math:`s`.
        spacing_mm: spacing of the axes.
        generator: draws the position of the loop.
        radius_mm: :math:`R`; a smaller radius gives less depth.
    """
    angle = float(draw_uniform(generator, (0.0, 2 * math.pi)))
    half_mm = [(length - 1) / 2 * mm for length, mm in zip(image.shape, spacing_mm, strict=True)]
    loop_mm = (0.0, half_mm[1] * math.sin(angle), half_mm[2] * math.cos(angle))
    z, y, x = (
        (np.linspace(-half, half, length) - at) ** 2
        for half, length, at in zip(half_mm, image.shape, loop_mm, strict=True)
    )
    squared_mm = z[:, None, None] + y[:, None] + x
    return (image * (1 + squared_mm / radius_mm**2) ** (-1.5 * strength)).astype(np.float32)


def lifted_shadows(
    image: Image,
    strength: float,
    spacing_mm: Sequence[float],
    generator: Generator,
    *,
    gamma: tuple[float, float] = (0.4, 0.55),
) -> Image:
    r"""Change the grey scale like another reconstruction.

    The result is :math:`x^{\gamma^s}`; the order of intensities is unchanged.

    Args:
        image: ``(Z, Y, X)``.
        strength: :math:`s`.
        spacing_mm: not used.
        generator: draws :math:`\gamma`.
        gamma: range of :math:`\gamma`; below 1 brightens lung and muscle relative to blood.
    """
    return np.power(image, float(draw_uniform(generator, gamma)) ** strength, dtype=np.float32)


def dark_blood(
    image: Image,
    strength: float,
    spacing_mm: Sequence[float],
    generator: Generator,
    *,
    half: float = 0.3,
    air: float = 0.05,
    blur_mm: float = 3.0,
) -> Image:
    r"""Reverse the order of tissues like a dark-blood sequence.

    The result is :math:`(1 - s)\,x + s\,m\,h / (h + x)`. The mask :math:`m = v^2 / (v^2 + c^2)`, with the image
    :math:`v` blurred in plane, keeps air around the body dark.

    Args:
        image: ``(Z, Y, X)``.
        strength: :math:`s`.
        spacing_mm: spacing of the axes.
        generator: not used.
        half: :math:`h`, the intensity that is mapped to 0.5; about that of muscle.
        air: :math:`c`, the level of air.
        blur_mm: standard deviation of the blur.
    """
    squared = ndimage.gaussian_filter(image, (0.0, blur_mm / spacing_mm[1], blur_mm / spacing_mm[2])) ** 2
    reversed_order = squared / (squared + air**2) * half / (half + image)
    return (1 - strength) * image + strength * reversed_order


def coarse_matrix(
    image: Image,
    strength: float,
    spacing_mm: Sequence[float],
    generator: Generator,
    *,
    resolution_mm: tuple[float, float] = (3.5, 4.0),
) -> Image:
    r"""Remove the high frequencies of each plane.

    This is zero-filled k-space of fewer encodings: a blurred image with ringing. In each plane only frequencies up to
    :math:`1 / (2 r)` are kept, with :math:`r = (1 - s)\,r_0 + s\,R` along each axis of spacing :math:`r_0`; a coarser
    axis is unchanged. The result is the magnitude image.

    Args:
        image: ``(Z, Y, X)``.
        strength: :math:`s`.
        spacing_mm: spacing of the axes.
        generator: draws :math:`R`.
        resolution_mm: range of :math:`R`.
    """
    wanted = float(draw_uniform(generator, resolution_mm))
    space = np.fft.fft2(image.astype(np.float64))
    for axis in (1, 2):
        coarse_mm = max(spacing_mm[axis], (1 - strength) * spacing_mm[axis] + strength * wanted)
        kept = np.abs(np.fft.fftfreq(image.shape[axis], spacing_mm[axis])) <= 0.5 / coarse_mm
        space *= np.expand_dims(kept, [each for each in range(3) if each != axis])
    return np.abs(np.fft.ifft2(space)).astype(np.float32)


def fast_scan(
    image: Image,
    strength: float,
    spacing_mm: Sequence[float],
    generator: Generator,
    *,
    noise: tuple[float, float] = (0.025, 0.035),
    geometry: float = 2.0,
    correlation_mm: float = 4.0,
) -> Image:
    r"""Add the noise of parallel imaging with many coils.

    The noise is Rician, correlated between pixels, strongest in the middle of the image, and independent per plane:

    :math:`\sqrt{(x + \sigma n_1)^2 + (\sigma n_2)^2}`, where :math:`n_1, n_2` have the amplitude spectrum
    :math:`1 / (1 + (f \ell)^2)` and unit variance, and :math:`\sigma` is :math:`s` times the noise, times 1 at the
    border and ``geometry`` in the middle.

    Args:
        image: ``(Z, Y, X)``.
        strength: :math:`s`.
        spacing_mm: spacing of the axes.
        generator: draws the noise and its level.
        noise: range of the standard deviation at the border.
        geometry: factor in the middle, where the coils' sensitivities are similar (g-factor).
        correlation_mm: :math:`\ell`, the correlation length of the noise.
    """
    y, x = (np.linspace(-1.0, 1.0, length) for length in image.shape[1:])
    factor = 1 + (geometry - 1) * np.cos(np.pi / 2 * y[:, None]) * np.cos(np.pi / 2 * x)
    level = strength * float(draw_uniform(generator, noise)) * factor
    along_y, along_x = (np.fft.fftfreq(image.shape[axis], spacing_mm[axis]) for axis in (1, 2))
    amplitude = 1 / (1 + correlation_mm**2 * (along_y[:, None] ** 2 + along_x**2))
    white = [torch.randn(image.shape, generator=generator, dtype=torch.float64).numpy() for _ in range(2)]
    coloured = [np.fft.ifft2(np.fft.fft2(each) * amplitude).real for each in white]
    real, imaginary = (each / math.sqrt(float(np.mean(amplitude**2))) for each in coloured)
    return np.hypot(image + level * real, level * imaginary).astype(np.float32)


STYLES: Mapping[str, Effect] = {
    "surface_coil": surface_coil,
    "lifted_shadows": lifted_shadows,
    "dark_blood": dark_blood,
    "coarse_matrix": coarse_matrix,
    "fast_scan": fast_scan,
}


def shift_style(
    image: NDArray[Any],
    style: str,
    *,
    case_id: str,
    spacing_mm: Sequence[float],
    seed: int = 0,
    strength: float = 1.0,
) -> Image:
    """Change a scan to the style of another scanner.

    The anatomy is unchanged.

    Each style changes one property: ``surface_coil`` the brightness by position, ``lifted_shadows`` the grey scale,
    ``dark_blood`` the order of tissues, ``coarse_matrix`` the resolution in plane, ``fast_scan`` the noise. The random
    parameters come from a generator keyed by seed, style and case, so that equal arguments give equal bytes. The
    strength scales the effect; at 0, and for an image of a single value, the image is returned bit for bit.

    Intensities are normalised from the smallest value (0) to the 99.5th percentile (1), so the result follows linear
    changes of the intensities. Values may slightly exceed the range of the image.

    Args:
        image: volume in any axis order; the axis of the largest spacing (the first in a tie) is through-plane.
        style: a name of :data:`STYLES`.
        case_id: key of the draws.
        spacing_mm: spacing of the axes.
        seed: seed of the draws.
        strength: 0 to 1.

    Raises:
        UsageError: the style is unknown, the strength is not from 0 to 1, or the image does not have three axes.

    Example:
        >>> image = np.arange(60.0).reshape(5, 4, 3)
        >>> shifted = shift_style(image, "dark_blood", case_id="patient001_frame01", spacing_mm=(1.5, 1.5, 10.0))
        >>> shifted.shape, bool(shifted[-1, -1, -1] < shifted[1, 1, 1])
        ((5, 4, 3), True)

    References:
        Campello et al., IEEE TMI 40(12), 2021, doi 10.1109/TMI.2021.3090082, on differences between vendors. Robson et
        al., *Comprehensive quantification of signal-to-noise ratio and g-factor*, MRM 60, 2008, on the noise.
        MONAI's transforms cut k-space by pixels, not millimetres, and add only white noise.
    """
    require(style in STYLES, "style", got=style, expected=f"one of {', '.join(STYLES)}")
    require(0.0 <= strength <= 1.0, "strength", got=strength, expected="a number from 0 to 1")
    require(image.ndim == len(spacing_mm) == 3, "image", got=image.shape, expected="three axes, each with a spacing")
    lowest, white = float(image.min()), float(np.percentile(image, _WHITE_PERCENTILE))
    if strength == 0.0 or not white > lowest:
        return image.astype(np.float32)
    through_plane = int(np.argmax(spacing_mm))
    order = (through_plane, *(axis for axis in range(3) if axis != through_plane))
    oriented = np.ascontiguousarray(image.transpose(order), dtype=np.float64)
    normalised = ((oriented - lowest) / (white - lowest)).astype(np.float32)
    changed = STYLES[style](
        normalised,
        strength,
        [spacing_mm[axis] for axis in order],
        generator_for(seed, "vendor style", style, case_id),
    )
    native = np.moveaxis(changed, 0, through_plane).astype(np.float64) * (white - lowest) + lowest
    return np.ascontiguousarray(native, dtype=np.float32)
