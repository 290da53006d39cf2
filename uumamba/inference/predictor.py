"""Prediction of label maps with trained networks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from warnings import warn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from uumamba.inference.mirror_averaging import mirrored_mean
from uumamba.inference.sliding_window import OVERLAP, WINDOWS_AT_ONCE, sliding_window
from uumamba.runtime.autocast import Precision, autocast
from uumamba.runtime.errors import require, require_case
from uumamba.runtime.memory_format import lay_channels_last, to_channels_last
from uumamba.runtime.memory_shortage import OutOfMemoryError, free_memory, is_out_of_memory, summarize_error
from uumamba.runtime.painting import paint_regions
from uumamba.types import LabelMap

Array = NDArray[Any]


class MemoryWarning(UserWarning):
    """Warning that memory ran out and prediction continues in smaller parts."""


@dataclass(frozen=True)
class Prediction:
    """Prediction for one image.

    Attributes:
        label: uint8 on the grid of the image.
        probabilities: ``(K, *grid)`` float32 with sum 1 over K, or of K regions that may overlap; None unless
            requested.
        remarks: what is unusual about the image and its label map, from ``inspect``.
    """

    label: LabelMap
    probabilities: NDArray[np.float32] | None = None
    remarks: tuple[str, ...] = ()


def stack_neighbours(array: Array, count: int) -> Array:
    """Stack each slice and its neighbours as channels.

    The first and the last slice are their own neighbours.

    Args:
        array: ``(C, Z, Y, X)``.
        count: number of slices on either side; 0 returns the array.

    Returns:
        ``(C (2 count + 1), Z, Y, X)``, the slices of a channel in their order.

    Example:
        >>> stack_neighbours(np.arange(3.0).reshape(1, 3, 1, 1), 1)[..., 0, 0].tolist()
        [[0.0, 0.0, 1.0], [0.0, 1.0, 2.0], [1.0, 2.0, 2.0]]
    """
    if count == 0:
        return array
    places = np.arange(array.shape[1]) + np.arange(-count, count + 1)[:, None]
    stacked = array[:, places.clip(0, array.shape[1] - 1)]
    return stacked.reshape(-1, *array.shape[1:])


class Predictor:
    r"""Segmentation of images with one network or the mean of several.

    .. math:: p = \frac{1}{n} \sum_i \mathrm{softmax}(z_i)

    over networks and mirrored inputs in each window, before windows are blended; the label is the restored argmax.
    Networks with one output per region have the sigmoid in place of the softmax, and regions with a probability above
    0.5 are painted one over the other.

    If memory runs out, the number of windows in a batch is halved. With one window in a batch, blending moves to the
    CPU. Both apply to this and all later images, with a :class:`MemoryWarning`. The label is the same.

    Args:
        nets: one network or several with the same input and classes; moved to ``device`` and evaluation mode.
        patch_size: size of the window, ``(Y, X)`` for 2-D networks on slices, or ``(Z, Y, X)``.
        neighbour_slices: number of slices on either side of a slice that are channels of a 2-D network's input; see
            :func:`stack_neighbours`.
        channels: name of each channel that a native image must have; by default they are not checked.
        modality: DICOM modality of the images, such as ``"MR"``; empty if unknown.
        preprocess: ``preprocess(image, spacing_mm=..., affine=..., case_id=...) -> (array (C, *S), geometry)``; by
            default the image is the array.
        restore: ``restore(probabilities (K, *S), geometry) -> label`` uint8 on the image's grid; by default the argmax.
        restore_probabilities: ``(probabilities, geometry) -> (K, *grid)``; necessary for probabilities with
            ``preprocess``.
        postprocess: from the restored label map to the final one, such as
            :class:`uumamba.inference.postprocess.LargestComponents`; probabilities are not changed.
        inspect: ``inspect(array, label, geometry) -> remarks`` about the prepared image and the final label map; by
            default there are none.
        structures: value of each structure in files; sorted by it, the structures are the classes 1, 2, ....
        colours: colours of structures for pictures, such as ``"#d62728"``.
        painted: class that each region paints into the label, for networks with one output per region and no
            background; None for classes.
        mirror_axes: spatial axes of the patch for mirror averaging; only axes that training mirrored.
        mirror_swaps: pairs of classes that a flip exchanges, by axis.
        overlap: overlap of neighbouring windows.
        sw_batch_size: windows for each call of a network.
        device: device of the networks.
        precision: precision of autocast; blending is always in float32.
        channels_last: store 2-D feature maps channels last. On a CPU a 2-D UMambaBot took 0.68 to 0.92 of its
            time, the least with 16, 32, ... features in bfloat16.

    Raises:
        UsageError: there is no network, or a mirrored axis is not an axis of the patch.

    Example:
        >>> predictor = Predictor(nn.Conv2d(1, 3, kernel_size=1), patch_size=(16, 16))
        >>> predictor(np.zeros((1, 5, 40, 30), dtype=np.float32)).label.shape
        (5, 40, 30)
    """

    def __init__(
        self,
        nets: nn.Module | Sequence[nn.Module],
        *,
        patch_size: Sequence[int],
        neighbour_slices: int = 0,
        channels: Sequence[str] = (),
        modality: str = "",
        preprocess: Callable[..., tuple[Array, Any]] | None = None,
        restore: Callable[[NDArray[np.float32], Any], LabelMap] | None = None,
        restore_probabilities: Callable[[NDArray[np.float32], Any], NDArray[np.float32]] | None = None,
        postprocess: Callable[[LabelMap], LabelMap] | None = None,
        inspect: Callable[[Array, LabelMap, Any], Sequence[str]] | None = None,
        structures: Mapping[str, int] | None = None,
        colours: Mapping[str, str] | None = None,
        painted: Sequence[int] | None = None,
        mirror_axes: Sequence[int] = (),
        mirror_swaps: Mapping[int, Sequence[tuple[int, int]]] | None = None,
        overlap: float = OVERLAP,
        sw_batch_size: int = WINDOWS_AT_ONCE,
        device: torch.device | str = "cpu",
        precision: Precision = "float32",
        channels_last: bool = False,
    ) -> None:
        given = [nets] if isinstance(nets, nn.Module) else list(nets)
        require(given, "nets", got=given, expected="at least one trained network")
        require(
            all(axis < len(patch_size) for axis in mirror_axes),
            "mirror_axes",
            got=tuple(mirror_axes),
            expected=f"axes of the patch {tuple(patch_size)}",
        )
        self.device = torch.device(device)
        self.channels_last = channels_last
        self.nets = [net.to(self.device).eval() for net in given]
        for net in self.nets if channels_last else ():
            lay_channels_last(net)
        self.patch_size = tuple(patch_size)
        self.neighbour_slices = neighbour_slices
        self.channels = tuple(channels)
        self.modality = modality
        self.preprocess = preprocess
        self.restore = restore
        self.restore_probabilities = restore_probabilities
        self.postprocess = postprocess
        self.inspect = inspect
        self.structures = None if structures is None else dict(structures)
        self.colours = dict(colours or {})
        self.painted = None if painted is None else tuple(painted)
        self.overlap = overlap
        self.sw_batch_size = sw_batch_size
        self._blend_device = self.device
        self.precision = precision
        self._predict_windows = mirrored_mean(self._average_probabilities, mirror_axes, swaps=mirror_swaps)

    @torch.inference_mode()
    def __call__(
        self,
        image: Array,
        *,
        spacing_mm: Sequence[float] | None = None,
        affine: Array | None = None,
        probabilities: bool = False,
        case_id: str = "image",
    ) -> Prediction:
        """Segment one image.

        Args:
            image: the native array, the input of ``preprocess``: ``(C, *S)``, or ``S`` for one of the ``channels``;
                ``(C, *S)`` without ``preprocess``.
            spacing_mm: voxel size in the order of the image's axes.
            affine: affine of the image to RAS+ millimetres.
            probabilities: also return probabilities, in float32, K times the size of the image.
            case_id: name of the case for errors.

        Raises:
            CaseError: the probabilities of this image are not finite.
            OutOfMemoryError: a single window does not fit into memory.
            UsageError: the image has other channels, the probabilities of a blank image are not finite either, the
                networks have too few classes for the structures, or ``restore_probabilities`` is missing.
        """
        require(
            not probabilities or self.preprocess is None or self.restore_probabilities is not None,
            "restore_probabilities",
            got=None,
            expected="a function to restore probabilities to the grid of the image",
        )
        self._check_channels(image)
        array, geometry = image, None
        if self.preprocess is not None:
            array, geometry = self.preprocess(image, spacing_mm=spacing_mm, affine=affine, case_id=case_id)
        found = self.prepared_probabilities(array, case_id=case_id)
        label = self.find_label(found) if self.restore is None else self.restore(found, geometry)
        label = label if self.postprocess is None else self.postprocess(label)
        remarks = () if self.inspect is None else tuple(self.inspect(array, label, geometry))
        if not probabilities:
            return Prediction(label, remarks=remarks)
        restore = self.restore_probabilities
        return Prediction(label, found if restore is None else restore(found, geometry), remarks)

    def find_label(self, probabilities: NDArray[np.float32]) -> LabelMap:
        """Find the label map ``(*S)`` of prepared probabilities ``(K, *S)``."""
        if self.painted is not None:
            return paint_regions(probabilities, self.painted)
        return probabilities.argmax(axis=0).astype(np.uint8)

    def prepared_probabilities(self, array: Array, *, case_id: str = "image") -> NDArray[np.float32]:
        """Predict probabilities ``(K, *S)`` of a prepared array ``(C, *S)``.

        Raises:
            CaseError: the probabilities are not finite.
            OutOfMemoryError: a single window does not fit into memory.
            UsageError: the probabilities of a blank image are not finite either, or the networks have too few classes
                for the structures.
        """
        array = stack_neighbours(np.asarray(array, dtype=np.float32), self.neighbour_slices)
        blended = self._blend(torch.as_tensor(np.ascontiguousarray(array)))
        needed = len(self.structures or {}) + 1
        require(
            self.painted is None or len(blended) == len(self.painted),
            "painted",
            got=self.painted,
            expected=f"one class for each of the network's {len(blended)} outputs",
        )
        require(
            self.painted is not None or len(blended) >= needed,
            "structures",
            got=self.structures,
            expected=f"at most {len(blended) - 1} structures, the network's classes without background",
        )
        is_finite = bool(blended.isfinite().all())
        if not is_finite:
            self._check_blank_image(channels=len(array))
        require_case(
            is_finite,
            case_id,
            "probabilities",
            got="NaN or infinity",
            expected="finite numbers",
            fix="remove NaN and extreme values from the image, or predict in float32",
        )
        return np.asarray(blended.cpu(), np.float32)

    def _blend(self, image: Tensor) -> Tensor:
        """Blend the probabilities of all windows.

        If memory runs out, the need for memory is reduced for this and all later images.
        """
        while True:
            try:
                with autocast(self.device, self.precision):
                    return sliding_window(
                        image.to(self._blend_device),
                        lambda windows: self._predict_windows(windows.to(self.device)).to(windows.device),
                        roi_size=self.patch_size,
                        sw_batch_size=self.sw_batch_size,
                        overlap=self.overlap,
                    )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = summarize_error(error)
            # Outside the handler, the error and the stack frames that held its tensors no longer exist.
            free_memory(self.device)
            warn(f"Memory ran out ({reason}): {self._reduce_memory(image, reason)}.", MemoryWarning, stacklevel=2)

    def _reduce_memory(self, image: Tensor, reason: str) -> str:
        """Reduce the need for memory, and describe the change.

        Raises:
            OutOfMemoryError: windows are already in batches of one, and blended on the CPU.
        """
        if self.sw_batch_size > 1:
            self.sw_batch_size = (self.sw_batch_size + 1) // 2
            return f"from here on the network gets {self.sw_batch_size} windows at a time"
        if self._blend_device != torch.device("cpu"):
            self._blend_device = torch.device("cpu")
            return "from here on windows are blended on the CPU"
        raise OutOfMemoryError(
            f"Memory ran out with one window of {tuple(self.patch_size)} at a time in an image of "
            f"{tuple(image.shape)} ({reason}); predict on a device with more memory, or train with a smaller patch."
        )

    def _average_probabilities(self, windows: Tensor) -> Tensor:
        if self.channels_last:
            windows = to_channels_last(windows)
        total = self._to_probabilities(self.nets[0](windows).float())
        for net in self.nets[1:]:
            total += self._to_probabilities(net(windows).float())
        return total / len(self.nets)

    def _check_channels(self, image: Array) -> None:
        names, shape = self.channels, tuple(np.shape(image))
        has_channels = shape[:1] == (len(names),) if len(shape) == 4 else len(names) == 1
        require(
            not names or has_channels,
            "image",
            got=f"the shape {shape}",
            expected=f"({len(names)}, *S) with the channels {', '.join(names)} in this order",
        )

    def _to_probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1) if self.painted is None else logits.sigmoid()

    def _check_blank_image(self, *, channels: int) -> None:
        """Raise if the probabilities of a blank image are not finite.

        Then the weights are at fault, not the image.
        """
        blank = torch.zeros((1, channels, *self.patch_size), device=self.device)
        with torch.no_grad(), autocast(self.device, self.precision):
            require(
                self._predict_windows(blank).isfinite().all(),
                "nets",
                got="NaN or infinity for a blank image",
                expected="finite probabilities",
                fix="train again with a lower learning rate, or predict in float32",
            )
