"""MRI scanner of the heart phantom: slices, coil, noise and breath-holds."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data_prep.phantoms.heart.heart_body import Body, draw_body, paint_body
from data_prep.phantoms.heart.heart_painting import paint_heart
from data_prep.phantoms.heart.heart_shape import Heart, Phase, compute_bounding_circle
from data_prep.phantoms.heart.heart_tissue import LABEL_OF_TISSUE, draw_brightness
from data_prep.phantoms.scanner_noise import draw_smooth_noise

IN_PLANE_SAMPLES = 2
THROUGH_PLANE_SAMPLES = 4
SLICE_PROFILE = 0.75
"""Thickness of a slice relative to the distance between slices."""
STORED_TYPES = ("float32", "int16", "uint8")
STORED_TYPE_SHARES = (0.60, 0.32, 0.08)


@dataclass(frozen=True)
class MriProtocol:
    """Settings of one patient's scan.

    Args:
        shape: columns, rows and slices of the stored array.
        spacing_mm: voxel spacing along these axes.
        first_slice_mm: centre of the first slice, relative to the heart's end-diastolic base.
        heart_at_mm: position of the heart relative to the centre of the field of view.
        body_angle: rotation of the body in the image.
        septum_angle: rotation of the heart in the body.
        breath_hold_mm: in-plane shift of each slice, shared by all frames (a slice is scanned in one breath-hold).
        brightness: signal of each tissue.
        coil: coefficients of the log sensitivity in x, y, x^2, y^2 and xy over the field of view.
        noise: standard deviation of each of the two channels, relative to blood.
        texture: standard deviation of the tissue texture.
        blur_pixels: standard deviation of the point spread function.
        gain: stored value of blood.
        stored_type: data type of the array in the file.
        apex_first: whether the first stored slice is the most apical.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    first_slice_mm: float
    heart_at_mm: tuple[float, float]
    body_angle: float
    septum_angle: float
    breath_hold_mm: NDArray[np.float64]
    brightness: NDArray[np.float32]
    coil: NDArray[np.float64]
    noise: float
    texture: float
    blur_pixels: float
    gain: float
    stored_type: str
    apex_first: bool


def draw_mri_protocol(heart: Heart, end_mm: float, rng: np.random.Generator) -> MriProtocol:
    """Draw a protocol whose field of view covers the heart.

    Position and angle of the heart in the image are random.
    """
    slices, thickness, first_slice = _draw_slices(end_mm, rng)
    radius, _ = compute_bounding_circle(heart)
    pixel = round(rng.uniform(1.2, 1.9), 4)
    smallest = max(110, int(np.ceil(2 * (radius + 12) / pixel)))
    columns, rows = (int(size) for size in rng.integers(min(smallest, 160), 161, 2))
    margins = [max(0.0, size * pixel / 2 - radius - 8) for size in (columns, rows)]
    stored_type = str(rng.choice(STORED_TYPES, p=STORED_TYPE_SHARES))
    return MriProtocol(
        shape=(columns, rows, slices),
        spacing_mm=(pixel, pixel, thickness),
        first_slice_mm=first_slice,
        heart_at_mm=(rng.uniform(-margins[0], margins[0]), rng.uniform(-margins[1], margins[1])),
        body_angle=rng.uniform(-np.pi, np.pi),
        septum_angle=np.pi + rng.uniform(-0.7, 0.7),
        breath_hold_mm=np.clip(rng.normal(0, 1.3, (slices, 2)), -3.5, 3.5),
        brightness=draw_brightness(rng),
        coil=rng.uniform(-1, 1, 5) * (0.45, 0.45, 0.35, 0.35, 0.35),
        noise=rng.uniform(0.015, 0.055),
        texture=rng.uniform(0.03, 0.08),
        blur_pixels=rng.uniform(0.3, 0.65),
        gain=rng.uniform(110, 150) if stored_type == "uint8" else rng.uniform(110, 900),
        stored_type=stored_type,
        apex_first=bool(rng.random() < 0.08),
    )


