"""U-Mamba networks, and the same network without Mamba as control."""

from collections.abc import Sequence
from math import prod
from typing import Unpack

from uumamba.nets.decoder import ResidualDecoder
from uumamba.nets.encoder import ResidualEncoder
from uumamba.nets.mamba import MambaLayer
from uumamba.nets.residual_unet import ResidualUNet
from uumamba.nets.stages import Stages, Topology
from uumamba.runtime.options import SpatialDims, check_options


class ResEncUNet(ResidualUNet):
    """U-Mamba without Mamba, the control for experiments on Mamba.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: number of classes, including the background.
        deep_supervision: in training mode, return the logits of every decoder stage, finest first.
        **stages: see ``Stages``.

    Example:
        >>> import torch
        >>> net = ResEncUNet(2, 1, 4, features=(8, 16), strides=(1, 2)).eval()
        >>> net(torch.zeros(1, 1, 8, 8)).shape
        torch.Size([1, 4, 8, 8])

    References:
        Isensee et al., *nnU-Net Revisited*, 2024, arXiv:2404.09556 ("No-Mamba Base").
        Differs from the paper: none known.
    """

    @check_options
    def __init__(
        self,
        spatial_dims: SpatialDims,
        in_channels: int,
        out_channels: int,
        *,
        deep_supervision: bool = True,
        **stages: Unpack[Stages],
    ) -> None:
        topology = Topology.build(spatial_dims, **stages)
        super().__init__(
            topology,
            encoder=ResidualEncoder(topology, in_channels),
            decoder=ResidualDecoder(topology, out_channels, deep_supervision=deep_supervision),
        )


class UMambaBot(ResidualUNet):
    """Residual U-Net with a Mamba layer at the bottleneck.

    Parameters have the names and shapes of the released 2024-03 networks, without the duplicates in their checkpoints
    (``decoder.encoder.*``, ``*.all_modules.*``). The strides must divide the image size.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: number of classes, including the background.
        deep_supervision: in training mode, return the logits of every decoder stage, finest first.
        **stages: ``features`` and ``strides`` of the stages, and optionally ``kernel_sizes``, ``encoder_blocks``,
            ``decoder_blocks``, ``stem_blocks`` and ``full_resolution_skip``, as explained at ``Stages``.

    Raises:
        UsageError: the arguments of the stages do not fit each other.

    Example:
        >>> import torch
        >>> net = UMambaBot(2, 1, 4, features=(8, 16, 16), strides=(1, 2, 2))
        >>> [logits.shape[2:] for logits in net(torch.zeros(1, 1, 16, 8))]
        [torch.Size([16, 8]), torch.Size([8, 4])]
        >>> net.required_divisor, net.minimum_patch
        ((4, 4), (4, 8))

    References:
        Ma, Li & Wang, *U-Mamba*, 2024, arXiv:2401.04722.
        Differs from the paper: upsampling is nearest-neighbour and a 1x1 convolution, as in the released code since
        2024-03, and not a transposed convolution. Differs from the released code: the 1x1 convolution comes before
        the upsampling (same values, less work), and a bottleneck of one voxel is allowed.
    """

    @check_options
    def __init__(
        self,
        spatial_dims: SpatialDims,
        in_channels: int,
        out_channels: int,
        *,
        deep_supervision: bool = True,
        **stages: Unpack[Stages],
    ) -> None:
        topology = Topology.build(spatial_dims, **stages)
        super().__init__(
            topology,
            mamba_layer=MambaLayer(topology.features[-1]),
            encoder=ResidualEncoder(topology, in_channels),
            decoder=ResidualDecoder(topology, out_channels, deep_supervision=deep_supervision),
        )


class UMambaEnc(ResidualUNet):
    """Residual U-Net with Mamba in the encoder.

    Mamba follows every encoder stage in 3-D and every second one in 2-D. If a feature map has at most as many voxels as
    channels, its channels are the tokens. The weights of such a layer depend on the number of voxels, so the network
    only accepts ``patch_size``, and ``fixed_patch`` is set.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: number of classes, including the background.
        patch_size: spatial size of the images.
        deep_supervision: in training mode, return the logits of every decoder stage, finest first.
        **stages: see ``Stages``.

    Raises:
        UsageError: the arguments of the stages do not fit each other, or the strides do not divide the patch.

    Example:
        >>> import torch
        >>> net = UMambaEnc(2, 1, 4, features=(8, 16), strides=(1, 2), patch_size=(8, 8)).eval()
        >>> net(torch.zeros(1, 1, 8, 8)).shape, net.fixed_patch
        (torch.Size([1, 4, 8, 8]), (8, 8))

    References:
        Ma, Li & Wang, *U-Mamba*, 2024, arXiv:2401.04722.
        Differs from the paper and the released code: as for ``UMambaBot``.
    """

    @check_options
    def __init__(
        self,
        spatial_dims: SpatialDims,
        in_channels: int,
        out_channels: int,
        *,
        patch_size: Sequence[int],
        deep_supervision: bool = True,
        **stages: Unpack[Stages],
    ) -> None:
        topology = Topology.build(spatial_dims, **stages)
        topology.check_patch(patch_size, "patch_size")
        layers = _encoder_mamba_layers(topology, patch_size)
        super().__init__(
            topology,
            encoder=ResidualEncoder(topology, in_channels, layers),
            decoder=ResidualDecoder(topology, out_channels, deep_supervision=deep_supervision),
            fixed_patch=patch_size if any(layer.channel_tokens for layer in layers.values()) else None,
        )


def _encoder_mamba_layers(topology: Topology, patch_size: Sequence[int]) -> dict[int, MambaLayer]:
    stages = len(topology.features)
    layers = {}
    for stage, size in enumerate(topology.feature_map_sizes(patch_size)):
        # In 2-D counted from the bottleneck, so that the deepest stage always has a layer.
        if topology.spatial_dims == 3 or (stages - 1 - stage) % 2 == 0:
            voxels, channels = prod(size), topology.features[stage]
            layers[stage] = MambaLayer(min(voxels, channels), channel_tokens=voxels <= channels)
    return layers
