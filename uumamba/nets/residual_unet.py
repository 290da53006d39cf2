"""U-Net composed of encoder, optional bottleneck mixer and decoder."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from uumamba.nets.blocks import init_he
from uumamba.nets.stages import Stages, Topology
from uumamba.runtime.errors import require
from uumamba.runtime.shown_signature import spell_out


class ResidualUNet(nn.Module):
    """Base class of all U-Nets here, composed of given parts.

    Args:
        topology: widths, strides and blocks of the stages.
        encoder: image to the features of every stage, full resolution first.
        mamba_layer: token mixer of the deepest features, or None.
        decoder: features to logits, or in training mode to a list, finest first.
        fixed_patch: the only patch size that fits the weights; None if any size fits.
        init: initialisation, applied to every module of the complete network.
    """

    keyword_source: ClassVar[Callable[..., Any]] = Topology.build
    """Function that declares the options of ``**stages``."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            spell_out(cls, cls.keyword_source)

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
        self.spatial_dims = topology.spatial_dims
        self.fixed_patch = None if fixed_patch is None else tuple(fixed_patch)
        self.encoder = encoder
        self.mamba_layer = mamba_layer
        self.decoder = decoder
        self.apply(init)

    @staticmethod
    def find_divisor(options: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the divisor of the patch size, from a network's options."""
        stages = {key: options[key] for key in (*Stages.__required_keys__, *Stages.__optional_keys__)}
        return Topology.build(options["spatial_dims"], **stages).required_divisor

    @property
    def required_divisor(self) -> tuple[int, ...]:
        """Divisor of the patch size on each axis."""
        return self.topology.required_divisor

    @property
    def minimum_patch(self) -> tuple[int, ...]:
        """Fixed patch, else the smallest with two bottleneck voxels."""
        return self.fixed_patch or self.topology.minimum_patch

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Return logits ``(batch, out_channels, *spatial)``, or a list, finest first.

        Raises:
            UsageError: the strides do not divide the spatial size, or it differs from ``fixed_patch``.
        """
        size = tuple(image.shape[2:])
        self.topology.check_patch(size)
        require(
            self.fixed_patch is None or size == self.fixed_patch,
            "image",
            got=size,
            expected=f"{self.fixed_patch}, the patch size of the Mamba layers over channels",
            fix="use a sliding window with this patch size, or train a network for the other size",
        )
        skips = self.encoder(image)
        if self.mamba_layer is not None:
            skips[-1] = self.mamba_layer(skips[-1])
        return cast(Tensor | list[Tensor], self.decoder(skips))
