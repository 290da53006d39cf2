"""Images convolved with random kernels: textures change, shapes stay."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.domain_generalization.draws import check_probability, device_of, uniform

CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


class RandConv(nn.Module):
    r"""Convolves a batch with a kernel drawn anew for each, and mixes the result with the batch.

    With C channels, d spatial axes, k from ``kernel_sizes`` and :math:`\alpha \sim U(0, 1)`:

    .. math:: \alpha x + (1 - \alpha)\, \theta * x, \qquad
              \theta \in \mathbb{R}^{C \times C \times k^d} \sim N\big(0, 1 / (C k^d)\big)

    without bias, with zeros around the image, so size and channels stay. To be applied to normalised images, 1-D, 2-D
    or 3-D, before the network and outside the closure, for every pass of a step to see the same. The identity in
    evaluation mode and with probability 1 - p. It has no parameters and passes gradients on.

    Args:
        p: probability that a batch is convolved.
        kernel_sizes: odd edge lengths, one of which is drawn; 1 mixes channels alone.
        mix: False returns the convolved batch alone, the published method without mixing.
        generator: of every draw; None: torch's global one. It is no part of the state.

    Raises:
        ValueError: an option is out of range, or the images have no or more than three spatial axes, or are not
            floating point.

    Example:
        >>> images = torch.randn(2, 3, 8, 8, 8)
        >>> augment = RandConv(generator=torch.Generator().manual_seed(0))
        >>> augment(images).shape
        torch.Size([2, 3, 8, 8, 8])
        >>> augment.eval()(images) is images
        True

    References:
        Xu et al., *Robust and Generalizable Visual Representation Learning via Random Convolutions*, ICLR 2021,
        arXiv:2007.13003.
        Differs from the paper: its p is the probability that the image stays as it is; the loss that makes answers to
        three convolutions agree is not included; also for 1-D and 3-D.
    """

    def __init__(
        self,
        *,
        p: float = 0.5,
        kernel_sizes: Sequence[int] = (1, 3, 5, 7),
        mix: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_probability(p)
        if not kernel_sizes or any(size < 1 or size % 2 == 0 for size in kernel_sizes):
            raise ValueError(f"kernel_sizes must be odd and at least one, got {tuple(kernel_sizes)}")
        self.p, self.mix = p, mix
        self.kernel_sizes = tuple(kernel_sizes)
        self.generator = generator

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(batch, channels, *spatial)`` of the same shape."""
        if images.ndim not in CONVOLUTIONS:
            raise ValueError(
                f"images must be (batch, channels, *spatial) with 1 to 3 spatial axes, got shape {tuple(images.shape)}"
            )
        if not images.is_floating_point():
            raise ValueError(f"images must be floating point and normalised, got {images.dtype}")
        if not self.training or uniform(self.generator) >= self.p:
            return images
        convolved = CONVOLUTIONS[images.ndim](images, self._kernel(images), padding="same")
        if not self.mix:
            return convolved
        share = uniform(self.generator)
        return share * images + (1 - share) * convolved

    def _kernel(self, images: Tensor) -> Tensor:
        size = self.kernel_sizes[int(uniform(self.generator) * len(self.kernel_sizes))]
        channels, axes = images.shape[1], images.ndim - 2
        shape = (channels, channels, *[size] * axes)
        drawn = torch.randn(shape, generator=self.generator, device=device_of(self.generator))
        return (drawn / (channels * size**axes) ** 0.5).to(images)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"p={self.p}, kernel_sizes={self.kernel_sizes}, mix={self.mix}"
