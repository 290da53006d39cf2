"""The network around the stages: encoder, optional mixer at the bottleneck, decoder."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from uumamba.nets.blocks import init_he
from uumamba.nets.topology import Topology


class ResidualUNet(nn.Module):
    """A U-Net of parts: what its networks put in is all that they vary.

    Args:
        topology: widths, strides and blocks of the stages.
        encoder: image to the features of every stage, full resolution first.
        mamba_layer: replaces the deepest features, where there is one.
        decoder: those features to logits, or in training mode to a list, finest first.
        fixed_patch: the one patch size that the weights allow; None where any will do.
        init: applied to every module once all of them are there.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        encoder: nn.Module,
        decoder: nn.Module,
        mamba_layer: nn.Module | None = None,
        fixed_patch: Sequence[int] | None = None,
        init: Callable[[nn.Module], None] = init_he,
    ) -> None:
        super().__init__()
        self.topology = topology
        self.fixed_patch = None if fixed_patch is None else tuple(fixed_patch)
        self.encoder = encoder
        self.mamba_layer = mamba_layer
        self.decoder = decoder
        self.apply(init)

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return self.topology.spatial_dims

    @property
    def required_divisor(self) -> tuple[int, ...]:
        """What the patch must be divisible by, an axis."""
        return self.topology.required_divisor

    @property
    def minimum_patch(self) -> tuple[int, ...]:
        """The smallest patch that leaves two bottleneck voxels; the only one, where the patch is baked in."""
        return self.fixed_patch or self.topology.minimum_patch

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """``(batch, in_channels, *spatial)`` to logits ``(batch, out_channels, *spatial)``, or a list, finest first.

        Raises:
            ValueError: when the strides do not divide the spatial size, or it is not the one that is baked in.
        """
        size = tuple(image.shape[2:])
        self.topology.check_patch(size)
        if self.fixed_patch not in (None, size):
            raise ValueError(
                f"this network's deep Mamba layers take channels as tokens, which bakes the patch size "
                f"{self.fixed_patch} into its weights; found {size}. Feed patches of that size (a sliding window "
                f"does), or build the network for the other size and train it"
            )
        skips = self.encoder(image)
        if self.mamba_layer is not None:
            skips[-1] = self.mamba_layer(skips[-1])
        logits: Tensor | list[Tensor] = self.decoder(skips)
        return logits
