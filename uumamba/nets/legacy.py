"""The networks that UU-Mamba's weights were trained with: U-Mamba as it was before March 2024."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Required, TypedDict, Unpack

import torch
from torch import Tensor, nn

from uumamba.nets.blocks import NEGATIVE_SLOPE, InstanceNorm, convolution, init_he, leaky_relu
from uumamba.nets.mamba import MambaLayer
from uumamba.nets.residual_unet import ResidualUNet
from uumamba.nets.topology import PerAxis, Topology


class LegacyStages(TypedDict, total=False):
    """What describes the stages of a legacy network; only ``features`` and ``strides`` are required.

    Attributes:
        features: width of each stage, full resolution first.
        strides: of each stage, one number or one an axis; 1 at the first.
        kernel_sizes: one number for all (3), or of each stage, one number or one an axis; odd.
        encoder_blocks: residual blocks of each stage; 2 when None.
        decoder_blocks: of each decoder stage, the deepest first; 2 when None.
    """

    features: Required[Sequence[int]]
    strides: Required[Sequence[PerAxis]]
    kernel_sizes: int | Sequence[PerAxis]
    encoder_blocks: Sequence[int] | None
    decoder_blocks: Sequence[int] | None


class LegacyUMambaEnc(ResidualUNet):
    """A residual U-Net with Mamba over the voxels of every encoder stage: the layout of UU-Mamba's own weights.

    Against ``UMambaEnc``: a stem of one convolution, residual blocks that pool their input where they shrink it,
    transposed convolutions on the way up, as many blocks deep down as above, and voxels as tokens everywhere, so any
    size that the strides divide will do. Parameters have the names and shapes of the released network, duplicates left
    out. The second norm of every block starts at weight 0, so that each block starts as its skip.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background among them.
        deep_supervision: in training mode return the logits of every decoder stage, finest first.
        **stages: ``features`` and ``strides`` of the stages, and optionally ``kernel_sizes``, ``encoder_blocks`` and
            ``decoder_blocks``, each explained at ``LegacyStages``.

    Raises:
        ValueError: when the stages do not agree with each other.

    Example:
        >>> import torch
        >>> net = LegacyUMambaEnc(2, 1, 4, features=(8, 16), strides=(1, 2)).eval()
        >>> net(torch.zeros(1, 1, 8, 12)).shape
        torch.Size([1, 4, 8, 12])

    References:
        Tsai et al., *UU-Mamba*, 2024, arXiv:2405.17496; Ma, Li & Wang, *U-Mamba*, 2024, arXiv:2401.04722.
        Differs from the released code: bfloat16 input of a Mamba layer is cast as float16 is, and a bottleneck of one
        voxel is accepted.
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
        topology = _topology(spatial_dims, **stages)
        super().__init__(
            topology,
            encoder=_Encoder(topology, in_channels, mixes=True),
            decoder=_Decoder(topology, out_channels, deep_supervision=deep_supervision),
            init=_init_as_released,
        )


