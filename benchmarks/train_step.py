"""Time of a complete training step, relative to its bare passes.

    python -m benchmarks.train_step --json benchmarks/results/train_step.json

The step is the trainer's own: patches are read from prepared cases (a phantom, prepared here by the configuration's
recipe), augmented, and used for training, with the configuration's optimizer, moving average, schedule and logging.
Another row inverts the trainer's choice to read a batch ahead in a thread. Bare passes are forward and backward passes
of the same network, loss and precision on one constant batch, as many as the optimizer makes per step, and nothing
else. In the last rows each sample goes through nnU-Net's training transforms (its own list, of batchgeneratorsv2), in
this process or in two others. Rounds alternate, so that a slow period of the machine affects all rows. Needs nnunetv2
(the extra `bench`); without it these rows are left out. The exit code is 1 if a claim of the project does not hold.
"""

import argparse
import io
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from math import pi
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.claims.equal_time import compute_ratios, time_in_rounds
from benchmarks.optim_step import count_passes
from benchmarks.result_file import write_result
from benchmarks.scan import print_rows
from data_prep.phantoms.heart.heart_phantom import write_phantom
from uumamba.config import RunConfig, read_config
from uumamba.data.augmentation import default_rotation_deg, rotates_in_plane_only
from uumamba.data.dataset import PatchDataset
from uumamba.data.loader import collate
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.build import build_trainer
from uumamba.pipelines.datasets import read_dataset
from uumamba.pipelines.jobs import list_jobs
from uumamba.pipelines.prepare import prepare
from uumamba.runtime.autocast import autocast
from uumamba.training import Trainer
from uumamba.types import Batch

CONFIG = "acdc_uu_mamba"
BARE, OURS, THEIRS = "bare passes", "uumamba", "batchgeneratorsv2"
MOST = {"cpu": 1.1, "cuda": 1.03}
PATIENTS = 10
WORKERS = 2


def main(given: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="threads of torch on a CPU; by default one per core")
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--quick", action="store_true", help="few short rounds, a minute")
    options = parser.parse_args(given)
    if options.threads:
        torch.set_num_threads(options.threads)
    steps, rounds = (4, 3) if options.quick else (10, 15)
    overrides = ("dataset.name=phantom", "training.epochs=100000", f"training.batches_per_epoch={steps}")
    config = read_config(options.config, overrides)
    with tempfile.TemporaryDirectory(prefix="uumamba-train-step-") as folder:
        prepared = prepare_phantom(Path(folder), config)
        rows = measure(config, prepared, device=options.device, steps=steps, rounds=rounds)
    print_rows(rows)
    notes = [] if find_spec("nnunetv2") else [f"{THEIRS} not installed (extra bench): left out"]
    print(*notes, sep="\n")
    if options.json is not None:
        text = describe_table(config, options.device, steps=steps, notes=notes)
        write_result(options.json, rows, title="A training step", about=text, configs=[(options.config, overrides)])
    broken = [] if options.quick else list(find_broken_claims(rows, options.device))
    print(*broken, sep="\n", file=sys.stderr)
    return 1 if broken else 0


def describe_table(config: RunConfig, device: str, *, steps: int, notes: Sequence[str]) -> str:
    """Describe the table."""
    training = config.training
    size = " x ".join(map(str, training.patch_size))
    peer = f" {THEIRS} is {version(THEIRS)}, with the list of nnU-Net {version('nnunetv2')}." if not notes else ""
    where = f"{torch.get_num_threads()} threads" if device == "cpu" else device
    return (
        f"{config.net.name} of {config.name} with {config.optim.name} around {config.optim.base.name}, "
        f"{training.batch_size} patches of {size} of a phantom, {where}. Bare passes: forward and backward on one "
        "batch, as many as the optimizer makes. The other rows are the trainer's complete steps with reading and "
        f"augmentation, in the named number of processes. Times are of one step, medians over rounds of {steps}; "
        f"the ratio is the median of the rounds' ratios.{peer}{''.join(f' {note}.' for note in notes)}"
    )


def prepare_phantom(folder: Path, config: RunConfig) -> PreparedFolder:
    """Write a phantom in ACDC's layout and prepare it."""
    raw = write_phantom(folder / "raw", patients=PATIENTS)
    manifest, bad = read_dataset("phantom", raw)
    result = prepare(
        manifest, bad, recipe=config.preprocess.build(), out=folder / "prepared", workers=0, progress=False
    )
    if result.failures:
        sys.exit(f"The phantom could not be prepared: {result.failures[0]}")
    return PreparedFolder(folder / "prepared")


