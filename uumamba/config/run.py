"""One run, from raw scans to a report, as data."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field, NonNegativeInt, model_validator
from torch import nn

from uumamba.config.augment import AugmentConfig
from uumamba.config.base import Config
from uumamba.config.data import DatasetConfig, PreprocessConfig
from uumamba.config.domain_generalization import DomainGeneralizationConfig
from uumamba.config.loss import LossConfig
from uumamba.config.net import NetConfig
from uumamba.config.objective import ObjectiveConfig, SupervisedConfig
from uumamba.config.optim import OptimConfig
from uumamba.config.quantization import QuantizationConfig
from uumamba.config.track import Tracker
from uumamba.config.training import InferenceConfig, ScheduleConfig, TrainingConfig
from uumamba.nets.topology import check_divisible

if TYPE_CHECKING:
    from uumamba.domain_generalization import UDIM


class RunConfig(Config):
    """Everything that decides a run's result; stored whole in the run's folder and in each checkpoint."""

    name: str
    seed: NonNegativeInt = 0
    dataset: DatasetConfig
    preprocess: PreprocessConfig
    net: NetConfig
    loss: LossConfig
    quantization: QuantizationConfig | None = None
    objective: ObjectiveConfig = SupervisedConfig()
    optim: OptimConfig
    domain_generalization: DomainGeneralizationConfig | None = None
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig
    augment: AugmentConfig = AugmentConfig()
    inference: InferenceConfig = InferenceConfig()
    # How a run is followed decides nothing of its result: it is not stored, and a resumed run may choose anew.
    track: tuple[Tracker, ...] = Field((), exclude=True)

    @model_validator(mode="after")
    def _dimensions_agree(self) -> "RunConfig":
        dimensions = self.net.spatial_dims
        if len(self.training.patch_size) != dimensions:
            raise ValueError(
                f"net.spatial_dims is {dimensions} but training.patch_size has {len(self.training.patch_size)} numbers"
            )
        if any(axis >= dimensions for axis in self.augment.mirror_axes):
            raise ValueError(
                f"augment.mirror_axes {list(self.augment.mirror_axes)} names an axis that a {dimensions}-D patch lacks"
            )
        check_divisible(self.training.patch_size, self.net.divisor(), name="training.patch_size")
        return self

    @model_validator(mode="after")
    def _bits_go_with_the_rest(self) -> "RunConfig":
        if self.quantization is not None:
            with _named("quantization"):
                self.quantization.check(
                    optim=self.optim,
                    objective=self.objective.name,
                    batches_per_epoch=self.training.batches_per_epoch,
                )
        return self

    @model_validator(mode="after")
    def _every_part_can_be_built(self) -> "RunConfig":
        """What a class refuses is refused here, not after the scans were prepared; each is built once, without memory.

        MONAI's SwinUNETR reads a tensor's values in its constructor, which the meta device has none of.
        """
        patch_size = self.training.patch_size
        with _named("preprocess"):
            self.preprocess.build()
        with _named("augment"):
            self.augment.build(patch_size=patch_size)
        with torch.random.fork_rng(devices=[]), torch.device("cpu" if self.net.name == "SwinUNETR" else "meta"):
            with _named("net"):
                net = self.net.build(in_channels=1, out_channels=2, patch_size=patch_size)
            if self.quantization is not None:
                with _named("quantization"):
                    self.quantization.build(net)
            with _named("loss"):
                loss = self.loss.build()
        with _named("objective"), torch.random.fork_rng(devices=[]):
            self.objective.build(loss, net, outputs=self.optim.needs_logits)
        with _named("optim"):
            optimizer = self.optim.build(net, loss)
            self.optim.build_ascent()
        if self.quantization is not None:
            with _named("quantization"):
                self.quantization.attach(optimizer, net)
        with _named("domain_generalization"):
            self.build_method(net, loss)
        with _named("schedule"):
            self.schedule.build(
                optimizer, epochs=self.training.epochs, batches_per_epoch=self.training.batches_per_epoch
            )
        return self

    def check_reached(self) -> None:
        """Refuse, before a training begins, what its steps would not reach; with a budget of minutes, at most.

        It is no part of the validation: what was trained so by an earlier program can be resumed and predicts.

        Raises:
            ValueError: the message says what is not reached, and what to set.
        """
        if self.quantization is not None:
            with _named("quantization"):
                self.quantization.check_reached(self.training.epochs * self.training.batches_per_epoch)

    def build_method(self, net: nn.Module, loss: nn.Module, *, rank: int = 0) -> "UDIM | None":
        """What is added to each step of this process's optimizer, if anything is."""
        if self.domain_generalization is None:
            return None
        return self.domain_generalization.build(
            net, loss, optim=self.optim, schedule=self.schedule, training=self.training, seed=self.seed, rank=rank
        )

    def as_json(self) -> dict[str, Any]:
        """The resolved configuration as plain values."""
        stored: dict[str, Any] = self.model_dump(mode="json")
        return stored


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Put a part's key before what its class says of an argument."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}: {str(error).rstrip('.')}") from None
