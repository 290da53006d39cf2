"""Domain-generalization methods by name, added to each training step."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import nn

from uumamba.config.base import Config
from uumamba.config.bind import Part
from uumamba.config.training import ScheduleConfig, TrainingConfig
from uumamba.runtime.errors import require
from uumamba.runtime.seeds import key_to_seed

if TYPE_CHECKING:
    from uumamba.domain_generalization import UDIM


class StylePerturbationConfig(Config):
    """Perturbation of an image's style: mean, contrast, gamma and bias field."""

    name: Literal["style"]
    radius: PositiveFloat = 0.5
    parts: tuple[Literal["mean", "std", "gamma", "bias_field"], ...] = ("mean", "std", "gamma", "bias_field")
    control_points: int = Field(4, ge=2)


class InputPerturbationConfig(Config):
    """Perturbation of every voxel of an image.

    Its size is either ``rms``, a root mean square per voxel, or ``radius``, a norm over the image.
    """

    name: Literal["input"]
    rms: PositiveFloat | None = None
    radius: PositiveFloat | None = None

    @model_validator(mode="after")
    def _check_size(self) -> "InputPerturbationConfig":
        require((self.rms is None) != (self.radius is None), "rms", got=self.rms, expected="either rms or radius")
        return self


PerturbationConfig = Annotated[StylePerturbationConfig | InputPerturbationConfig, Field(discriminator="name")]


class UDIMConfig(Config):
    """Unknown domain inconsistency minimisation; see :class:`uumamba.domain_generalization.UDIM`.

    ``rho`` null takes the optimizer's, or 0 for an optimizer without ``rho``. ``warmup_fraction`` is a share of the
    run's steps.
    """

    name: Literal["UDIM"]
    perturbation: PerturbationConfig
    lambda1: NonNegativeFloat = 1.0
    lambda2: NonNegativeFloat = 1.0
    rho: NonNegativeFloat | None = None
    warmup_fraction: float = Field(0.2, ge=0.0, lt=1.0)
    direction: Literal["ascent", "random"] = "ascent"
    second_order: Literal[True, False, "finite_difference"] = True
    voxels_a_class: PositiveInt = 512

    def build(
        self,
        net: nn.Module,
        loss: nn.Module,
        *,
        optim: Part,
        schedule: ScheduleConfig,
        training: TrainingConfig,
        seed: int,
        rank: int = 0,
    ) -> "UDIM":
        """Build the method for this network.

        Args:
            net: the trained network.
            loss: the run's loss, with its current learned weights.
            optim: optimizer with the default of ``rho``.
            schedule: its name; the number of steps of a ``budget`` is unknown.
            training: numbers of epochs and of batches per epoch, which give the length of the warm-up.
            seed: the run's seed.
            rank: rank of this process; ranks draw different directions.

        Raises:
            UsageError: the warm-up is a share of a budget, whose number of steps is unknown.
        """
        from uumamba.domain_generalization import UDIM, InputPerturbation, StylePerturbation

        make = {"style": StylePerturbation, "input": InputPerturbation}[self.perturbation.name]
        options = self.model_dump(exclude={"name", "perturbation", "rho", "warmup_fraction"})
        return UDIM(
            net,
            loss,
            make(**self.perturbation.model_dump(exclude={"name"})),
            rho=getattr(optim, "rho", 0.0) if self.rho is None else self.rho,
            warmup_steps=self._warmup_steps(schedule, training),
            seed=seed if rank == 0 else key_to_seed(seed, "rank", rank),
            **options,
        )

    def _warmup_steps(self, schedule: ScheduleConfig, training: TrainingConfig) -> int:
        require(
            not self.warmup_fraction or schedule.name != "budget",
            "warmup_fraction",
            got=self.warmup_fraction,
            expected="0 with schedule.name budget",
            fix="set domain_generalization.warmup_fraction to 0, or schedule.name to poly, cosine or constant",
        )
        return round(self.warmup_fraction * training.epochs * training.batches_per_epoch)