def measure(config: RunConfig, folder: PreparedFolder, *, device: str, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Return one row per data pipeline of a step."""
    [job] = list_jobs(config, folder, fold="0", out=folder.path / "run")
    make = partial(build_trainer, job, folder, run_dir=None, device=device)
    other = make()
    other.prefetcher.read_ahead = not other.prefetcher.read_ahead
    fed = {
        OURS: EpochRunner(make()),
        f"{OURS}, {'reads ahead' if other.prefetcher.read_ahead else 'as asked'}": EpochRunner(other),
    }
    if find_spec("nnunetv2"):
        for workers in (0, WORKERS):
            trainer = feed_from_nnunet(make(), config, folder, workers=workers)
            fed[f"{THEIRS}, {workers} processes"] = EpochRunner(trainer)
    still = make()
    batch = load_first_batch(still)
    passes = count_step_passes(still, batch)
    work: dict[str, Callable[[], object]] = {BARE: partial(run_bare_passes, still, batch, steps * passes), **fed}
    seconds = {name: [each / steps for each in found] for name, found in time_in_rounds(work, rounds=rounds).items()}
    waited = {name: median(epochs.waited_s[1:]) / steps for name, epochs in fed.items()}
    return list(make_rows(seconds, waited, passes=passes))


def make_rows(
    seconds: Mapping[str, Sequence[float]], waited_s: Mapping[str, float], *, passes: int
) -> Iterator[dict[str, Any]]:
    """Yield the table's rows from seconds per step.

    Args:
        seconds: seconds per step in each round, by name.
        waited_s: seconds per step spent waiting for data, by name.
        passes: forward passes per step.
    """
    for name, each_ratio in compute_ratios(seconds, BARE).items():
        yield {
            "name": name,
            "passes": passes,
            "median_s": float(f"{median(seconds[name]):.4g}"),
            "min_s": float(f"{min(seconds[name]):.4g}"),
            "waited_s": float(f"{waited_s[name]:.3g}") if name in waited_s else None,
            "ratio_to": BARE,
            "ratio": round(median(each_ratio), 3),
        }


def find_broken_claims(rows: Sequence[Mapping[str, Any]], device: str) -> Iterator[str]:
    """Yield a message if the step takes longer than claimed."""
    most = MOST[torch.device(device).type]
    found = next(row["ratio"] for row in rows if row["name"] == OURS)
    if found > most:
        yield f"the training step takes {found} times its bare passes, claimed at most {most}"


class EpochRunner:
    """Callable that trains one epoch, silently and without validation.

    It records how long the steps of each epoch waited for data.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.waited_s: list[float] = []
        trainer.validation, trainer.epochs = None, 0

    def __call__(self) -> None:
        """Train one epoch."""
        self.trainer.epochs += 1
        with redirect_stderr(io.StringIO()):
            self.trainer.fit()
        self.waited_s.append(self.trainer.prefetcher.waited_s)


def load_first_batch(trainer: Trainer) -> Batch:
    """Return the first batch as a step receives it."""
    with trainer.prefetcher.load(trainer.prefetcher.batches(0)) as batches:
        return next(batches)


def count_step_passes(trainer: Trainer, batch: Batch) -> int:
    """Count the forward passes of a step.

    Each is followed by a backward pass.
    """
    counts = count_passes(trainer.net)
    trainer.optimizer.step(partial(trainer.objective, trainer.net, batch), ascent=trainer.step_options.ascent)
    return counts["forward"]


def run_bare_passes(trainer: Trainer, batch: Batch, passes: int) -> None:
    """Repeat forward and backward passes at constant weights."""
    parameters = list(trainer.net.parameters())
    for _ in range(passes):
        for parameter in parameters:
            parameter.grad = None
        with autocast(trainer.device, trainer.execution.precision):
            loss = trainer.objective(trainer.net, batch)
        loss = loss[0] if isinstance(loss, tuple) else loss
        loss.backward()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()


def feed_from_nnunet(trainer: Trainer, config: RunConfig, folder: PreparedFolder, *, workers: int) -> Trainer:
    """Replace a trainer's augmentation by nnU-Net's transforms.

    Patches are read as before; each goes through the transforms before the batch is collated.
    """
    source = PatchDataset(
        folder,
        [case.case_id for case in folder.manifest.select(split="training", without_fold=0)],
        patch_size=config.training.patch_size,
        batch_size=config.training.batch_size,
        batches_per_epoch=config.training.batches_per_epoch,
        foreground_fraction=config.training.foreground_fraction,
        seed=config.seed,
        margin=config.training.read_margin,
    )
    trainer.prefetcher.batches = partial(_make_nnunet_batches, NnUNetSamples(source, config), workers=workers)
    trainer.prefetcher.augment = None
    return trainer


class NnUNetSamples(Dataset[dict[str, Any]]):
    """Data set whose samples go through nnU-Net's training transforms."""

    def __init__(self, source: PatchDataset, config: RunConfig) -> None:
        with redirect_stdout(io.StringIO()):  # nnU-Net prints a warning about environment variables
            trainer = import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer").nnUNetTrainer
        patch_size = config.training.patch_size
        angles_deg = default_rotation_deg(patch_size)
        self.source = source
        self.transforms = trainer.get_training_transforms(
            patch_size,
            rotation_for_DA=tuple(angle * pi / 180 for angle in angles_deg),
            deep_supervision_scales=None,
            mirror_axes=config.augment.mirror_axes,
            do_dummy_2d_data_aug=rotates_in_plane_only(patch_size),
        )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        sample = self.source[key]
        changed = self.transforms(image=sample["image"], segmentation=sample["label"].to(torch.int16))
        return sample | {"image": changed["image"], "label": changed["segmentation"].long()}


def _make_nnunet_batches(samples: NnUNetSamples, epoch: int, *, workers: int) -> Iterator[Batch]:
    keys = [(epoch, index) for index in range(len(samples))]
    loader = DataLoader(
        samples, batch_size=samples.source.batch_size, sampler=keys, num_workers=workers, collate_fn=collate
    )
    return iter(loader)


if __name__ == "__main__":
    sys.exit(main())
