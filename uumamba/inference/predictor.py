"""Trained networks and the way around them: from an image to a label map on the image's own grid."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from warnings import warn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from uumamba.inference.mirror_averaging import mirrored_mean
from uumamba.inference.sliding_window import sliding_window
from uumamba.runtime.errors import CaseError, UsageError, UumambaError
from uumamba.runtime.memory_format import lay_channels_last, to_channels_last
from uumamba.runtime.memory_shortage import OutOfMemoryError, free_memory, is_out_of_memory, summarize_error
from uumamba.runtime.precision import Precision, autocast
from uumamba.types import LabelMap

Array = NDArray[Any]


class MemoryWarning(UserWarning):
    """Memory ran out, and the same is done in another way."""


@dataclass(frozen=True)
class Prediction:
    """What the networks say of one image.

    Attributes:
        label: uint8 on the image's own grid.
        probabilities: ``(K, *grid)`` float32 that sum to 1 over K; None unless asked for.
    """

    label: LabelMap
    probabilities: NDArray[np.float32] | None = None


class Predictor:
    r"""Segments images with one network or the mean of several.

    .. math:: p = \frac{1}{n} \sum_i \mathrm{softmax}(z_i)

    over networks and mirrored inputs, in each window, before windows are blended; the label is the restored argmax.

    Where memory runs out, fewer windows go through at once, and then they are put together in the processor's memory;
    a :class:`MemoryWarning` says so, and it stays so for the images that follow. The label is the same.

    Args:
        nets: one network or several of the same input and classes; they are brought to ``device`` and evaluation mode.
        patch_size: the window, ``(Y, X)`` for 2-D networks, which see slices, or ``(Z, Y, X)``.
        preprocess: ``preprocess(image, spacing_mm=..., affine=..., case_id=...) -> (array (C, *S), geometry)``; without
            it the image is the array.
        restore: ``restore(probabilities (K, *S), geometry) -> label`` uint8 on the image's grid; without it the argmax.
        restore_probabilities: ``(probabilities, geometry) -> (K, *grid)``; needed with ``preprocess`` by those who ask
            for probabilities.
        structures: label value of each; compared with the networks' classes where given.
        mirror_axes: spatial axes of the patch to average over; only those that training mirrored.
        mirror_swaps: for one that runs left to right: pairs of classes that a mirror along it exchanges.
        overlap: of neighbouring windows.
        sw_batch_size: windows a call of a network.
        device: where to predict.
        precision: of autocast; blending is in float32 all the same.
        channels_last: keep 2-D feature maps channels last. On two CPU cores a 2-D UMambaBot took 0.33 of its time in
            float32 with 24, 48, ... features, 1.06 with 16, 32, ...; in bfloat16 0.71 and 0.87. So it is off unless
            asked for.

    Raises:
        UsageError: there is no network.
        ValueError: a mirrored axis is not one of the patch's.

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
        preprocess: Callable[..., tuple[Array, Any]] | None = None,
        restore: Callable[[NDArray[np.float32], Any], LabelMap] | None = None,
        restore_probabilities: Callable[[NDArray[np.float32], Any], NDArray[np.float32]] | None = None,
        structures: Mapping[str, int] | None = None,
        mirror_axes: Sequence[int] = (),
        mirror_swaps: Mapping[int, Sequence[tuple[int, int]]] | None = None,
        overlap: float = 0.5,
        sw_batch_size: int = 4,
        device: torch.device | str = "cpu",
        precision: Precision = "float32",
        channels_last: bool = False,
    ) -> None:
        given = [nets] if isinstance(nets, nn.Module) else list(nets)
        if not given:
            raise UsageError("A predictor needs at least one network, got none; give it a trained one.")
        if any(axis >= len(patch_size) for axis in mirror_axes):
            raise ValueError(f"mirror axes {tuple(mirror_axes)} name one that the patch {tuple(patch_size)} lacks")
        self.device = torch.device(device)
        self.channels_last = channels_last
        self.nets = [net.to(self.device).eval() for net in given]
        if self.channels_last:
            for net in self.nets:
                lay_channels_last(net)
        self.patch_size = tuple(patch_size)
        self.preprocess = preprocess
        self.restore = restore
        self.restore_probabilities = restore_probabilities
        self.structures = None if structures is None else dict(structures)
        self.overlap = overlap
        self.sw_batch_size = sw_batch_size
        self._blends_on = self.device
        self.precision = precision
        self._of_windows = mirrored_mean(self._mean_probabilities, mirror_axes, swaps=mirror_swaps)

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
            image: the native array, as ``preprocess`` takes it; ``(C, *S)`` without one.
            spacing_mm: voxel size in the order of the image's axes.
            affine: of the image, to RAS+ millimetres.
            probabilities: return them too; they take K times the memory of the image in float32.
            case_id: named in errors.

        Raises:
            CaseError: the networks' probabilities of this image are not finite.
            UumambaError: nor are those of a blank one.
            OutOfMemoryError: a single window does not fit into memory.
            UsageError: the networks' classes do not fit the structures, or there is no ``restore_probabilities``.
        """
        if probabilities and self.preprocess is not None and self.restore_probabilities is None:
            raise UsageError(
                "Probabilities on the image's own grid need restore_probabilities; give it to the Predictor, or ask "
                "for the label alone."
            )
        array, geometry = self._prepared(image, spacing_mm, affine, case_id)
        found = self.prepared_probabilities(array, case_id=case_id)
        label = found.argmax(axis=0).astype(np.uint8) if self.restore is None else self.restore(found, geometry)
        if not probabilities:
            return Prediction(label)
        restore = self.restore_probabilities
        return Prediction(label, found if restore is None else restore(found, geometry))

    def prepared_probabilities(self, array: Array, *, case_id: str = "image") -> NDArray[np.float32]:
        """Probabilities ``(K, *S)`` of a prepared array ``(C, *S)``.

        Raises:
            CaseError: they are not finite.
            UumambaError: nor are those of a blank image.
            OutOfMemoryError: a single window does not fit into memory.
            UsageError: the networks' classes do not fit the structures.
        """
        blended = self._blended(torch.as_tensor(np.ascontiguousarray(array, dtype=np.float32)))
        self._check_classes(len(blended))
        if not blended.isfinite().all():
            self._check_weights(channels=len(array))
            raise CaseError(
                case_id,
                "the network's probabilities are not finite",
                "look for NaN or extreme values in the image, or predict in float32",
            )
        found: NDArray[np.float32] = blended.cpu().numpy()
        return found

    def _blended(self, image: Tensor) -> Tensor:
        """Windows blended on the device, or as :class:`Predictor` says where memory runs out."""
        while True:
            try:
                return self._attempt(image.to(self._blends_on))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = summarize_error(error)
            # Only here the error is gone, and with it the frames that held its tensors.
            free_memory(self.device)
            warn(f"Memory ran out ({reason}): {self._take_less(image, reason)}.", MemoryWarning, stacklevel=2)

    def _attempt(self, image: Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            return sliding_window(
                image,
                lambda windows: self._of_windows(windows.to(self.device)).to(windows.device),
                roi_size=self.patch_size,
                sw_batch_size=self.sw_batch_size,
                overlap=self.overlap,
            )

    def _take_less(self, image: Tensor, reason: str) -> str:
        """Ask for less memory from now on, and say how."""
        if self.sw_batch_size > 1:
            self.sw_batch_size = (self.sw_batch_size + 1) // 2
            return f"from here on {self.sw_batch_size} windows go through the network at a time"
        if self._blends_on != torch.device("cpu"):
            self._blends_on = torch.device("cpu")
            return "from here on windows are put together in the processor's memory"
        raise OutOfMemoryError(
            f"Memory ran out with one window of {tuple(self.patch_size)} at a time in an image of "
            f"{tuple(image.shape)} ({reason}); predict on a device with more memory, or train with a smaller patch."
        )

    def _prepared(
        self, image: Array, spacing_mm: Sequence[float] | None, affine: Array | None, case_id: str
    ) -> tuple[Array, Any]:
        if self.preprocess is None:
            return image, None
        return self.preprocess(image, spacing_mm=spacing_mm, affine=affine, case_id=case_id)

    def _mean_probabilities(self, windows: Tensor) -> Tensor:
        if self.channels_last:
            windows = to_channels_last(windows)
        total = self.nets[0](windows).float().softmax(dim=1)
        for net in self.nets[1:]:
            total += net(windows).float().softmax(dim=1)
        return total / len(self.nets)

    def _check_classes(self, classes: int) -> None:
        if self.structures is not None and classes <= max(self.structures.values(), default=0):
            raise UsageError(
                f"The network tells {classes} classes apart, background included, but the structures "
                f"{self.structures} need {max(self.structures.values()) + 1}; give those it was trained on."
            )

    def _check_weights(self, *, channels: int) -> None:
        """Tell a network that diverged, which fails on every image, from an image that it cannot take."""
        blank = torch.zeros((1, channels, *self.patch_size), device=self.device)
        with torch.no_grad(), autocast(self.device, self.precision):
            if self._of_windows(blank).isfinite().all():
                return
        raise UumambaError(
            "The network's probabilities are not finite even for a blank image, so its training diverged; train it "
            "again with a lower learning rate, or predict in float32."
        )
