"""Convolution of images with random kernels: textures change, shapes stay."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.domain_generalization.uniform_draws import draw_uniform, generator_device
from uumamba.runtime.errors import require
from uumamba.runtime.options import PositiveInt, Probability, check_options

CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


class RandConv(nn.Module):
    r"""Layer that mixes each batch with its convolution by a random kernel.

    With C channels, d spatial axes, k from ``kernel_sizes`` and :math:`\alpha \sim U(0, 1)`:

    .. math:: \alpha x + (1 - \alpha)\, \theta * x, \qquad
              \theta \in \mathbb{R}^{C \times C \times k^d} \sim N\big(0, 1 / (C k^d)\big)

    without bias and with zero padding, so size and channels stay. Apply the layer to normalised images, 1-D, 2-D or
    3-D, before the network and outside the closure, so that every pass of a step gets the same images. The layer is
    the identity in evaluation mode and with probability 1 - p. It has no parameters and is differentiable.

    Args:
        p: probability that a batch is convolved.
        kernel_sizes: odd edge lengths to draw from; 1 mixes channels only.
        mix: False returns the convolved batch, the published method without mixing.
        generator: generator of every draw, not part of the state; None for torch's global generator.

    Raises:
        UsageError: an option is out of range; or, from ``forward``, the images do not have 1 to 3 spatial axes or are
            not floating point.

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
        Differs from the paper: there p is the probability that the image stays unchanged; the consistency loss over
        three convolutions is not included; 1-D and 3-D images are also possible.
    """

    @check_options
    def __init__(
        self,
        *,
        p: Probability = 0.5,
        kernel_sizes: Sequence[PositiveInt] = (1, 3, 5, 7),
        mix: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.p, self.mix = p, mix
        self.kernel_sizes = tuple(kernel_sizes)
        require(
            self.kernel_sizes and all(size % 2 for size in self.kernel_sizes),
            "kernel_sizes",
            got=self.kernel_sizes,
            expected="at least one odd number",
        )
        self.generator = generator

    def forward(self, images: Tensor) -> Tensor:
        """Convolve images ``(batch, channels, *spatial)``; the shape stays."""
        require(
            images.ndim in CONVOLUTIONS,
            "images",
            got=tuple(images.shape),
            expected="(batch, channels, *spatial) with 1 to 3 spatial axes",
        )
        require(
            images.is_floating_point(),
            "images",
            got=images.dtype,
            expected="a floating-point type",
            fix="convert and normalise the images first",
        )
        if not self.training or draw_uniform(self.generator) >= self.p:
            return images
        convolved = CONVOLUTIONS[images.ndim](images, self._draw_kernel(images), padding="same")
        if not self.mix:
            return convolved
        share = draw_uniform(self.generator)
        return share * images + (1 - share) * convolved

    def _draw_kernel(self, images: Tensor) -> Tensor:
        size = self.kernel_sizes[int(draw_uniform(self.generator) * len(self.kernel_sizes))]
        channels, axes = images.shape[1], images.ndim - 2
        shape = (channels, channels, *[size] * axes)
        drawn = torch.randn(shape, generator=self.generator, device=generator_device(self.generator))
        return (drawn / (channels * size**axes) ** 0.5).to(images)

    def extra_repr(self) -> str:
        return f"p={self.p}, kernel_sizes={self.kernel_sizes}, mix={self.mix}"
