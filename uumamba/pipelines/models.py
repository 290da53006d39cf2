"""Trained models: from a run folder, a fold's folder or a checkpoint to a Predictor."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from uumamba.config import RunConfig
from uumamba.config.load import validate
from uumamba.config.training import resolve_precision
from uumamba.data.preprocess import preprocess, restore, restore_probabilities
from uumamba.errors import UsageError
from uumamba.inference import Predictor
from uumamba.training.checkpoint import Checkpoint, read_checkpoint

BEST = "best.safetensors"
LAST = "last.safetensors"


def load_predictor(
    model: Path | str, *, device: str = "cpu", fold: str | None = None, mirror: bool | None = None
) -> Predictor:
    """The Predictor of a run: every fold found is averaged.

    Args:
        model: a run folder, a fold's folder or a checkpoint file.
        device: where to predict.
        fold: one fold of a run instead of all that are there.
        mirror: average over the axes that training mirrored; None takes the run's configuration.

    Raises:
        UsageError: there is no checkpoint, or the folds belong to different runs.

    Example:
        >>> predictor = load_predictor("runs/acdc")  # doctest: +SKIP
        >>> prediction = predictor(image, spacing_mm=(1.5, 1.5, 10.0))  # doctest: +SKIP
    """
    paths = checkpoint_paths(model, fold=fold)
    checkpoints = [read_checkpoint(path, map_location=device) for path in paths]
    stored = [checkpoint.config for checkpoint in checkpoints]
    _check_same_run(stored, paths)
    config = validate(stored[0]["run"], source=str(paths[0]))
    structures: dict[str, int] = stored[0]["structures"]
    nets = [trained_net(config, checkpoint, classes=len(structures) + 1).to(device) for checkpoint in checkpoints]
    averaged = config.inference.mirror if mirror is None else mirror
    return Predictor(
        nets,
        patch_size=config.training.patch_size,
        preprocess=partial(_preprocess, recipe=config.preprocess.build()),
        restore=restore,
        restore_probabilities=restore_probabilities,
        structures=structures,
        mirror_axes=config.augment.mirror_axes if averaged else (),
        overlap=config.inference.overlap,
        sw_batch_size=config.inference.windows_at_once,
        device=device,
        precision=resolve_precision(config.inference.precision, device),
    )


def trained_net(config: RunConfig, checkpoint: Checkpoint, *, classes: int) -> nn.Module:
    """The checkpoint's network, with its averaged weights where training kept an average."""
    with torch.random.fork_rng(devices=[]):  # the fresh weights are replaced, the caller's random state is kept
        net = config.net.build(in_channels=1, out_channels=classes, patch_size=config.training.patch_size)
    weights = checkpoint.ema if checkpoint.ema is not None else checkpoint.net
    net.load_state_dict(weights)
    return net.eval()


def checkpoint_paths(model: Path | str, *, fold: str | None = None) -> list[Path]:
    """Checkpoints of a run folder (one a fold), of a fold's folder, or the file itself.

    Raises:
        UsageError: nothing is there.
    """
    model = Path(model)
    if model.is_file():
        return [model]
    if not model.is_dir():
        raise UsageError(f"There is no model {model}; give a run folder, a fold's folder or a checkpoint file.")
    folders = sorted(model.glob("fold_*" if fold is None else f"fold_{fold}")) or [model]
    found = [path for folder in folders if (path := _best_of(folder)) is not None]
    if not found:
        wanted = "" if fold is None else f" of fold {fold}"
        raise UsageError(f"{model} holds no checkpoint{wanted} (best.safetensors or last.safetensors); train it first.")
    return found


def _best_of(folder: Path) -> Path | None:
    return next((folder / name for name in (BEST, LAST) if (folder / name).is_file()), None)


def _preprocess(image: Any, *, spacing_mm: Any, affine: Any = None, recipe: Any) -> tuple[Any, Any]:
    array, _, geometry = preprocess(image, spacing_mm=spacing_mm, affine=affine, recipe=recipe)
    return array, geometry


def _check_same_run(stored: Sequence[dict[str, Any]], paths: Sequence[Path]) -> None:
    parts = ("net", "preprocess", "training")
    first = {part: stored[0]["run"][part] for part in parts}
    for other, path in zip(stored[1:], paths[1:], strict=True):
        if {part: other["run"][part] for part in parts} != first or other["structures"] != stored[0]["structures"]:
            raise UsageError(
                f"{path} was trained with another network, preparation or structures than {paths[0]}, so the two "
                "cannot be averaged; predict with one fold."
            )
