"""Decoder of the U-Nets, with a head for logits at each resolution."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from uumamba.nets.blocks import Upsample, convolution, residual_stage
from uumamba.nets.stages import Topology


class ResidualDecoder(nn.Module):
    """Decoder with upsampling, skip and residual stage at each resolution.

    Args:
        topology: widths, strides, kernels and block counts.
        out_channels: classes.
        deep_supervision: build a head at every stage; in training mode the logits of all heads are returned. Otherwise
            there is only the full-resolution head.
        make_upsample: builds an upsampling from dimensions, widths and stride.
        upsample_name: name of the upsamplings in the state dict.
        make_stage: builds a stage, as ``residual_stage`` does.
    """

    def __init__(
        self,
        topology: Topology,
        out_channels: int,
        *,
        deep_supervision: bool,
        make_upsample: Callable[..., nn.Module] = Upsample,
        upsample_name: str = "upsample_layers",
        make_stage: Callable[..., nn.Sequential] = residual_stage,
    ) -> None:
        super().__init__()
        dims, features, strides = topology.spatial_dims, topology.features, topology.strides
        # Decoder stage s has the resolution of encoder stage levels[s]; the deepest is first.
        levels = range(len(features) - 1)[::-1]
        self.joins_skip = tuple(level > 0 or topology.full_resolution_skip for level in levels)
        self.upsample_name = upsample_name
        upsample_layers = (make_upsample(dims, features[n + 1], features[n], strides[n + 1]) for n in levels)
        self.add_module(upsample_name, nn.ModuleList(upsample_layers))
        self.stages = nn.ModuleList(
            make_stage(dims, (1 + joins) * features[level], features[level], topology.kernel_sizes[level], blocks=n)
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
        """Return logits from the encoder's features.

        In training with deep supervision the result is a list, finest first.
        """
        features, *remaining = skips[::-1]
        every_head = self.training and self.deep_supervision
        logits = []
        for stage, (upsample, refine) in enumerate(zip(getattr(self, self.upsample_name), self.stages, strict=True)):
            features = upsample(features)
            if self.joins_skip[stage]:
                features = torch.cat((features, remaining[stage]), dim=1)
            features = refine(features)
            if every_head or stage == len(self.stages) - 1:
                logits.append(self.seg_layers[str(stage)](features))
        return logits[::-1] if every_head else logits[0]
