"""Length, feeding, precision and schedule of a training run, and how its networks predict."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from uumamba.config.base import Config
from uumamba.runtime.errors import UsageError

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from uumamba.data.sampling import Sampling
    from uumamba.training.budget import Budget

Precision = Literal["auto", "float32", "bfloat16", "float16"]


class ScheduleConfig(Config):
    """Learning rate over the optimizer's steps, or over the minutes of a ``budget``, after which training ends."""

    name: Literal["poly", "cosine", "constant", "budget"] = "poly"
    power: PositiveFloat = 0.9
    warmup_epochs: NonNegativeInt = 0
    minutes: PositiveFloat | None = None

    @model_validator(mode="after")
    def _minutes_are_the_budget(self) -> "ScheduleConfig":
        if (self.name == "budget") != (self.minutes is not None):
            raise ValueError("a budget needs minutes, and no other schedule has them; give {name: budget, minutes: 25}")
        return self

    def build_budget(self) -> "Budget | None":
        """The time that training may take; None where it may take any."""
        from uumamba.training.budget import Budget

        return None if self.minutes is None else Budget(self.minutes)

    def build(
        self, optimizer: "Optimizer", *, epochs: int, batches_per_epoch: int, budget: "Budget | None" = None
    ) -> "LRScheduler":
        """The learning rate over a training of at most that length; a budget's own clock decides how much is left."""
        from uumamba.training.schedule import make_schedule

        if self.warmup_epochs >= epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs} and training.epochs {epochs}, which leaves none after the "
                "warm-up; set schedule.warmup_epochs lower or train longer"
            )
        return make_schedule(
            optimizer,
            name=self.name,
            total_steps=epochs * batches_per_epoch,
            power=self.power,
            warmup_steps=self.warmup_epochs * batches_per_epoch,
            budget=budget or self.build_budget(),
        )


class SamplingConfig(Config):
    """Where patches are taken, under the names of :class:`uumamba.data.sampling.Sampling`; classes by name."""

    forced: Literal["share", "chance"] = "share"
    classes: Literal["of_case", "of_data_set"] = "of_case"
    class_weights: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    content_fraction: float = Field(0.0, ge=0.0, lt=1.0)

    def build(self, *, structures: Mapping[str, int]) -> "Sampling":
        """The sampling of a data set with these label values.

        Raises:
            UsageError: a weight is given to a structure that the data set lacks.
        """
        from uumamba.data.sampling import Sampling

        if unknown := self.class_weights.keys() - structures.keys():
            raise UsageError(
                f"training.sampling.class_weights names {', '.join(sorted(unknown))}, which the data set lacks; it has "
                f"{', '.join(structures)}."
            )
        return Sampling(
            forced=self.forced,
            classes=self.classes,
            class_weights={structures[name]: weight for name, weight in self.class_weights.items()},
            content_fraction=self.content_fraction,
        )


class UsefulConfig(Config):
    """USEFUL: a probe finds the cases that are learned slowly, and training from scratch shows them more often.

    The probe is the run itself, until its error on ``views`` fixed patches of every training case falls by less than
    ``slowing`` of its largest fall in an epoch, or for ``most_epochs``. Slow is the worse of two clusters, within each
    ``group_by`` where that is given. An ``index_file`` that an earlier run of the same cases kept takes the probe's
    place.
    """

    most_epochs: int = Field(10, ge=2)
    slowing: float = Field(0.1, gt=0.0, lt=1.0)
    factor: PositiveInt = 2
    group_by: Literal["phase", "domain", "group"] | None = None
    views: PositiveInt = 8
    index_file: str | None = None


class TrainingConfig(Config):
    """One fold's training."""

    epochs: PositiveInt
    batches_per_epoch: PositiveInt
    batch_size: PositiveInt
    patch_size: tuple[PositiveInt, ...] = Field(min_length=2, max_length=3)
    foreground_fraction: float = Field(0.33, ge=0.0, le=1.0)
    sampling: SamplingConfig = SamplingConfig()
    read_margin: float = Field(1.0, ge=1.0, le=2.0)
    precision: Precision = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    compile: bool = False
    ema_decay: float | None = Field(None, gt=0.0, lt=1.0)
    validate_every: PositiveInt = 10
    workers: NonNegativeInt = 0
    max_skipped_in_a_row: PositiveInt = 25
    samples_at_once: PositiveInt | None = None
    save_every_minutes: NonNegativeFloat | None = 10.0
    useful: UsefulConfig | None = None

    @model_validator(mode="after")
    def _slow_cases_can_be_found_and_shown(self) -> "TrainingConfig":
        if self.useful is None:
            return self
        if self.sampling.classes == "of_data_set":
            raise ValueError(
                "useful shows slow cases twice, but sampling.classes of_data_set draws a class and then one of the "
                "cases that hold it, each as often as another; set sampling.classes to of_case, or useful to null"
            )
        if self.useful.index_file is None and self.useful.most_epochs > self.epochs:
            raise ValueError(
                f"useful.most_epochs is {self.useful.most_epochs} and epochs {self.epochs}, and the probe is the run "
                "cut short; set useful.most_epochs to a tenth of epochs"
            )
        return self


class InferenceConfig(Config):
    """Sliding window and mirror averaging."""

    overlap: float = Field(0.5, ge=0.0, lt=1.0)
    mirror: bool = False
    windows_at_once: PositiveInt = 4
    precision: Precision = "auto"


def resolve_precision(precision: Precision, device: str) -> Literal["float32", "bfloat16", "float16"]:
    """``auto`` is bfloat16 where the device multiplies it natively, float32 elsewhere.

    On a CPU with AVX-512 bfloat16 a small 2-D U-Net's step took 0.44 of its float32 time (two cores, channels last).

    Example:
        >>> resolve_precision("float32", "cpu")
        'float32'
    """
    if precision != "auto":
        return precision
    import torch

    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    capable = torch.cpu.get_capabilities()
    return "bfloat16" if capable.get("avx512_bf16") or capable.get("amx_bf16") else "float32"


def resolve_channels_last(channels_last: bool | Literal["auto"], device: str) -> bool:
    """``auto`` is where it was measured to win, which so far is nowhere.

    On one core with AVX-512 a step of acdc_cpu's network took 1.9 times as long in bfloat16 and 1.4 times in float32.
    On CUDA torch's instance norm brings every map back to the usual order, so there it is left to who has measured it.

    Raises:
        UsageError: it is asked for on a CPU, where torch 2.13 writes past its memory in the backward pass of a strided
            1x1 convolution of 12 to 24 channels in this layout.

    Example:
        >>> resolve_channels_last("auto", "cpu"), resolve_channels_last(True, "cuda")
        (False, True)
    """
    if channels_last is True and device.startswith("cpu"):
        raise UsageError(
            "training.channels_last is slower on a CPU, and torch's backward pass can crash there; leave it at auto."
        )
    return channels_last is True
