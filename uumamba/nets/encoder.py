"""The contracting half of the network."""

from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor, nn

from uumamba.nets.blocks import residual_stage
from uumamba.nets.topology import Topology


class ResidualEncoder(nn.Module):
    """A stem at full resolution, then one residual stage a resolution, each followed by its token mixer if it has one.

    Args:
        topology: widths, strides, kernels and block counts.
        in_channels: channels of the image.
        mamba_layers: token mixers by stage; what one gives is both the skip and the next stage's input.
    """

    def __init__(
        self, topology: Topology, in_channels: int, mamba_layers: Mapping[int, nn.Module] | None = None
    ) -> None:
        super().__init__()
        shape = topology
        dims, features, kernels = shape.spatial_dims, shape.features, shape.kernel_sizes
        self.stem = nn.Sequential()
        if shape.stem_blocks:
            self.stem = residual_stage(dims, in_channels, features[0], kernels[0], blocks=shape.stem_blocks)
        widths = (features[0] if shape.stem_blocks else in_channels, *features)
        self.stages = nn.ModuleList(
            residual_stage(dims, *width, kernel, blocks=blocks, stride=stride)
            for width, kernel, blocks, stride in zip(
                pairwise(widths), kernels, shape.encoder_blocks, shape.strides, strict=True
            )
        )
        self.mamba_layers = nn.ModuleDict({str(stage): layer for stage, layer in (mamba_layers or {}).items()})

    def forward(self, image: Tensor) -> list[Tensor]:
        """The features of every stage, full resolution first."""
        features, outputs = self.stem(image), []
        for stage, blocks in enumerate(self.stages):
            features = blocks(features)
            if str(stage) in self.mamba_layers:
                features = self.mamba_layers[str(stage)](features)
            outputs.append(features)
        return outputs
