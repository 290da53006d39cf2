"""What is added to each step so that a network holds on domains that it was not trained on, by name."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import nn

from uumamba.config.base import Config
from uumamba.config.optim import OptimConfig
from uumamba.config.training import ScheduleConfig, TrainingConfig
from uumamba.runtime.seeds import key_to_seed

if TYPE_CHECKING:
    from uumamba.domain_generalization import UDIM, InputPerturbation, StylePerturbation


class StylePerturbationConfig(Config):
    """How an image was taken changes: brightness, contrast, gamma, a smooth field; what is in it does not."""

    name: Literal["style"]
    radius: PositiveFloat = 0.5
    parts: tuple[Literal["mean", "std", "gamma", "bias_field"], ...] = ("mean", "std", "gamma", "bias_field")
    control_points: int = Field(4, ge=2)

    def build(self) -> "StylePerturbation":
        """The changes, with their length."""
        from uumamba.domain_generalization import StylePerturbation

        return StylePerturbation(**self.model_dump(exclude={"name"}))


class InputPerturbationConfig(Config):
    """Every voxel changes by itself: ``rms`` in the root mean square, or all of an image by ``radius``."""

    name: Literal["input"]
    rms: PositiveFloat | None = None
    radius: PositiveFloat | None = None

    @model_validator(mode="after")
    def _has_one_size(self) -> "InputPerturbationConfig":
        if (self.rms is None) == (self.radius is None):
            raise ValueError(f"give either rms or radius, found rms {self.rms} and radius {self.radius}")
        return self

    def build(self) -> "InputPerturbation":
        """The changes, with their length."""
        from uumamba.domain_generalization import InputPerturbation

        return InputPerturbation(**self.model_dump(exclude={"name"}))


PerturbationConfig = Annotated[StylePerturbationConfig | InputPerturbationConfig, Field(discriminator="name")]


class UDIMConfig(Config):
    """Unknown domain inconsistency minimisation; see :class:`uumamba.domain_generalization.UDIM`.

    ``rho`` null is the optimizer's own, and 0 where it has none. ``warmup_fraction`` is of all steps of the run.
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
        optim: OptimConfig,
        schedule: ScheduleConfig,
        training: TrainingConfig,
        seed: int,
        rank: int = 0,
    ) -> "UDIM":
        """What the trainer adds to each step of this network.

        Args:
            net: the network that is trained.
            loss: the run's own, whose learned weights count as they stand.
            optim: has the rho that is the default.
            schedule: and ``training`` say how many steps a run has.
            training: see ``schedule``.
            seed: the run's.
            rank: of this process, so that no two draw the same directions.

        Raises:
            ValueError: the warm-up is a share of a number that is not known.
        """
        from uumamba.domain_generalization import UDIM

        options = self.model_dump(exclude={"name", "perturbation", "rho", "warmup_fraction"})
        return UDIM(
            net,
            loss,
            self.perturbation.build(),
            rho=getattr(optim, "rho", 0.0) if self.rho is None else self.rho,
            warmup_steps=self._warmup_steps(schedule, training),
            seed=seed if rank == 0 else key_to_seed(seed, "rank", rank),
            **options,
        )

    def _warmup_steps(self, schedule: ScheduleConfig, training: TrainingConfig) -> int:
        if self.warmup_fraction and schedule.name == "budget":
            raise ValueError(
                f"warmup_fraction {self.warmup_fraction} is of all steps, and nobody knows how many fit into a budget "
                "of minutes; set domain_generalization.warmup_fraction to 0, or schedule.name to poly, cosine or "
                "constant, whose steps are counted"
            )
        return round(self.warmup_fraction * training.epochs * training.batches_per_epoch)


DomainGeneralizationConfig = UDIMConfig
