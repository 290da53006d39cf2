"""Configuration of one run, from raw scans to the report."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import torch
from pydantic import Field, ModelWrapValidatorHandler, PrivateAttr, model_validator
from torch import nn

from uumamba.config.augmentation import build_augment
from uumamba.config.automatic import (
    SPACING,
    derive,
    fill_spacing,
    fill_stand_ins,
    find_automatic,
    find_median,
    put_values,
)
from uumamba.config.base import Config
from uumamba.config.bind import Part, PartOf, read_part
from uumamba.config.data import DatasetConfig, PreprocessConfig
from uumamba.config.domain_generalization import build_penalty
from uumamba.config.federated import check_federated
from uumamba.config.learning_rate import build_schedule, check_minutes
from uumamba.config.net import build_network, check_prediction, find_dimensions, find_divisor, reads_values
from uumamba.config.objectives import build_objective
from uumamba.config.optim import build_ascent, build_optimizer, find_member, needs_logits
from uumamba.config.quantization import attach_gaqat, calibrate_on_noise, check_ranks, check_run, check_takes_effect
from uumamba.config.track import Tracker
from uumamba.config.training import InferenceConfig, TrainingConfig
from uumamba.data.recipe import PreprocessRecipe
from uumamba.nets.stages import check_divisible
from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.memory_shortage import summarize_error
from uumamba.runtime.options import NonNegativeInt
from uumamba.runtime.seeds import generator_for

if TYPE_CHECKING:
    from uumamba.data.geometry import Geometry  # loads nibabel, which takes a tenth of a second
    from uumamba.domain_generalization import UDIM

Built = TypeVar("Built")


class RunConfig(Config):
    """Every option that changes a run's result.

    The configuration is stored in the run's folder and in each checkpoint.

    Args:
        name: name of the configuration, for people and trackers.
        seed: seed of every random draw.
        dataset: the data set and its split.
        preprocess: resampling and normalisation.
        net: the network.
        loss: the loss of one output; outputs of deep supervision are weighted.
        quantization: training with rounded weights and activations; null for none.
        objective: how batches become a scalar.
        optim: the optimizer around its base.
        domain_generalization: penalty at the original weights; null for none.
        federated: training by sites that exchange weights; null for all cases in one place.
        schedule: learning rate of each step.
        training: length, patches and precision.
        augment: random transforms of patches.
        inference: prediction of whole scans.
        track: trackers in addition to the run's own files.
    """

    name: str
    seed: NonNegativeInt = 0
    dataset: DatasetConfig
    preprocess: PreprocessConfig
    net: Annotated[Part, PartOf("net")]
    loss: Annotated[Part, PartOf("loss")]
    quantization: Annotated[Part, PartOf("quantization")] | None = None
    objective: Annotated[Part, PartOf("objective")] = Field(
        default_factory=partial(read_part, "objective", {"name": "supervised"})
    )
    optim: Annotated[Part, PartOf("optim")]
    domain_generalization: Annotated[Part, PartOf("domain_generalization")] | None = None
    federated: Annotated[Part, PartOf("federated")] | None = None
    schedule: Annotated[Part, PartOf("schedule")] = Field(default_factory=partial(read_part, "schedule", {}))
    training: TrainingConfig
    augment: Annotated[Part, PartOf("augment")] = Field(default_factory=partial(read_part, "augment", {}))
    inference: InferenceConfig = InferenceConfig()
    # Trackers do not change the result: they are not stored, and a resumed run may choose others.
    track: tuple[Tracker, ...] = Field((), exclude=True)

    _automatic: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _fill_stand_ins(cls, stored: Any, read: ModelWrapValidatorHandler["RunConfig"]) -> "RunConfig":
        automatic = find_automatic(stored) if isinstance(stored, Mapping) else {}
        made = read(fill_stand_ins(stored) if automatic else stored)
        if automatic:
            made._automatic = automatic
        return made

    @property
    def automatic(self) -> tuple[str, ...]:
        """Keys that say ``auto``; their values are stand-ins until :meth:`resolve`."""
        return tuple(self._automatic)

    def resolve(
        self, geometries: Iterable["Geometry"], *, spacing_mm: Sequence[float | None] | None = None
    ) -> tuple["RunConfig", dict[str, Any]]:
        """Derive the values of the keys that say ``auto``.

        Args:
            geometries: those of the training cases, prepared or of their headers; read only if a key says ``auto``.
            spacing_mm: spacing of prepared cases; None takes the median of the geometries.

        Returns:
            The configuration without ``auto``, and the derived values by key.

        Raises:
            UsageError: there is no geometry, or the images are too small for the network.
        """
        cases = list(geometries) if self.automatic else []
        if not self.automatic:
            return self, {}
        require(cases, self.automatic[0], got="auto without a readable case", expected="at least one case to measure")
        found: dict[str, Any] = {}
        if SPACING in self.automatic:
            rounded = [float(f"{mm:.3g}") for mm in find_median(case.oriented_spacing_mm for case in cases)]
            found[SPACING] = fill_spacing(self._automatic[SPACING], rounded) if spacing_mm is None else [*spacing_mm]
        wanted = found.get(SPACING, self.preprocess.spacing_mm)
        prepared = [case.with_crop((case.crop_start, case.crop_stop), target_spacing_mm=wanted) for case in cases]
        axes = len(self.training.patch_size)
        found |= derive(
            self.as_json(),
            self.automatic,
            spacing_mm=find_median(case.prepared_spacing_mm for case in prepared),
            shape=[round(size) for size in find_median(case.prepared_shape for case in prepared)],
            divisor=find_divisor(self.net, axes=axes),
        )
        return RunConfig.model_validate(put_values(self.as_json() | {"track": self.track}, found)), found

    @model_validator(mode="after")
    def _check_dimensions(self) -> "RunConfig":
        patch_size, mirror_axes = self.training.patch_size, self.augment.mirror_axes
        dimensions = find_dimensions(self.net) or len(patch_size)
        divisor = _build_in("net", find_divisor, self.net, axes=dimensions)
        require(
            len(patch_size) == dimensions,
            "training.patch_size",
            got=patch_size,
            expected=f"{dimensions} numbers, as in net.spatial_dims",
        )
        require(
            all(axis < dimensions for axis in mirror_axes),
            "augment.mirror_axes",
            got=mirror_axes,
            expected=f"axes below net.spatial_dims, {dimensions}",
        )
        check_divisible(patch_size, divisor, name="training.patch_size")
        require(
            dimensions == 2 or not self.training.neighbour_slices,
            "training.neighbour_slices",
            got=self.training.neighbour_slices,
            expected="0 with a 3-D network",
        )
        return self

    def count_inputs(self, channels: int = 1) -> int:
        """Count the network's input channels, with neighbouring slices."""
        return channels * (1 + 2 * self.training.neighbour_slices)

    def resolve_channels(self, channels: Sequence[str]) -> "RunConfig":
        """Replace values that say ``auto`` by those for a data set's channels."""
        return self.model_copy(update={"preprocess": self.preprocess.resolve(channels)})

    def build_recipe(self, channels: Sequence[str]) -> PreprocessRecipe:
        """Build the recipe for a data set's channels.

        It lacks the statistics that ``uumamba prepare`` computes.

        Raises:
            UsageError: the configuration lists another number of channels.
        """
        return _build_in("preprocess", self.preprocess.build, channels)

    def build_net(self, *, classes: int, channels: int = 1, patch_size: tuple[int, ...] | None = None) -> nn.Module:
        """Build the network, with new weights.

        Args:
            classes: number of classes with the background.
            channels: number of channels of an image.
            patch_size: size of the input; None is that of training.
        """
        size = patch_size or self.training.patch_size
        return build_network(self.net, in_channels=self.count_inputs(channels), out_channels=classes, patch_size=size)

    @model_validator(mode="after")
    def _check_parts(self) -> "RunConfig":
        _build_in("schedule", check_minutes, self.schedule)
        require(
            self.optim.ascent is None or find_member(self.optim).accepts_ascent,
            "optim.ascent",
            got=self.optim.ascent and self.optim.ascent.name,
            expected=f"none with {self.optim.name}",
            fix="leave ascent out, or take an optimizer such as SAM or ASAM",
        )
        if self.federated is not None:
            check_federated(
                self.federated,
                training=self.training,
                schedule=self.schedule,
                parts={"quantization": self.quantization, "domain_generalization": self.domain_generalization},
                objective=self.objective.name,
            )
        if self.quantization is not None:
            check_run(
                self.quantization,
                optim=self.optim,
                objective=self.objective.name,
                batches_per_epoch=self.training.batches_per_epoch,
            )
        return self

    def check(self, *, ranks: int = 1) -> None:
        """Build every part once, to find wrong values before scans are prepared.

        Networks are built on the meta device, without memory for weights, unless their constructors read values. There
        the network predicts one patch.

        Args:
            ranks: number of processes that train together.

        Raises:
            UsageError: a constructor rejects a value; the key names the part. Or the network cannot predict a patch or
                has no head that the domain-generalization method can train, or ranks would freeze different scales.
        """
        patch_size = self.training.patch_size
        if self.quantization is not None:
            check_ranks(self.quantization, self.optim, ranks)
        _build_in("preprocess", self.preprocess.build)
        _build_in("augment", build_augment, self.augment, patch_size=patch_size)
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            with torch.device("cpu" if reads_values(self.net) else "meta"):
                net = _build_in("net", self.build_net, classes=2).to("meta")
            image = torch.empty(1, self.count_inputs(), *patch_size)
            _build_in("net", check_prediction, net, image, classes=2)
            if self.quantization is not None:
                _build_in("quantization", self.quantization.bind(), net)
            loss = _build_in("loss", self.loss.bind())
        with torch.random.fork_rng(devices=[]):
            _build_in("objective", build_objective, self.objective, loss, net, outputs=needs_logits(self.optim))
        optimizer = _build_in("optim", build_optimizer, self.optim, net, loss)
        _build_in("optim", build_ascent, self.optim)
        if self.quantization is not None:
            _build_in("quantization", attach_gaqat, self.quantization, optimizer, net)
        _build_in("domain_generalization", self.build_method, net, loss)
        steps = {"epochs": self.training.epochs, "batches_per_epoch": self.training.batches_per_epoch}
        _build_in("schedule", build_schedule, self.schedule, optimizer, **steps)
        if self.domain_generalization is not None:
            self._check_head(loss)

    def _check_head(self, loss: nn.Module) -> None:
        """Raise if the method finds no head in a small network."""
        patch_size = self.training.patch_size
        divisor = find_divisor(self.net, axes=len(patch_size))
        two_steps = tuple(min(size, 2 * step) for size, step in zip(patch_size, divisor, strict=True))
        small = patch_size if max(divisor) == 1 else two_steps  # a network that declares no divisor
        noise = torch.randn(
            1,
            self.count_inputs(),
            *small,
            generator=generator_for("noise to look for the head with"),
        )
        with torch.random.fork_rng(devices=[]):
            net = self.build_net(classes=2, patch_size=small).train()
            if self.quantization is not None:
                calibrate_on_noise(self.quantization, net, noise)
            method = cast("UDIM", self.build_method(net, loss))
            try:
                method.check(noise)
            except UsageError as error:
                expected = f"a network for {type(method).__name__} ({str(error).removesuffix('.')})"
                raise UsageError("net.name", got=self.net.name, expected=expected) from error

    def check_takes_effect(self) -> None:
        """Raise if quantization or scale freezing would start after the last step.

        The check is for new runs only: a stored run of this kind can be resumed and predicts.

        Raises:
            UsageError: ``start_step`` or ``gaqat.every`` exceeds the number of steps; of a budget, the largest number.
        """
        if self.quantization is not None:
            steps = self.training.epochs * self.training.batches_per_epoch
            _build_in("quantization", check_takes_effect, self.quantization, steps)

    def build_method(
        self, net: nn.Module, loss: nn.Module, *, rank: int = 0, ignore_label: int | None = None
    ) -> "UDIM | None":
        """Build the run's domain-generalization method for this rank; None without a method."""
        if self.domain_generalization is None:
            return None
        return build_penalty(
            self.domain_generalization,
            net,
            loss,
            optim=self.optim,
            schedule=self.schedule,
            training=self.training,
            seed=self.seed,
            rank=rank,
            ignore_label=ignore_label,
        )

    def as_json(self) -> dict[str, Any]:
        """Dump the resolved configuration as JSON values."""
        stored: dict[str, Any] = self.model_dump(mode="json")
        return stored


def _build_in(section: str, make: Callable[..., Built], *args: Any, **options: Any) -> Built:
    """Prefix the key of a function's error with a section.

    Other errors, such as those of torch and MONAI, get the section as key.
    """
    try:
        return make(*args, **options)
    except UsageError as error:
        raise error.within(section) from None
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        got = summarize_error(error).rstrip(".")
        raise UsageError(section, got=got, expected="values for its constructor") from error
