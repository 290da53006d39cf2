"""One run, from raw scans to a report, as data."""

from typing import Any

from pydantic import NonNegativeInt, model_validator

from uumamba.config.augment import AugmentConfig
from uumamba.config.base import Config
from uumamba.config.data import DatasetConfig, PreprocessConfig
from uumamba.config.loss import LossConfig
from uumamba.config.net import NetConfig, check_divisible
from uumamba.config.optim import OptimConfig
from uumamba.config.training import InferenceConfig, ScheduleConfig, TrainingConfig


class RunConfig(Config):
    """Everything that decides a run's result; stored whole in the run's folder and in each checkpoint."""

    name: str
    seed: NonNegativeInt = 0
    dataset: DatasetConfig
    preprocess: PreprocessConfig
    net: NetConfig
    loss: LossConfig
    optim: OptimConfig
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig
    augment: AugmentConfig = AugmentConfig()
    inference: InferenceConfig = InferenceConfig()

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
        check_divisible(self.training.patch_size, self.net.divisor())
        return self

    def as_json(self) -> dict[str, Any]:
        """The resolved configuration as plain values."""
        stored: dict[str, Any] = self.model_dump(mode="json")
        return stored
