"""Convolutional parts of the networks: norm, residual blocks and upsampling."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uumamba.runtime.memory_format import to_channels_last

NEGATIVE_SLOPE = 0.01


def convolution(
    spatial_dims: int, in_channels: int, out_channels: int, kernel_size: Sequence[int], stride: Sequence[int] = ()
) -> nn.Conv2d | nn.Conv3d:
    """Return a convolution with bias and same padding.

    The output has the size of the input, divided by the stride.
    """
    kind: Callable[..., nn.Conv2d | nn.Conv3d] = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
    padding = tuple((size - 1) // 2 for size in kernel_size)
    return kind(in_channels, out_channels, tuple(kernel_size), tuple(stride) or 1, padding)


def init_he(module: nn.Module) -> None:
    """Initialise a 2-D or 3-D convolution by He's method.

    The gain is that of the leaky ReLU. Transposed convolutions are included; other modules do not change. Use it with
    ``module.apply``.
    """
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        if not module.weight.is_meta:  # without values, torch would import its compiler for a second
            nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class InstanceNorm(nn.Module):
    """Instance normalisation with an affine map, in 2-D and 3-D.

    A single voxel has no variance: the result is the bias. Torch's own module raises an error.

    Example:
        >>> InstanceNorm(3)(torch.ones(1, 3, 1, 1)).flatten().tolist()
        [0.0, 0.0, 0.0]
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """``(batch, channels, *spatial)`` to the same."""
        if features.device.type == "cpu":
            # Group norm with one channel per group is the same: 0.8 against 7.2 ms at (8, 16, 160, 160), and it keeps
            # channels_last. On CUDA it would convert half precision to float32 under autocast.
            small = _is_small_channels_last(features)
            planes = features.contiguous() if small else features
            normed = torch.group_norm(planes, features.shape[1], self.weight, self.bias, self.eps, False)
            return to_channels_last(normed) if small else normed
        return torch.instance_norm(features, self.weight, self.bias, None, None, True, 0.0, self.eps, True)


def _is_small_channels_last(features: Tensor) -> bool:
    """Return whether torch's norm of a copy is faster.

    Below 1024 voxels torch reads one channel after another, with strides: 22 against 0.4 ms at (24, 128, 16, 16).
    """
    return features.shape[2:].numel() < 1024 and not features.is_contiguous()


class ConvNorm(nn.Sequential):
    """Convolution and norm, without an activation."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        *,
        bias: bool = True,
    ) -> None:
        conv = convolution(spatial_dims, in_channels, out_channels, kernel_size, stride)
        if not bias:
            conv.bias = None
        super().__init__(OrderedDict(conv=conv, norm=InstanceNorm(out_channels)))


class ProjectionBlock(nn.Module):
    """Residual block with a 1x1 convolution as skip.

    It can change width and size.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.conv1 = convolution(spatial_dims, in_channels, out_channels, kernel_size, stride)
        self.norm1 = InstanceNorm(out_channels)
        self.conv2 = convolution(spatial_dims, out_channels, out_channels, kernel_size)
        self.norm2 = InstanceNorm(out_channels)
        self.conv3 = convolution(spatial_dims, in_channels, out_channels, (1,) * spatial_dims, stride)

    def forward(self, features: Tensor) -> Tensor:
        """``(batch, in_channels, *spatial)`` to ``(batch, out_channels, *spatial / stride)``."""
        inner = leaky_relu(self.norm1(self.conv1(features)))
        return leaky_relu(self.norm2(self.conv2(inner)) + self.conv3(features))


class IdentityBlock(nn.Module):
    """Residual block with the input as skip."""

    def __init__(self, spatial_dims: int, channels: int, kernel_size: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = ConvNorm(spatial_dims, channels, channels, kernel_size)
        self.conv2 = ConvNorm(spatial_dims, channels, channels, kernel_size)

    def forward(self, features: Tensor) -> Tensor:
        """``(batch, channels, *spatial)`` to the same."""
        return leaky_relu(self.conv2(leaky_relu(self.conv1(features))) + features)


def residual_stage(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: Sequence[int],
    *,
    blocks: int,
    stride: Sequence[int] = (),
) -> nn.Sequential:
    """Return a projection block followed by identity blocks, ``blocks`` in all."""
    first = ProjectionBlock(spatial_dims, in_channels, out_channels, kernel_size, stride)
    rest = (IdentityBlock(spatial_dims, out_channels, kernel_size) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by ``stride`` and a 1x1 convolution that changes the width.

    The convolution is computed first: it has kernel size 1, so the values are the same with less work.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(float(step) for step in stride)
        self.conv = convolution(spatial_dims, in_channels, out_channels, (1,) * spatial_dims)

    def forward(self, features: Tensor) -> Tensor:
        """``(batch, in_channels, *spatial)`` to ``(batch, out_channels, *spatial * stride)``."""
        return F.interpolate(self.conv(features), scale_factor=self.stride, mode="nearest")


def leaky_relu(features: Tensor) -> Tensor:
    """Apply the activation of all networks in place.

    The sums and norms before it do not need their output in the backward pass.
    """
    return F.leaky_relu(features, NEGATIVE_SLOPE, inplace=True)