def _draw_slices(end_mm: float, rng: np.random.Generator) -> tuple[int, float, float]:
    """Draw slices from above the base to just beyond the apex.

    Returns:
        Number of slices, distance between slices, and position of the first slice, in millimetres.
    """
    wanted = rng.integers(6, 12)
    thickness = float(np.clip(round(2 * end_mm / wanted) / 2, 5.0, 10.0))
    # The longest hearts need 12 slices, and a first slice closer to the base.
    first_slice = max(-thickness * rng.uniform(-0.3, 1.0), end_mm - 12 * thickness)
    slices = int(np.ceil((end_mm - first_slice) / thickness)) + int(rng.integers(0, 2))
    return int(np.clip(slices, 6, 12)), thickness, float(first_slice)


class Scanner:
    """Scanner with one patient.

    Args:
        heart: the patient's heart.
        protocol: settings of the scan.
        rng: generator of the body and the tissue texture.
    """

    def __init__(self, heart: Heart, protocol: MriProtocol, rng: np.random.Generator) -> None:
        self._protocol = protocol
        body = draw_body(rng, compute_bounding_circle(heart)[0])
        grain = draw_smooth_noise(rng, protocol.shape, (1.6, 1.6, 0))
        self._grain = 1 + np.float32(protocol.texture) * grain / grain.std()
        self._planes = [_Plane(number, heart, body, protocol) for number in range(protocol.shape[2])]

    def scan_phase(self, phase: Phase, rng: np.random.Generator) -> tuple[NDArray[np.generic], NDArray[np.uint8]]:
        """Scan a phase.

        Returns:
            The stored image and the label, both ``(columns, rows, slices)``.
        """
        signal, label = (
            np.stack(part, axis=2) for part in zip(*(plane.scan(phase) for plane in self._planes), strict=True)
        )
        image = acquire(signal * self._grain, self._protocol, rng)
        order = slice(None, None, -1) if self._protocol.apex_first else slice(None)
        return image[:, :, order], label[:, :, order]


class _Plane:
    """One slice.

    The body is painted once; the heart is painted for each phase, in a window and at several depths.
    """

    def __init__(self, number: int, heart: Heart, body: Body, protocol: MriProtocol) -> None:
        centre_mm = protocol.first_slice_mm + number * protocol.spacing_mm[2]
        offsets = (np.arange(THROUGH_PLANE_SAMPLES) + 0.5) / THROUGH_PLANE_SAMPLES - 0.5
        self.depths_mm = [float(depth) for depth in centre_mm + SLICE_PROFILE * protocol.spacing_mm[2] * offsets]
        self.brightness = protocol.brightness
        in_body = _sample_points(number, protocol)
        tissues = paint_body(in_body.real, in_body.imag, centre_mm, body)
        self.signal = _average_samples(self.brightness[tissues])
        in_heart = in_body * np.complex64(np.exp(-1j * protocol.septum_angle))
        radius_mm, centre_u = compute_bounding_circle(heart)
        in_heart = in_heart + _compute_displacement(in_heart, body) + np.complex64(centre_u)
        self.window, fine_window = _find_window(in_heart, 1.25 * radius_mm + 25, centre_u)
        self.tissues = tissues[fine_window]
        self.u = np.ascontiguousarray(in_heart.real[fine_window])
        self.v = np.ascontiguousarray(in_heart.imag[fine_window])

    def scan(self, phase: Phase) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Compute each voxel's mean signal and most frequent structure."""
        signal = self.signal.copy()
        label = np.zeros(signal.shape, dtype=np.uint8)
        stack = np.stack([self.tissues] * len(self.depths_mm))
        for tissues, depth_mm in zip(stack, self.depths_mm, strict=True):
            paint_heart(tissues, self.u, self.v, depth_mm, phase)
        signal[self.window] = _average_samples(self.brightness[stack].mean(axis=0))
        structures = LABEL_OF_TISSUE[stack]
        shares = [_average_samples((structures == value).mean(axis=0, dtype=np.float32)) for value in range(4)]
        label[self.window] = np.argmax(shares, axis=0)
        return signal, label


