"""Networks of UU-Mamba's weights: U-Mamba's layout before March 2024."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Unpack

from torch import Tensor, nn

from uumamba.nets.blocks import NEGATIVE_SLOPE, ConvNorm, init_he, leaky_relu
from uumamba.nets.decoder import ResidualDecoder
from uumamba.nets.encoder import ResidualEncoder
from uumamba.nets.mamba import MambaLayer
from uumamba.nets.residual_unet import ResidualUNet
from uumamba.nets.stages import LegacyStages, Topology


class LegacyUMambaEnc(ResidualUNet):
    """Residual U-Net with Mamba at every encoder stage, legacy layout.

    Differences from ``UMambaEnc``: the stem is one convolution; the skip of a strided residual block is a pooling; the
    decoder has transposed convolutions; all stages have equally many blocks; tokens are always voxels, so the strides
    only have to divide the image size. Parameters have the names and shapes of the released network, without its
    duplicates. The second norm of every block has the initial weight 0, so each block is its skip at first.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: number of classes, including the background.
        deep_supervision: in training mode, return the logits of every decoder stage, finest first.
        **stages: ``features`` and ``strides`` of the stages, and optionally ``kernel_sizes``, ``encoder_blocks`` and
            ``decoder_blocks``, as explained at ``LegacyStages``.

    Raises:
        UsageError: the arguments of the stages do not fit each other.

    Example:
        >>> import torch
        >>> net = LegacyUMambaEnc(2, 1, 4, features=(8, 16), strides=(1, 2)).eval()
        >>> net(torch.zeros(1, 1, 8, 12)).shape
        torch.Size([1, 4, 8, 12])

    References:
        Tsai et al., *UU-Mamba*, 2024, arXiv:2405.17496; Ma, Li & Wang, *U-Mamba*, 2024, arXiv:2401.04722.
        Differs from the released code: bfloat16 input of a Mamba layer is also cast, and a bottleneck of one voxel is
        allowed.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        deep_supervision: bool = True,
        **stages: Unpack[LegacyStages],
    ) -> None:
        topology = _build_topology(spatial_dims, **stages)
        encoder = _make_encoder(topology, in_channels)
        for stage, width in enumerate(topology.features):  # after the stages, as the order of random draws requires
            encoder.mamba_layers[str(stage)] = MambaLayer(width)
        super().__init__(
            topology,
            encoder=encoder,
            decoder=_make_decoder(topology, out_channels, deep_supervision=deep_supervision),
            init=_init_as_released,
        )


class LegacyUMambaBot(ResidualUNet):
    """Residual U-Net with Mamba at the bottleneck, legacy layout.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: number of classes, including the background.
        deep_supervision: in training mode, return the logits of every decoder stage, finest first.
        **stages: see ``LegacyStages``.

    Example:
        >>> import torch
        >>> net = LegacyUMambaBot(2, 1, 4, features=(8, 16), strides=(1, 2)).eval()
        >>> net(torch.zeros(1, 1, 8, 12)).shape
        torch.Size([1, 4, 8, 12])

    References:
        Ma, Li & Wang, *U-Mamba*, 2024, arXiv:2401.04722.
        Differs from the released code: its ``ln`` and ``mamba`` are named ``mamba_layer.norm`` and
        ``mamba_layer.mamba``, as in ``UMambaBot``; under autocast the layer computes in full precision.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        deep_supervision: bool = True,
        **stages: Unpack[LegacyStages],
    ) -> None:
        topology = _build_topology(spatial_dims, **stages)
        super().__init__(
            topology,
            encoder=_make_encoder(topology, in_channels),
            mamba_layer=MambaLayer(topology.features[-1]),
            decoder=_make_decoder(topology, out_channels, deep_supervision=deep_supervision),
            init=_init_as_released,
        )


class _LegacyBlock(nn.Module):
    """Residual block with pooling and projection in its skip.

    A strided block pools; a block that changes the width projects.
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
        self.conv1 = ConvNorm(spatial_dims, in_channels, out_channels, kernel_size, stride)
        self.conv2 = ConvNorm(spatial_dims, out_channels, out_channels, kernel_size)
        self.skip = nn.Sequential()
        if any(step > 1 for step in stride):
            pool: Callable[..., nn.Module] = nn.AvgPool2d if spatial_dims == 2 else nn.AvgPool3d
            self.skip.append(pool(tuple(stride)))
        if in_channels != out_channels:
            self.skip.append(ConvNorm(spatial_dims, in_channels, out_channels, (1,) * spatial_dims, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        """``(batch, in_channels, *spatial)`` to ``(batch, out_channels, *spatial / stride)``."""
        return leaky_relu(self.conv2(leaky_relu(self.conv1(features))) + self.skip(features))


def _build_topology(spatial_dims: int, **stages: Unpack[LegacyStages]) -> Topology:
    count = len(stages["features"])
    if stages.get("encoder_blocks") is None:
        stages["encoder_blocks"] = (2,) * count
    if stages.get("decoder_blocks") is None:
        stages["decoder_blocks"] = (2,) * (count - 1)
    return Topology.build(spatial_dims, **stages, stem_blocks=1, full_resolution_skip=True)


def _make_stem(
    spatial_dims: int, in_channels: int, out_channels: int, kernel_size: Sequence[int], *, blocks: int
) -> nn.Sequential:
    """Return a convolution with norm and activation; ``blocks`` is always 1."""
    convs = nn.Sequential(ConvNorm(spatial_dims, in_channels, out_channels, kernel_size))
    return nn.Sequential(OrderedDict(convs=convs, activation=nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)))


def _make_stage(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: Sequence[int],
    *,
    blocks: int,
    stride: Sequence[int] = (),
) -> nn.Sequential:
    first = _LegacyBlock(spatial_dims, in_channels, out_channels, kernel_size, stride)
    rest = (_LegacyBlock(spatial_dims, out_channels, out_channels, kernel_size) for _ in range(blocks - 1))
    return nn.Sequential(OrderedDict(blocks=nn.Sequential(first, *rest)))


def _make_upsample(spatial_dims: int, in_channels: int, out_channels: int, stride: tuple[int, ...]) -> nn.Module:
    kind: Callable[..., nn.Module] = nn.ConvTranspose2d if spatial_dims == 2 else nn.ConvTranspose3d
    return kind(in_channels, out_channels, stride, stride)


_make_encoder = partial(ResidualEncoder, make_stem=_make_stem, make_stage=_make_stage)
_make_decoder = partial(
    ResidualDecoder, make_upsample=_make_upsample, upsample_name="transpconvs", make_stage=_make_stage
)


def _init_as_released(module: nn.Module) -> None:
    init_he(module)
    if isinstance(module, _LegacyBlock):
        nn.init.zeros_(module.conv2.get_parameter("norm.weight"))
