"""Time of reading, augmenting and training with the demo's network."""

import tempfile
import warnings
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from itertools import cycle, islice
from math import ceil, prod
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from uumamba.config import RunConfig, read_config
from uumamba.data.prepared import PreparedFolder
from uumamba.doctor.measure_disk import DiskRate
from uumamba.doctor.stopwatch import median_seconds
from uumamba.runtime.autocast import autocast
from uumamba.runtime.network import batch_to_device

BATCHES = 8
BYTES_PER_VOXEL = 3
"""A prepared case is a float16 image and an 8-bit label."""


@dataclass(frozen=True)
class TrainingRate:
    """Seconds per batch, and a description of the batches.

    Attributes:
        read_s: time of reading a batch's patches in one process, from files in memory.
        augment_s: time of augmenting a batch on the training device.
        step_s: time of one step of the optimizer.
        megabytes: size of the planes with a batch's patches.
        batch_size: number of patches per batch.
        what: network, optimizer and patch size in words.
        device: the training device.
    """

    read_s: float
    augment_s: float
    step_s: float
    megabytes: float
    batch_size: int
    what: str
    device: str


def measure_training(device: str) -> TrainingRate:
    """Time the demo's training on a phantom patient.

    The patient is prepared in a temporary folder. This takes a few seconds.
    """
    from uumamba.pipelines.build import build_trainer
    from uumamba.pipelines.jobs import list_jobs

    config = read_config("demo")
    with tempfile.TemporaryDirectory(prefix="uumamba-doctor-") as made:
        folder = _prepared_phantom(config, Path(made))
        [job] = list_jobs(config, folder, fold="all", out=folder.path / "run")
        trainer = build_trainer(job, folder, run_dir=None, device=device)
        begin = perf_counter()
        read = list(islice(trainer.prefetcher.batches(0), BATCHES))
        read_s = (perf_counter() - begin) / len(read)
        on_device = [batch_to_device(batch, device) for batch in read]
        augment = trainer.prefetcher.augment
        assert augment is not None, "the demo augments"
        turns = cycle(on_device)
        augment_s = median_seconds(lambda: augment(next(turns)))
        ready = augment(on_device[0])

        def objective() -> torch.Tensor | tuple[torch.Tensor, Any]:
            with autocast(trainer.device, trainer.execution.precision):
                return trainer.objective(trainer.net, ready)

        trainer.net.train()
        step_s = median_seconds(
            lambda: trainer.optimizer.step(objective, ascent=trainer.step_options.ascent), at_most_s=2.0
        )
        plane = prod(folder.case(folder.manifest.cases[0].case_id).label.shape[1:])
    size, patch = config.training.batch_size, "x".join(map(str, config.training.patch_size))
    return TrainingRate(
        read_s,
        augment_s,
        step_s,
        megabytes=size * plane * BYTES_PER_VOXEL / 1e6,
        batch_size=size,
        what=f"{config.net.name} with {config.optim.name}, {size} patches of {patch}",
        device=device,
    )


def verdict(rate: TrainingRate, disk: DiskRate, *, cores: int) -> str:
    """Describe the part that limits a training like the demo's.

    This is the data, the disk, the processor or the accelerator.

    Example:
        >>> rate = TrainingRate(0.004, 0.001, 0.02, 0.2, 8, "UMambaBot", "cuda")
        >>> verdict(rate, DiskRate(500.0, 1000.0), cores=8)
        'The accelerator will limit training: a step takes 21.0 ms, and a process reads a batch in 4.0 ms.'
    """
    computing = rate.augment_s + rate.step_s
    step, read, disk_s = 1e3 * computing, 1e3 * rate.read_s, rate.megabytes / disk.read_mb_per_s
    if disk_s > max(rate.read_s, computing):
        return (
            f"The disk will limit training if the prepared cases do not fit into memory: reading a batch takes "
            f"{1e3 * disk_s:.1f} ms, a step {step:.1f} ms; store the cases on a faster disk."
        )
    if rate.read_s > computing:
        workers = ceil(rate.read_s / computing)
        return (
            f"The data will limit training: a process reads a batch in {read:.1f} ms, a step takes {step:.1f} ms; "
            f"--set training.workers={min(workers, cores)} reads ahead"
            + (f", and {workers} would be needed of {cores} cores." if workers > cores else ".")
        )
    if rate.device.startswith("cuda"):
        return (
            f"The accelerator will limit training: a step takes {step:.1f} ms, and a process reads a batch in "
            f"{read:.1f} ms."
        )
    return (
        f"The processor will limit training: of the {step + read:.0f} ms per step the network takes "
        f"{1e3 * rate.step_s:.0f}, augmenting {1e3 * rate.augment_s:.0f} and reading {read:.0f}."
    )


def _prepared_phantom(config: RunConfig, folder: Path) -> PreparedFolder:
    from data_prep.phantoms.heart.heart_phantom import write_phantom
    from uumamba.pipelines.datasets import read_dataset
    from uumamba.pipelines.prepare import prepare

    # Without output and warnings about this patient, which the user did not choose.
    with redirect_stderr(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_phantom(folder / "raw", patients=1, seed=0, workers=0)
        manifest, bad = read_dataset(config.dataset.name, folder / "raw")
        prepare(manifest, bad, recipe=config.preprocess.build(), out=folder / "prepared", progress=False)
    return PreparedFolder(folder / "prepared")
