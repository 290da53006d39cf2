"""Cascade of two networks, trained together."""

from collections.abc import Sequence
from math import lcm

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.nets.residual_unet import ResidualUNet
from uumamba.nets.stages import check_divisible, smallest_patch
from uumamba.runtime.errors import require
from uumamba.runtime.options import check_options


class CoarseToFine(nn.Module):
    r"""Cascade of a coarse and a fine network, trained together.

    The coarse network predicts on the downsampled image. The fine network gets the image and this prediction.

    .. math:: c = g(\mathrm{pool}_k(x)), \qquad z = f(x \oplus \mathrm{upsample}_k(\mathrm{softmax}(c)))

    Use it for classes that differ by location, such as the zones of an aorta. The coarse network sees a patch large
    enough to determine the location, at :math:`k^{-3}` of the work, and the fine network determines the borders. With
    deep supervision the coarse logits are second in the list, so ``DeepSupervisionLoss`` gives them half the weight of
    the finest logits.

    Args:
        coarse: from the image's channels to classes.
        fine: from the image's channels and classes together to classes.
        factor: downsampling of the coarse network's image, one number per axis.

    Raises:
        UsageError: the networks differ in their number of axes, or ``factor`` is not one positive number per axis.

    Example:
        >>> from uumamba.nets import ResEncUNet, UMambaBot
        >>> coarse = UMambaBot(2, 1, 3, features=(8, 16), strides=(1, 2))
        >>> net = CoarseToFine(coarse, ResEncUNet(2, 1 + 3, 3, features=(4, 8), strides=(1, 2)), factor=(2, 2))
        >>> [logits.shape[2:] for logits in net(torch.zeros(1, 1, 16, 8))]
        [torch.Size([16, 8]), torch.Size([8, 4])]
        >>> net.required_divisor
        (4, 4)

    References:
        Isensee et al., *nnU-Net*, Nature Methods 18, 2021 (the cascade). Differs from the paper: both networks are
        trained together, not one after the other, and the fine network gets probabilities, not labels.
    """

    @check_options
    def __init__(self, coarse: ResidualUNet, fine: ResidualUNet, *, factor: Sequence[int]) -> None:
        super().__init__()
        dims = coarse.spatial_dims
        require(
            fine.spatial_dims == dims, "fine", got=f"{fine.spatial_dims}-D", expected=f"a {dims}-D network, as coarse"
        )
        require(
            len(factor) == dims and min(factor) >= 1,
            "factor",
            got=tuple(factor),
            expected=f"{dims} numbers of at least 1, one per axis",
        )
        self.spatial_dims = dims
        self.coarse = coarse
        self.fine = fine
        self.factor = tuple(factor)

    @property
    def required_divisor(self) -> tuple[int, ...]:
        """Divisor of the patch size on each axis."""
        pairs = zip(self.factor, self.coarse.required_divisor, self.fine.required_divisor, strict=True)
        return tuple(lcm(step * coarse, fine) for step, coarse, fine in pairs)

    @property
    def minimum_patch(self) -> tuple[int, ...]:
        """Smallest patch with two bottleneck voxels in both networks."""
        return smallest_patch(self.required_divisor)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Return logits, or in training a list, finest first.

        Raises:
            UsageError: strides and factor do not divide the spatial size.
        """
        check_divisible(image.shape[2:], self.required_divisor)
        pool = F.avg_pool2d if self.spatial_dims == 2 else F.avg_pool3d
        coarse = self.coarse(pool(image, self.factor))
        coarse = [coarse] if isinstance(coarse, Tensor) else coarse
        mode = "bilinear" if self.spatial_dims == 2 else "trilinear"
        prediction = F.interpolate(coarse[0].softmax(1), image.shape[2:], mode=mode, align_corners=False)
        fine = self.fine(torch.cat((image, prediction.to(image.dtype)), dim=1))
        if isinstance(fine, Tensor):
            return fine
        return [fine[0], coarse[0], *fine[1:], *coarse[1:]]
