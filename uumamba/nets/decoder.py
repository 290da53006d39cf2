"""The expanding half of the network, with a head for logits at each resolution."""

import torch
from torch import Tensor, nn

from uumamba.nets.blocks import Upsample, convolution, residual_stage
from uumamba.nets.topology import Topology


class ResidualDecoder(nn.Module):
    """Upsample, join the skip, refine: one stage a resolution, the deepest first.

    Args:
        topology: widths, strides, kernels and block counts.
        out_channels: classes.
        deep_supervision: make a head at every stage and, in training mode, return the logits of all of them; otherwise
            the full-resolution head is the only one.
    """

    def __init__(self, topology: Topology, out_channels: int, *, deep_supervision: bool) -> None:
        super().__init__()
        dims, features, strides = topology.spatial_dims, topology.features, topology.strides
        # Stage s of the decoder works at the resolution of encoder stage levels[s].
        levels = range(len(features) - 1)[::-1]
        self.joins_skip = tuple(level > 0 or topology.full_resolution_skip for level in levels)
        self.upsample_layers = nn.ModuleList(
            Upsample(dims, features[level + 1], features[level], strides[level + 1]) for level in levels
        )
        self.stages = nn.ModuleList(
            residual_stage(dims, (1 + joins) * features[level], features[level], topology.kernel_sizes[level], blocks=n)
            for level, joins, n in zip(levels, self.joins_skip, topology.decoder_blocks, strict=True)
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
        for stage, (upsample, refine) in enumerate(zip(self.upsample_layers, self.stages, strict=True)):
            features = upsample(features)
            if self.joins_skip[stage]:
                features = torch.cat((features, remaining[stage]), dim=1)
            features = refine(features)
            if every_head or stage == len(self.stages) - 1:
                logits.append(self.seg_layers[str(stage)](features))
        return logits[::-1] if every_head else logits[0]