class LegacyUMambaBot(ResidualUNet):
    """The older layout with one Mamba layer, on the bottleneck; arguments as for ``LegacyUMambaEnc``.

    Example:
        >>> import torch
        >>> net = LegacyUMambaBot(2, 1, 4, features=(8, 16), strides=(1, 2)).eval()
        >>> net(torch.zeros(1, 1, 8, 12)).shape
        torch.Size([1, 4, 8, 12])

    References:
        Ma, Li & Wang, *U-Mamba*, 2024, arXiv:2401.04722.
        Differs from the released code: what that calls ``ln`` and ``mamba`` is ``mamba_layer.norm`` and
        ``mamba_layer.mamba`` here, as in ``UMambaBot``; runs in full precision under autocast.
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
        topology = _topology(spatial_dims, **stages)
        super().__init__(
            topology,
            encoder=_Encoder(topology, in_channels, mixes=False),
            mamba_layer=MambaLayer(topology.features[-1]),
            decoder=_Decoder(topology, out_channels, deep_supervision=deep_supervision),
            init=_init_as_released,
        )


class _Encoder(nn.Module):
    """A stem of one convolution, then a stage a resolution, each followed by Mamba if ``mixes``."""

    def __init__(self, topology: Topology, in_channels: int, *, mixes: bool) -> None:
        super().__init__()
        shape = topology
        stem = _conv_norm(shape.spatial_dims, in_channels, shape.features[0], shape.kernel_sizes[0])
        self.stem = nn.Sequential(OrderedDict(convs=nn.Sequential(stem)))
        widths = pairwise((shape.features[0], *shape.features))
        self.stages = nn.ModuleList(
            _stage(shape.spatial_dims, *width, kernel, blocks, stride)
            for width, kernel, blocks, stride in zip(
                widths, shape.kernel_sizes, shape.encoder_blocks, shape.strides, strict=True
            )
        )
        self.mamba_layers = nn.ModuleList(MambaLayer(width) for width in shape.features) if mixes else None

    def forward(self, image: Tensor) -> list[Tensor]:
        """The features of every stage, full resolution first."""
        features, outputs = leaky_relu(self.stem(image)), []
        for stage, blocks in enumerate(self.stages):
            features = blocks(features)
            if self.mamba_layers is not None:
                features = self.mamba_layers[stage](features)
            outputs.append(features)
        return outputs


class _Decoder(nn.Module):
    """Upsample by a transposed convolution, join the skip, refine: one stage a resolution, the deepest first."""

    def __init__(self, topology: Topology, out_channels: int, *, deep_supervision: bool) -> None:
        super().__init__()
        dims, features, strides = topology.spatial_dims, topology.features, topology.strides
        upsample: Any = nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose3d
        levels = range(len(features) - 1)[::-1]  # decoder stage s works at the resolution of encoder stage levels[s]
        self.transpconvs = nn.ModuleList(
            upsample(features[level + 1], features[level], strides[level + 1], strides[level + 1]) for level in levels
        )
        self.stages = nn.ModuleList(
            _stage(dims, 2 * features[level], features[level], topology.kernel_sizes[level], blocks)
            for level, blocks in zip(levels, topology.decoder_blocks, strict=True)
        )
        self.deep_supervision = deep_supervision
        self.seg_layers = nn.ModuleDict(
            {
                str(stage): convolution(dims, features[level], out_channels, (1,) * dims)
                for stage, level in enumerate(levels)
                if deep_supervision or level == 0
            }
        )

    def forward(self, skips: list[Tensor]) -> Tensor | list[Tensor]:
        """Logits from the encoder's features: a list, finest first, in training mode under deep supervision."""
        features, *remaining = skips[::-1]
        every_head = self.training and self.deep_supervision
        logits = []
        for stage, (upsample, skip, refine) in enumerate(zip(self.transpconvs, remaining, self.stages, strict=True)):
            features = refine(torch.cat((upsample(features), skip), dim=1))
            if every_head or stage == len(self.stages) - 1:
                logits.append(self.seg_layers[str(stage)](features))
        return logits[::-1] if every_head else logits[0]


class _Block(nn.Module):
    """Two convolutions beside a skip that pools where they stride and projects where they change the width."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.conv1 = _conv_norm(spatial_dims, in_channels, out_channels, kernel_size, stride)
        self.conv2 = _conv_norm(spatial_dims, out_channels, out_channels, kernel_size)
        self.skip = nn.Sequential()
        if any(step > 1 for step in stride):
            pool: Any = nn.AvgPool2d if spatial_dims == 2 else nn.AvgPool3d
            self.skip.append(pool(tuple(stride)))
        if in_channels != out_channels:
            self.skip.append(_conv_norm(spatial_dims, in_channels, out_channels, (1,) * spatial_dims, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        """``(batch, in_channels, *spatial)`` to ``(batch, out_channels, *spatial / stride)``."""
        return leaky_relu(self.conv2(leaky_relu(self.conv1(features))) + self.skip(features))


def _topology(
    spatial_dims: int,
    *,
    features: Sequence[int],
    strides: Sequence[PerAxis],
    kernel_sizes: int | Sequence[PerAxis] = 3,
    encoder_blocks: Sequence[int] | None = None,
    decoder_blocks: Sequence[int] | None = None,
) -> Topology:
    return Topology.of(
        spatial_dims,
        features=features,
        strides=strides,
        kernel_sizes=kernel_sizes,
        encoder_blocks=(2,) * len(features) if encoder_blocks is None else encoder_blocks,
        decoder_blocks=(2,) * (len(features) - 1) if decoder_blocks is None else decoder_blocks,
        stem_blocks=1,
        full_resolution_skip=True,
    )


def _stage(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: Sequence[int],
    blocks: int,
    stride: Sequence[int] = (),
) -> nn.Sequential:
    first = _Block(spatial_dims, in_channels, out_channels, kernel_size, stride)
    rest = (_Block(spatial_dims, out_channels, out_channels, kernel_size) for _ in range(blocks - 1))
    return nn.Sequential(OrderedDict(blocks=nn.Sequential(first, *rest)))


def _conv_norm(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    *,
    bias: bool = True,
) -> nn.Sequential:
    conv = convolution(spatial_dims, in_channels, out_channels, kernel_size, stride)
    if not bias:
        conv.bias = None
    return nn.Sequential(OrderedDict(conv=conv, norm=InstanceNorm(out_channels)))


def _init_as_released(module: nn.Module) -> None:
    init_he(module)
    if isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, _Block):
        nn.init.zeros_(module.conv2.get_parameter("norm.weight"))
