"""Networks by name: U-Mamba, a control without Mamba, and MONAI's baselines."""

from collections.abc import Sequence
from math import lcm, prod
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import nn

from uumamba import nets
from uumamba.config.base import Config
from uumamba.nets.residual_unet import ResidualUNet
from uumamba.runtime.errors import require


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
            expected=f"{len(self.features)} stages, as in features, of {self.spatial_dims} numbers each, first all 1",
        )
        return self

    def divisor(self) -> tuple[int, ...]:
        """Return the divisor of the patch size along each axis."""
        return _product(self.strides)

    def build(self, *, in_channels: int, out_channels: int, patch_size: Sequence[int]) -> ResidualUNet:
        arguments: dict[str, Any] = self.model_dump(exclude={"name"}, exclude_none=True)
        arguments |= {"in_channels": in_channels, "out_channels": out_channels}
        if self.name == "UMambaEnc":
            arguments["patch_size"] = tuple(patch_size)
        net: ResidualUNet = getattr(nets, self.name)(**arguments)
        return net


class CoarseToFineConfig(Config):
    """Cascade of a coarse and a fine network.

    The coarse network sees the image downsampled by ``factor`` and feeds its prediction to the fine network.
    """

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
            expected="one number per axis, with the same spatial_dims of coarse and fine",
        )
        return self

    @property
    def spatial_dims(self) -> int:
        return self.fine.spatial_dims

    def divisor(self) -> tuple[int, ...]:
        """Return the least common multiple of both networks' divisors per axis."""
        pairs = zip(self.factor, self.coarse.divisor(), self.fine.divisor(), strict=True)
        return tuple(lcm(step * coarse, fine) for step, coarse, fine in pairs)

    def build(self, *, in_channels: int, out_channels: int, patch_size: Sequence[int]) -> nn.Module:
        small = [size // step for size, step in zip(patch_size, self.factor, strict=True)]
        coarse = self.coarse.build(in_channels=in_channels, out_channels=out_channels, patch_size=small)
        fine = self.fine.build(in_channels=in_channels + out_channels, out_channels=out_channels, patch_size=patch_size)
        return nets.CoarseToFine(coarse, fine, factor=self.factor)


class MonaiNetConfig(Config):
    """Network of MONAI; the fields are its arguments."""

    name: str
    spatial_dims: Literal[2, 3]

    def build(self, *, in_channels: int, out_channels: int, patch_size: Sequence[int]) -> nn.Module:
        from monai.networks import nets as monai_nets

        net: nn.Module = getattr(monai_nets, self.name)(
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
            require(len(value) == stages, key, got=value, expected=f"{stages} stages, as in features")
        return self

    def divisor(self) -> tuple[int, ...]:
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
        return (16,) * self.spatial_dims  # edge of a token

    def _arguments(self, patch_size: tuple[int, ...]) -> dict[str, Any]:
        return super()._arguments(patch_size) | {"img_size": patch_size}


class SwinUNETRConfig(MonaiNetConfig):
    """MONAI's SwinUNETR."""

    name: Literal["SwinUNETR"]
    feature_size: PositiveInt = 24
    use_v2: bool = False

    def divisor(self) -> tuple[int, ...]:
        return (32,) * self.spatial_dims


NetConfig = Annotated[
    ResidualUNetConfig | CoarseToFineConfig | SegResNetConfig | DynUNetConfig | UNETRConfig | SwinUNETRConfig,
    Field(discriminator="name"),
]


def _product(strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(prod(axis) for axis in zip(*strides, strict=True))
