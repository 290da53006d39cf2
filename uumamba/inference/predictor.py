"""Prediction of label maps with trained networks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar
from warnings import warn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from uumamba.inference.memory_plan import (
    DEFAULT_LIMIT_GB,
    GB,
    PROCESS_BYTES,
    MemoryPlan,
    count_features,
    plan_memory,
)
from uumamba.inference.mirror_averaging import mirrored_mean
from uumamba.inference.plane_image import PlaneImage, list_neighbours
from uumamba.inference.slab_blending import blend_slabs
from uumamba.inference.sliding_window import OVERLAP, WINDOWS_AT_ONCE
from uumamba.runtime.autocast import Precision, autocast
from uumamba.runtime.errors import CaseError, require, require_case
from uumamba.runtime.memory_format import lay_channels_last, to_channels_last
from uumamba.runtime.memory_shortage import (
    OutOfMemoryError,
    free_memory,
    is_out_of_memory,
    measure_resident_bytes,
    summarize_error,
)
from uumamba.runtime.painting import paint_regions
from uumamba.types import LabelMap

Array = NDArray[Any]
Result = TypeVar("Result")
OpenStore = Callable[[Any, int], Callable[..., None]]
"""Function that gets the probabilities in parts; see :mod:`uumamba.data.restored_planes`."""


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
            :func:`uumamba.inference.plane_image.list_neighbours`.
        channels: name of each channel that a native image must have; by default they are not checked.
        modality: DICOM modality of the images, such as ``"MR"``; empty if unknown.
        preprocess: ``preprocess(image, spacing_mm=..., affine=..., case_id=...) -> (array (C, *S), geometry)``; the
            array may be a :class:`PlaneImage`. By default the image is the array.
        restore_planes: ``(predict, geometry, strips=..., probabilities=...) -> (label, probabilities or None)`` on the
            image's grid; it calls ``predict(rows)`` for the planes of each strip of rows, and finds the label while
            probabilities are predicted. By default both are on the grid of the prepared array.
        postprocess: from the restored label map to the final one, such as
            :class:`uumamba.inference.postprocess.LargestComponents`; probabilities are not changed.
        inspect: ``inspect(array, label, geometry) -> remarks`` about the prepared image and the final label map; by
            default there are none.
        structures: value of each structure in files; sorted by it, the structures are the classes 1, 2, ....
        colours: colours of structures for pictures, such as ``"#d62728"``.
        output_names: name of each class, or of each region.
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
        memory_limit_gb: size of the process in 10^9 bytes to which prediction on the CPU keeps: by fewer windows at a
            time, then by strips of rows whose border windows are repeated. By default it keeps to 4 GB where it can,
            without whatever else the process holds.

    Raises:
        UsageError: there is no network, a mirrored axis is not an axis of the patch, or the limit is not positive.

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
        preprocess: Callable[..., tuple[Array | PlaneImage, Any]] | None = None,
        restore_planes: Callable[..., tuple[LabelMap, NDArray[np.float32] | None]] | None = None,
        postprocess: Callable[[LabelMap], LabelMap] | None = None,
        inspect: Callable[[Array | PlaneImage, LabelMap, Any], Sequence[str]] | None = None,
        structures: Mapping[str, int] | None = None,
        colours: Mapping[str, str] | None = None,
        output_names: Sequence[str] = (),
        painted: Sequence[int] | None = None,
        mirror_axes: Sequence[int] = (),
        mirror_swaps: Mapping[int, Sequence[tuple[int, int]]] | None = None,
        overlap: float = OVERLAP,
        sw_batch_size: int = WINDOWS_AT_ONCE,
        device: torch.device | str = "cpu",
        precision: Precision = "float32",
        channels_last: bool = False,
        memory_limit_gb: float | None = None,
    ) -> None:
        require(
            memory_limit_gb is None or memory_limit_gb > 0,
            "memory_limit_gb",
            got=memory_limit_gb,
            expected="a positive number of GB",
        )
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
        self.restore_planes = restore_planes
        self.postprocess = postprocess
        self.inspect = inspect
        self.structures = None if structures is None else dict(structures)
        self.colours = dict(colours or {})
        self.output_names = tuple(output_names)
        self.painted = None if painted is None else tuple(painted)
        self.overlap = overlap
        self.sw_batch_size = sw_batch_size
        self._blend_device = self.device
        self.precision = precision
        self.memory_limit_gb = memory_limit_gb
        self._predict_windows = mirrored_mean(self._average_probabilities, mirror_axes, swaps=mirror_swaps)

    @torch.inference_mode()
    def __call__(
        self,
        image: Array,
        *,
        spacing_mm: Sequence[float] | None = None,
        affine: Array | None = None,
        probabilities: bool | OpenStore = False,
        case_id: str = "image",
    ) -> Prediction:
        """Segment one image.

        Args:
            image: the native array, the input of ``preprocess``: ``(C, *S)``, or ``S`` for one of the ``channels``;
                ``(C, *S)`` without ``preprocess``.
            spacing_mm: voxel size in the order of the image's axes.
            affine: affine of the image to RAS+ millimetres.
            probabilities: True also returns probabilities, in float32, K times the size of the image; a function gets
                them in parts, for ``restore_planes``.
            case_id: name of the case for errors.

        Raises:
            CaseError: the probabilities of this image are not finite, or it does not keep to the limit of memory.
            OutOfMemoryError: a single window does not fit into memory.
            UsageError: the image has other channels, the probabilities of a blank image are not finite either, the
                networks have too few classes for the structures, or ``restore_planes`` is missing.
        """
        require(
            self.restore_planes is not None or not callable(probabilities),
            "restore_planes",
            got=None,
            expected="a function that stores probabilities in parts",
        )
        self._check_channels(image)
        array: Array | PlaneImage = image
        geometry = None
        if self.preprocess is not None:
            array, geometry = self.preprocess(image, spacing_mm=spacing_mm, affine=affine, case_id=case_id)
        restore = self.restore_planes or partial(self._keep_grid, array.shape[1:])

        def work() -> tuple[LabelMap, NDArray[np.float32] | None]:
            plan = self._plan_memory(image, array, case_id)
            predict = partial(self._predict_planes, array, windows=plan.windows, case_id=case_id)
            return restore(predict, geometry, strips=plan.strips, probabilities=probabilities)

        label, found = self._with_less_memory(work, array.shape)
        label = label if self.postprocess is None else self.postprocess(label)
        remarks = () if self.inspect is None else tuple(self.inspect(array, label, geometry))
        return Prediction(label, found, remarks)

    def _keep_grid(
        self,
        size: Sequence[int],
        predict: Callable[[tuple[int, int] | None], Iterator[NDArray[np.float32]]],
        geometry: Any,
        *,
        strips: int,
        probabilities: bool,
    ) -> tuple[LabelMap, NDArray[np.float32] | None]:
        """Find the label map on the grid of the prepared array.

        It is the default of ``restore_planes``.
        """
        label, found = np.empty(tuple(size), dtype=np.uint8), None
        spans = pairwise(size[1] * index // strips for index in range(strips + 1)) if strips > 1 else [None]
        for rows in spans:
            inside = ... if rows is None else slice(*rows)
            for z, plane in enumerate(predict(rows)):
                label[z, inside] = self.find_label(plane)
                if probabilities:
                    found = np.empty((len(plane), *size), dtype=np.float32) if found is None else found
                    found[:, z, inside] = plane
        return label, found

    def find_label(self, probabilities: NDArray[np.float32]) -> LabelMap:
        """Find the label map ``(*S)`` of prepared probabilities ``(K, *S)``."""
        if self.painted is not None:
            return paint_regions(probabilities, self.painted)
        return probabilities.argmax(axis=0).astype(np.uint8)

    def prepared_probabilities(self, array: Array | PlaneImage, *, case_id: str = "image") -> NDArray[np.float32]:
        """Predict probabilities ``(K, *S)`` of a prepared array ``(C, *S)``.

        Raises:
            CaseError: the probabilities are not finite.
            OutOfMemoryError: a single window does not fit into memory.
            UsageError: the probabilities of a blank image are not finite either, or the networks have too few classes
                for the structures.
        """

        def work() -> NDArray[np.float32]:
            result: NDArray[np.float32] | None = None
            for index, plane in enumerate(self._predict_planes(array, case_id=case_id)):
                result = np.empty((len(plane), *array.shape[1:]), np.float32) if result is None else result
                result[:, index] = plane
            assert result is not None
            return result

        return self._with_less_memory(work, array.shape)

    def _predict_planes(
        self,
        array: Array | PlaneImage,
        rows: tuple[int, int] | None = None,
        *,
        windows: int | None = None,
        case_id: str,
    ) -> Iterator[NDArray[np.float32]]:
        """Yield the planes ``(K, rows, X)`` of a prepared array's probabilities.

        A plane is valid until the next one.
        """
        slabs = blend_slabs(
            partial(self._list_planes, array),
            array.shape[1:],
            self._apply_to_windows,
            roi_size=self.patch_size,
            sw_batch_size=min(windows or self.sw_batch_size, self.sw_batch_size),
            overlap=self.overlap,
            rows=rows,
        )
        for index, plane in enumerate(plane for slab in slabs for plane in slab.unbind(1)):
            if index == 0:
                self._check_classes(len(plane))
            if not plane.isfinite().all():
                self._refuse_image(case_id, channels=array.shape[0] * (2 * self.neighbour_slices + 1))
            yield np.asarray(plane.cpu(), np.float32)

    def _list_planes(self, array: Array | PlaneImage) -> Iterator[Tensor]:
        planes = array.planes() if isinstance(array, PlaneImage) else iter(np.moveaxis(np.asarray(array), 1, 0))
        for plane in list_neighbours(planes, self.neighbour_slices):
            yield torch.as_tensor(np.ascontiguousarray(plane, dtype=np.float32)).to(self._blend_device)

    def _apply_to_windows(self, windows: Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            return self._predict_windows(windows.to(self.device)).to(self._blend_device)

    def _check_classes(self, count: int) -> None:
        needed = len(self.structures or {}) + 1
        require(
            self.painted is None or count == len(self.painted),
            "painted",
            got=self.painted,
            expected=f"one class for each of the network's {count} outputs",
        )
        require(
            self.painted is not None or count >= needed,
            "structures",
            got=self.structures,
            expected=f"at most {count - 1} structures, the network's classes without background",
        )

    def _refuse_image(self, case_id: str, *, channels: int) -> None:
        """Raise the error of an image whose probabilities are not finite."""
        self._check_blank_image(channels=channels)
        raise CaseError(
            case_id,
            "probabilities",
            got="NaN or infinity",
            expected="finite numbers",
            fix="remove NaN and extreme values from the image, or predict in float32",
        )

    def _plan_memory(self, image: Array, array: Array | PlaneImage, case_id: str) -> MemoryPlan:
        """Divide the prediction of an image for the limit of memory.

        Raises:
            CaseError: a limit was given, and the finest division exceeds it.
        """
        if self._blend_device != torch.device("cpu"):
            return MemoryPlan(strips=1, windows=self.sw_batch_size, bytes_needed=0)
        native, limit_gb = np.asarray(image), self.memory_limit_gb
        plan = plan_memory(
            GB * (DEFAULT_LIMIT_GB if limit_gb is None else limit_gb),
            resident_bytes=PROCESS_BYTES + native.nbytes if limit_gb is None else measure_resident_bytes(),
            label_shape=native.shape[-len(array.shape[1:]) :],
            size=array.shape[1:],
            roi_size=self.patch_size,
            classes=len(self.painted or self.structures or ()) + (self.painted is None),
            features=count_features(self.nets[0]),
            windows=self.sw_batch_size,
        )
        require_case(
            limit_gb is None or plan.bytes_needed <= limit_gb * GB,
            case_id,
            "memory_limit_gb",
            got=limit_gb,
            expected=f"at least {plan.bytes_needed / GB:.1f} GB for this image",
            fix="raise the limit, or crop the scan",
        )
        return plan

    def _with_less_memory(self, work: Callable[[], Result], shape: Sequence[int]) -> Result:
        """Return ``work()``.

        If memory runs out, the need for memory is reduced for this and all later images.
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = summarize_error(error)
            # Outside the handler, the error and the stack frames that held its tensors no longer exist.
            free_memory(self.device)
            warn(f"Memory ran out ({reason}): {self._reduce_memory(shape, reason)}.", MemoryWarning, stacklevel=2)

    def _reduce_memory(self, shape: Sequence[int], reason: str) -> str:
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
            f"{tuple(shape)} ({reason}); predict on a device with more memory, or train with a smaller patch."
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
