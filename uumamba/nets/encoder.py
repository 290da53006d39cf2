"""Encoder of the U-Nets: residual stages of decreasing resolution."""

from collections.abc import Callable, Mapping
from itertools import pairwise

from torch import Tensor, nn

from uumamba.nets.blocks import residual_stage
from uumamba.nets.stages import Topology


class ResidualEncoder(nn.Module):
    """Stem at full resolution, then one residual stage per resolution.

    A token mixer may follow each stage.

    Args:
        topology: widths, strides, kernels and block counts.
        in_channels: channels of the image.
        mamba_layers: token mixers by stage; the output of a mixer is the skip and the input of the next stage.
        make_stem: builds the stem, as ``residual_stage`` builds a stage.
        make_stage: builds the other stages.
    """

    def __init__(
        self,
        topology: Topology,
        in_channels: int,
        mamba_layers: Mapping[int, nn.Module] | None = None,
        *,
        make_stem: Callable[..., nn.Sequential] = residual_stage,
        make_stage: Callable[..., nn.Sequential] = residual_stage,
    ) -> None:
        super().__init__()
        dims, features, kernels = topology.spatial_dims, topology.features, topology.kernel_sizes
        self.stem = nn.Sequential()
        if topology.stem_blocks:
            self.stem = make_stem(dims, in_channels, features[0], kernels[0], blocks=topology.stem_blocks)
        widths = pairwise((features[0] if topology.stem_blocks else in_channels, *features))
        self.stages = nn.ModuleList(
            make_stage(dims, *width, kernel, blocks=blocks, stride=stride)
            for width, kernel, blocks, stride in zip(
                widths, kernels, topology.encoder_blocks, topology.strides, strict=True
            )
        )
        self.mamba_layers = nn.ModuleDict({str(stage): layer for stage, layer in (mamba_layers or {}).items()})

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the features of every stage, full resolution first."""
        features, outputs = self.stem(image), []
        for stage, blocks in enumerate(self.stages):
            features = blocks(features)
            if str(stage) in self.mamba_layers:
                features = self.mamba_layers[str(stage)](features)
            outputs.append(features)
        return outputs