def _sample_points(number: int, protocol: MriProtocol) -> NDArray[np.complex64]:
    """Compute body coordinates ``x + iy`` of a slice's in-plane samples.

    The origin is the heart's centre.
    """
    x, y = (
        (np.arange(size * IN_PLANE_SAMPLES) + 0.5) * pixel / IN_PLANE_SAMPLES - size * pixel / 2 - heart - breath
        for size, pixel, heart, breath in zip(
            protocol.shape[:2],
            protocol.spacing_mm[:2],
            protocol.heart_at_mm,
            protocol.breath_hold_mm[number],
            strict=True,
        )
    )
    return ((x[:, None] + 1j * y[None, :]) * np.exp(-1j * protocol.body_angle)).astype(np.complex64)


def _compute_displacement(points: NDArray[np.complex64], body: Body) -> NDArray[np.complex64]:
    """Compute a smooth displacement of the heart.

    It is equal at all depths and phases, which nearly preserves the ratios of areas.
    """
    moved = np.zeros_like(points)
    for number, (amplitude, along_x, along_y, _, start) in enumerate(body.waves):
        wave = np.float32(0.5 * amplitude) * np.sin(along_x * points.real + along_y * points.imag + start)
        moved += wave * np.complex64(1j ** (number % 2))
    return moved


def _find_window(
    points: NDArray[np.complex64], radius_mm: float, centre_u: float
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Find the window around the heart, in voxels and in samples."""
    near = np.abs(points - np.complex64(centre_u)) < radius_mm
    voxels, samples = [], []
    for axis in (0, 1):
        hits = np.flatnonzero(near.any(axis=1 - axis))
        start, stop = int(hits[0]) // IN_PLANE_SAMPLES, int(hits[-1]) // IN_PLANE_SAMPLES + 1
        voxels.append(slice(start, stop))
        samples.append(slice(start * IN_PLANE_SAMPLES, stop * IN_PLANE_SAMPLES))
    return tuple(voxels), tuple(samples)


def _average_samples(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    columns, rows = (size // IN_PLANE_SAMPLES for size in samples.shape)
    return samples.reshape(columns, IN_PLANE_SAMPLES, rows, IN_PLANE_SAMPLES).mean(axis=(1, 3))


def acquire(signal: NDArray[np.float32], protocol: MriProtocol, rng: np.random.Generator) -> NDArray[np.generic]:
    """Apply coil sensitivity, point spread and Rician noise.

    The result is rounded to integers, as in ACDC's files.
    """
    signal = ndimage.gaussian_filter(
        signal * _compute_sensitivity(protocol), (protocol.blur_pixels, protocol.blur_pixels, 0)
    )
    noise = np.float32(protocol.noise)
    real = signal + noise * rng.standard_normal(signal.shape, dtype=np.float32)
    imaginary = noise * rng.standard_normal(signal.shape, dtype=np.float32)
    stored = np.rint(np.sqrt(real * real + imaginary * imaginary) * np.float32(protocol.gain))
    return np.minimum(stored, 255 if protocol.stored_type == "uint8" else 32767).astype(protocol.stored_type)


def _compute_sensitivity(protocol: MriProtocol) -> NDArray[np.float32]:
    x = np.linspace(-1, 1, protocol.shape[0])[:, None]
    y = np.linspace(-1, 1, protocol.shape[1])[None, :]
    logarithm = sum(
        weight * term for weight, term in zip(protocol.coil, (x, y, x * x - 0.33, y * y - 0.33, x * y), strict=True)
    )
    return np.exp(logarithm)[:, :, None].astype(np.float32)
