"""Training length, sampling, precision and schedule, and inference options."""

from collections.abc import Collection, Mapping
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
    """Sampling of patches, classes by name; see :class:`uumamba.data.sampling.Sampling`.

    Args:
        forced: ``share`` centres a fixed share of each batch on foreground, ``chance`` each sample with a probability.
        classes: ``of_case`` draws a class of a drawn case, ``of_data_set`` a case of a drawn class.
        class_weights: relative rate of each structure by name; 1 for others.
        content_fraction: least share of voxels above the smallest value of a random patch.
    """

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

    A short probe finds these cases. It trains the same run; slow cases are the worse of two clusters.

    Args:
        most_epochs: largest number of epochs of the probe.
        slowing: the probe ends when its error falls by less than this share of its largest fall per epoch.
        factor: number of times that a slow case is shown.
        group_by: clusters are formed in each phase, domain or group.
        views: number of fixed patches per training case that measure the error.
        index_file: file of an earlier run of the same cases that replaces the probe.
    """

    most_epochs: AtLeastTwo = 10
    slowing: BetweenZeroAndOne = read_default(Probe, "slowing")
    factor: PositiveInt = read_default(upsampled, "factor")
    group_by: Literal["phase", "domain", "group"] | None = None
    views: PositiveInt = 8
    index_file: str | None = None


class TrainingConfig(Config):
    """Training of one fold.

    Args:
        epochs: number of epochs; of a schedule with a budget the largest number.
        batches_per_epoch: optimizer steps per epoch.
        batch_size: patches per step.
        patch_size: ``[Y, X]`` or ``[Z, Y, X]`` in voxels.
        foreground_fraction: share of the patches that are centred on foreground.
        sampling: choice of patches and classes.
        neighbour_slices: number of slices on either side of a 2-D patch that are channels of the network's input.
        read_margin: size of the window that is read, in patches, so that a rotated patch has image at its corners.
        precision: precision of autocast; ``auto`` is bfloat16 on devices with native support.
        channels_last: memory format of 2-D feature maps; ``auto`` is channels first.
        compile: train through ``torch.compile``.
        ema_decay: decay of the moving average of the weights; null for none.
        validate_every: epochs between two validations.
        workers: processes that read and augment batches.
        max_skipped_in_a_row: steps in a row without finite loss or gradient that end the run.
        samples_at_once: largest micro-batch; null for the whole batch.
        save_every_minutes: minutes between two checkpoints inside an epoch; null for none.
        useful: show slowly learned cases more often; null for no.
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

    Args:
        overlap: overlap of neighbouring windows.
        mirror: average over the axes that training mirrored.
        windows_at_once: windows per call of the network.
        precision: as in training.
        postprocess: list of structures of which only the largest component is kept, ``union`` for the union of all
            structures; ``auto`` chooses the list with the highest Dice of a fold's validation cases after its training.
            For regions the list is empty or ``union``.
    """

    overlap: BelowOne = read_default(Predictor, "overlap")
    mirror: bool = False
    windows_at_once: PositiveInt = read_default(Predictor, "sw_batch_size")
    precision: Precision = "auto"
    postprocess: Literal["auto"] | tuple[str, ...] | None = None

    def list_postprocess(self, *, structures: Mapping[str, int], regions: Collection[str] = ()) -> tuple[str, ...]:
        """List the masks that keep their largest component only.

        With ``auto`` the list is empty. Regions overlap, so with regions only the union can be listed.

        Raises:
            UsageError: a name is no structure, or is not the union of regions.
        """
        names = () if self.postprocess is None or isinstance(self.postprocess, str) else self.postprocess
        known = f"{UNION} and structures of the data set: {', '.join(structures)}"
        if regions:
            known = f"{UNION}, since the regions {', '.join(regions)} may overlap"
        require(
            {*names} <= {UNION, *(() if regions else structures)},
            "inference.postprocess",
            got=", ".join(names),
            expected=f"auto, or a list of {known}",
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
