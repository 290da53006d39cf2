"""Training length, sampling, precision and schedule, and inference options."""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from uumamba.config.base import Config
from uumamba.config.bind import read_default
from uumamba.data.sampling import FOREGROUND_FRACTION, MARGIN, Sampling
from uumamba.domain_generalization.slow_examples import upsampled
from uumamba.domain_generalization.useful import Probe
from uumamba.inference.predictor import Predictor
from uumamba.runtime.errors import require
from uumamba.runtime.options import (
    AT_LEAST_1,
    AT_MOST_2,
    AtLeastTwo,
    BelowOne,
    BetweenZeroAndOne,
    NonNegative,
    NonNegativeInt,
    PositiveInt,
    Probability,
)
from uumamba.training.run_folder import RunFolder
from uumamba.training.trainer_options import StepOptions

Precision = Literal["auto", "float32", "bfloat16", "float16"]
UNION = "union"
"""Name of the union of all structures in ``inference.postprocess``."""


class SamplingConfig(Config):
    """Sampling of patches, classes by name; see :class:`uumamba.data.sampling.Sampling`."""

    forced: Literal["share", "chance"] = Sampling.forced
    classes: Literal["of_case", "of_data_set"] = Sampling.classes
    class_weights: dict[str, NonNegative] = Field(default_factory=dict)
    content_fraction: BelowOne = Sampling.content_fraction

    def build(self, *, structures: Mapping[str, int]) -> Sampling:
        """Build the sampling for a data set with these label values.

        Raises:
            UsageError: ``class_weights`` has a structure that the data set lacks.
        """
        require(
            self.class_weights.keys() <= structures.keys(),
            "training.sampling.class_weights",
            got=", ".join(self.class_weights),
            expected=f"structures of the data set: {', '.join(structures)}",
        )
        return Sampling(
            forced=self.forced,
            classes=self.classes,
            class_weights={structures[name]: weight for name, weight in self.class_weights.items()},
            content_fraction=self.content_fraction,
        )


class UsefulConfig(Config):
    """USEFUL: show cases that are learned slowly ``factor`` times.

    A short probe finds these cases. It trains the same run until its error on ``views`` fixed patches of every training
    case falls by less than ``slowing`` of its largest fall per epoch, or for ``most_epochs``. Slow cases are the worse
    of two clusters (of each group of ``group_by`` if given). An ``index_file`` of an earlier run of the same cases
    replaces the probe.
    """

    most_epochs: AtLeastTwo = 10
    slowing: BetweenZeroAndOne = read_default(Probe, "slowing")
    factor: PositiveInt = read_default(upsampled, "factor")
    group_by: Literal["phase", "domain", "group"] | None = None
    views: PositiveInt = 8
    index_file: str | None = None


class TrainingConfig(Config):
    """Training of one fold.

    ``neighbour_slices`` adds this number of slices on either side of a 2-D patch as channels of the network's input.
    """

    epochs: PositiveInt
    batches_per_epoch: PositiveInt
    batch_size: PositiveInt
    patch_size: tuple[PositiveInt, PositiveInt] | tuple[PositiveInt, PositiveInt, PositiveInt]
    foreground_fraction: Probability = FOREGROUND_FRACTION
    sampling: SamplingConfig = SamplingConfig()
    neighbour_slices: NonNegativeInt = 0
    read_margin: Annotated[float, AT_LEAST_1, AT_MOST_2] = MARGIN
    precision: Precision = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    compile: bool = False
    ema_decay: BetweenZeroAndOne | None = None
    validate_every: PositiveInt = 10
    workers: NonNegativeInt = 0
    max_skipped_in_a_row: PositiveInt = StepOptions.max_skipped_in_a_row
    samples_at_once: PositiveInt | None = None
    save_every_minutes: NonNegative | None = read_default(RunFolder, "save_every_minutes")
    useful: UsefulConfig | None = None

    @model_validator(mode="after")
    def _check_useful(self) -> "TrainingConfig":
        if self.useful is None:
            return self
        require(
            self.sampling.classes == "of_case",
            "sampling.classes",
            got=self.sampling.classes,
            expected="of_case with training.useful",
            fix="set sampling.classes to of_case, or useful to null",
        )
        require(
            self.useful.index_file is not None or self.useful.most_epochs <= self.epochs,
            "useful.most_epochs",
            got=self.useful.most_epochs,
            expected=f"at most training.epochs, {self.epochs}",
            fix="set useful.most_epochs to a tenth of epochs",
        )
        return self


class InferenceConfig(Config):
    """Sliding window, mirror averaging and postprocessing.

    ``windows_at_once`` is the sliding-window batch size. ``postprocess`` lists the structures of which only the largest
    component is kept; ``union`` in the list stands for the union of all structures and comes first. ``auto`` chooses
    the list with the highest Dice of each fold's validation cases after its training.
    """

    overlap: BelowOne = read_default(Predictor, "overlap")
    mirror: bool = False
    windows_at_once: PositiveInt = read_default(Predictor, "sw_batch_size")
    precision: Precision = "auto"
    postprocess: Literal["auto"] | tuple[str, ...] | None = None

    def list_postprocess(self, *, structures: Mapping[str, int]) -> tuple[str, ...]:
        """List the masks that keep their largest component only.

        With ``auto`` the list is empty.

        Raises:
            UsageError: a name is no structure.
        """
        names = () if self.postprocess is None or isinstance(self.postprocess, str) else self.postprocess
        require(
            {*names} <= {UNION, *structures},
            "inference.postprocess",
            got=", ".join(names),
            expected=f"auto, or a list of {UNION} and structures of the data set: {', '.join(structures)}",
        )
        return names


def resolve_precision(precision: Precision, device: str) -> Literal["float32", "bfloat16", "float16"]:
    """Resolve ``auto`` to bfloat16 on devices with native support, else to float32.

    Example:
        >>> resolve_precision("float32", "cpu")
        'float32'
    """
    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    capable = torch.cpu.get_capabilities()
    return "bfloat16" if capable.get("avx512_bf16") or capable.get("amx_bf16") else "float32"


def resolve_channels_last(channels_last: bool | Literal["auto"], device: str) -> bool:
    """Resolve ``auto`` to the channels-first layout, the faster one in every measurement.

    On CUDA, torch's instance norm converts every feature map back to channels first, so the gain depends on the
    network.

    Raises:
        UsageError: channels last on a CPU, where torch 2.13 writes past its memory in the backward pass of a strided
            1x1 convolution of 12 to 24 channels.

    Example:
        >>> resolve_channels_last("auto", "cpu"), resolve_channels_last(True, "cuda")
        (False, True)
    """
    require(
        not (channels_last is True and device.startswith("cpu")),
        "training.channels_last",
        got=channels_last,
        expected="auto or false on a CPU, for safety of torch's backward pass",
    )
    return channels_last is True
