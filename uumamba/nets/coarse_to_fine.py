"""Two networks in one: the first sees all of it from afar, the second sees it closely and knows what the first said."""

from collections.abc import Sequence
from math import lcm

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.nets.residual_unet import ResidualUNet
from uumamba.nets.topology import check_divisible


class CoarseToFine(nn.Module):
    r"""A coarse network on the averaged image, whose answer is an input of the fine one.

    .. math:: c = g(\mathrm{pool}_k(x)), \qquad z = f(x \oplus \mathrm{upsample}_k(\mathrm{softmax}(c)))

    For classes that are told apart by where they lie, as the zones of an aorta: the coarse network sees a patch so
    large that it holds what says where one is, at :math:`k^{-3}` of the work, and the fine one puts the borders right.
    Both learn in one training. With deep supervision the coarse network's own logits come second in the list, so that
    ``DeepSupervisionLoss`` gives them half the weight of the finest.

    Args:
        coarse: from the image's channels to classes.
        fine: from the image's channels and classes together to classes.
        factor: by how much the coarse network's image is smaller, an axis.

    Raises:
        ValueError: the two have different numbers of axes, or the factor has another number or one below 1.

    Example:
        >>> from uumamba.nets import ResEncUNet, UMambaBot
        >>> coarse = UMambaBot(2, 1, 3, features=(8, 16), strides=(1, 2))
        >>> net = CoarseToFine(coarse, ResEncUNet(2, 1 + 3, 3, features=(4, 8), strides=(1, 2)), factor=(2, 2))
        >>> [logits.shape[2:] for logits in net(torch.zeros(1, 1, 16, 8))]
        [torch.Size([16, 8]), torch.Size([8, 4])]
        >>> net.required_divisor
        (4, 4)

    References:
        Isensee et al., *nnU-Net*, Nature Methods 18, 2021 (the cascade). Differs from the paper: trained together and
        not one after the other, and the fine network gets probabilities, not labels.
    """

    def __init__(self, coarse: ResidualUNet, fine: ResidualUNet, *, factor: Sequence[int]) -> None:
        super().__init__()
        if not coarse.spatial_dims == fine.spatial_dims == len(factor):
            raise ValueError(
                f"coarse, fine and factor should have one number of axes, found {coarse.spatial_dims}, "
                f"{fine.spatial_dims} and {len(factor)}"
            )
        if min(factor) < 1:
            raise ValueError(f"factor should be 1 or more on every axis, found {tuple(factor)}")
        self.coarse = coarse
        self.fine = fine
        self.factor = tuple(factor)

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return self.fine.spatial_dims

    @property
    def required_divisor(self) -> tuple[int, ...]:
        """What the patch must be divisible by, an axis."""
        pairs = zip(self.factor, self.coarse.required_divisor, self.fine.required_divisor, strict=True)
        return tuple(lcm(step * coarse, fine) for step, coarse, fine in pairs)

    @property
    def minimum_patch(self) -> tuple[int, ...]:
        """The smallest patch that leaves two bottleneck voxels to both."""
        *leading, last = self.required_divisor
        return (*leading, 2 * last)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """``(batch, in_channels, *spatial)`` to logits ``(batch, out_channels, *spatial)``, or a list, finest first.

        Raises:
            ValueError: when strides and factor do not divide the spatial size.
        """
        check_divisible(image.shape[2:], self.required_divisor)
        pool = F.avg_pool2d if self.spatial_dims == 2 else F.avg_pool3d
        seen_from_afar = _as_list(self.coarse(pool(image, self.factor)))
        mode = "bilinear" if self.spatial_dims == 2 else "trilinear"
        guess = F.interpolate(seen_from_afar[0].softmax(1), image.shape[2:], mode=mode, align_corners=False)
        seen_closely = self.fine(torch.cat((image, guess.to(image.dtype)), dim=1))
        if isinstance(seen_closely, Tensor):
            return seen_closely
        return [seen_closely[0], seen_from_afar[0], *seen_closely[1:], *seen_from_afar[1:]]


def _as_list(logits: Tensor | list[Tensor]) -> list[Tensor]:
    return [logits] if isinstance(logits, Tensor) else logits
