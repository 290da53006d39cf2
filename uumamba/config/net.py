"""Networks by name: ours, the control without Mamba, and MONAI's as baselines."""

from collections.abc import Sequence
from math import lcm, prod
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import nn

from uumamba.config.base import Config
from uumamba.runtime.errors import require

if TYPE_CHECKING:
    from uumamba.nets.residual_unet import ResidualUNet


class ResidualUNetConfig(Config):
    """Arguments of ``UMambaBot``, ``UMambaEnc`` and ``ResEncUNet``."""

    name: Literal["UMambaBot", "UMambaEnc", "ResEncUNet"]
    spatial_dims: Literal[2, 3]
    features: tuple[PositiveInt, ...] = Field(min_length=2)
    strides: tuple[tuple[PositiveInt, ...], ...]
    kernel_sizes: tuple[tuple[PositiveInt, ...], ...] | PositiveInt = 3
    encoder_blocks: tuple[PositiveInt, ...] | None = None
    decoder_blocks: tuple[PositiveInt, ...] | None = None
    stem_blocks: NonNegativeInt | None = None
    full_resolution_skip: bool | None = None
    deep_supervision: bool = True

    @model_validator(mode="after")
    def _check_stages(self) -> "ResidualUNetConfig":
        fits = len(self.strides) == len(self.features) and all(len(each) == self.spatial_dims for each in self.strides)
        require(
            fits and set(self.strides[0]) == {1},
            "strides",
            got=self.strides,
            expected=f"{len(self.features)} stages, as features has, of {self.spatial_dims} numbers each, the first "
            "all ones",
        )
        return self

    def divisor(self) -> tuple[int, ...]:
        """Product of the strides along each axis, which must divide the patch."""
        return _product(self.strides)

    def build(self, *, in_channels: int, out_channels: int, patch_size: Sequence[int]) -> "ResidualUNet":
        """Build the network."""
        from uumamba import nets

        arguments: dict[str, Any] = self.model_dump(exclude={"name"}, exclude_none=True)
        arguments |= {"in_channels": in_channels, "out_channels": out_channels}
        if self.name == "UMambaEnc":
            arguments["patch_size"] = tuple(patch_size)
        net: ResidualUNet = getattr(nets, self.name)(**arguments)
        return net


class CoarseToFineConfig(Config):
    """Cascade: a coarse network on the downsampled image feeds its prediction to a fine one."""

    name: Literal["CoarseToFine"]
    coarse: ResidualUNetConfig
    fine: ResidualUNetConfig
    factor: tuple[PositiveInt, ...]

    @model_validator(mode="after")
    def _check_dimensions(self) -> "CoarseToFineConfig":
        require(
            self.coarse.spatial_dims == self.fine.spatial_dims == len(self.factor),
            "factor",
            got=self.factor,
            expected="as many numbers as the spatial_dims of both coarse and fine",
        )
        return self

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return self.fine.spatial_dims

    def divisor(self) -> tuple[int, ...]:
        """Smallest multiple of both networks' divisors along each axis."""
        pairs = zip(self.factor, self.coarse.divisor(), self.fine.divisor(), strict=True)
        return tuple(lcm(step * coarse, fine) for step, coarse, fine in pairs)

    def build(self, *, in_channels: int, out_channels: int, patch_size: Sequence[int]) -> nn.Module:
        """Build both networks, joined."""
        from uumamba.nets import CoarseToFine

        small = [size // step for size, step in zip(patch_size, self.factor, strict=True)]
        coarse = self.coarse.build(in_channels=in_channels, out_channels=out_channels, patch_size=small)
        fine = self.fine.build(in_channels=in_channels + out_channels, out_channels=out_channels, patch_size=patch_size)
        return CoarseToFine(coarse, fine, factor=self.factor)


class MonaiNetConfig(Config):
    """A network of MONAI; the fields are its arguments."""

    name: str
    spatial_dims: Literal[2, 3]

    def build(self, *, in_channels: int, out_channels: int, patch_size: Sequence[int]) -> nn.Module:
        """Build the network."""
        from monai.networks import nets

        net: nn.Module = getattr(nets, self.name)(
            in_channels=in_channels, out_channels=out_channels, **self._arguments(tuple(patch_size))
        )
        return net

    def _arguments(self, patch_size: tuple[int, ...]) -> dict[str, Any]:
        return self.model_dump(exclude={"name"})


class SegResNetConfig(MonaiNetConfig):
    """MONAI's SegResNet."""

    name: Literal["SegResNet"]
    init_filters: PositiveInt = 16
    blocks_down: tuple[PositiveInt, ...] = (1, 2, 2, 4)
    blocks_up: tuple[PositiveInt, ...] = (1, 1, 1)

    def divisor(self) -> tuple[int, ...]:
        """Downsampling along each axis, which must divide the patch."""
        return (2 ** (len(self.blocks_down) - 1),) * self.spatial_dims


class DynUNetConfig(MonaiNetConfig):
    """MONAI's DynUNet, its re-implementation of nnU-Net's plain network."""

    name: Literal["DynUNet"]
    features: tuple[PositiveInt, ...] = Field(min_length=3)
    strides: tuple[tuple[PositiveInt, ...], ...]
    kernel_sizes: tuple[tuple[PositiveInt, ...], ...]

    @model_validator(mode="after")
    def _check_stages(self) -> "DynUNetConfig":
        stages = len(self.features)
        for key in ("strides", "kernel_sizes"):
            value = getattr(self, key)
            require(len(value) == stages, key, got=value, expected=f"{stages} stages, as features has")
        return self

    def divisor(self) -> tuple[int, ...]:
        """Product of the strides along each axis, which must divide the patch."""
        return _product(self.strides)

    def _arguments(self, patch_size: tuple[int, ...]) -> dict[str, Any]:
        return {
            "spatial_dims": self.spatial_dims,
            "kernel_size": self.kernel_sizes,
            "strides": self.strides,
            "upsample_kernel_size": self.strides[1:],
            "filters": self.features,
        }


class UNETRConfig(MonaiNetConfig):
    """MONAI's UNETR; its position embedding fixes the patch size."""

    name: Literal["UNETR"]
    feature_size: PositiveInt = 16
    hidden_size: PositiveInt = 768
    mlp_dim: PositiveInt = 3072
    num_heads: PositiveInt = 12

    def divisor(self) -> tuple[int, ...]:
        """Edge of a token along each axis, which must divide the patch."""
        return (16,) * self.spatial_dims

    def _arguments(self, patch_size: tuple[int, ...]) -> dict[str, Any]:
        return super()._arguments(patch_size) | {"img_size": patch_size}


class SwinUNETRConfig(MonaiNetConfig):
    """MONAI's SwinUNETR."""

    name: Literal["SwinUNETR"]
    feature_size: PositiveInt = 24
    use_v2: bool = False

    def divisor(self) -> tuple[int, ...]:
        """Downsampling along each axis, which must divide the patch."""
        return (32,) * self.spatial_dims


NetConfig = Annotated[
    ResidualUNetConfig | CoarseToFineConfig | SegResNetConfig | DynUNetConfig | UNETRConfig | SwinUNETRConfig,
    Field(discriminator="name"),
]


def _product(strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(prod(axis) for axis in zip(*strides, strict=True))
