"""Trained models: from a run folder, a fold's folder or a checkpoint to a Predictor."""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn

from uumamba.config import RunConfig
from uumamba.config.load import validate
from uumamba.config.training import resolve_precision
from uumamba.data.preprocess import PreprocessRecipe, preprocess, restore, restore_probabilities
from uumamba.inference import Predictor
from uumamba.pipelines.run_layout import ALL_CASES, FOLDS, check_fold_name, fold_folders
from uumamba.pipelines.sides import SidedRun
from uumamba.pipelines.stored_config import complete_config
from uumamba.runtime.errors import UsageError
from uumamba.training.checkpoint import Checkpoint, read_checkpoint
from uumamba.training.run_folder import BEST, LAST, PREVIOUS


def load_predictor(
    model: Path | str, *, device: str = "cpu", fold: str | None = None, mirror: bool | None = None
) -> Predictor:
    """The Predictor of a run: every fold found is averaged, and every seed.

    A folder's model is its ``last.safetensors``: the final weights. ``best.safetensors`` was chosen on the validation
    cases, so its scores on them flatter; name that file to use it.

    Args:
        model: the output of ``uumamba run``, a run folder, a fold's folder or a checkpoint file.
        device: where to predict.
        fold: one fold of a run instead of all that are there.
        mirror: average over the axes that training mirrored; None takes the run's configuration.

    Raises:
        UsageError: there is no checkpoint or not of that fold, the folds belong to different runs, or a checkpoint was
            not made by ``uumamba train``.

    Example:
        >>> predictor = load_predictor("runs/acdc")  # doctest: +SKIP
        >>> prediction = predictor(image, spacing_mm=(1.5, 1.5, 10.0))  # doctest: +SKIP
    """
    paths = checkpoint_paths(model, fold=fold)
    checkpoints = [read_checkpoint(path, map_location=device) for path in paths]
    stored = [_stored_config(checkpoint, path) for checkpoint, path in zip(checkpoints, paths, strict=True)]
    _check_same_run(stored, paths)
    config = validate(stored[0]["run"], source=str(paths[0]))
    for checkpoint, path in zip(checkpoints, paths, strict=True):
        _warn_of_unfinished(checkpoint, path, epochs=config.training.epochs)
    structures: dict[str, int] = stored[0]["structures"]
    nets = [trained_net(config, checkpoint, classes=len(structures) + 1).to(device) for checkpoint in checkpoints]
    if config.quantization is not None:
        for net, path in zip(nets, paths, strict=True):
            _warn_of_waiting(net, path, start_step=config.quantization.start_step)
    recipe = PreprocessRecipe.from_json(stored[0]["recipe"]) if "recipe" in stored[0] else config.preprocess.build()
    averaged = config.inference.mirror if mirror is None else mirror
    sides = SidedRun.from_json(stored[0]["sides"]) if "sides" in stored[0] else None
    return Predictor(
        nets,
        patch_size=config.training.patch_size,
        preprocess=partial(_preprocess, recipe=recipe, sides=sides),
        restore=restore,
        restore_probabilities=restore_probabilities,
        structures=structures,
        mirror_axes=config.augment.mirror_axes if averaged else (),
        mirror_swaps=sides.swaps(config.training.patch_size) if sides is not None and averaged else None,
        overlap=config.inference.overlap,
        sw_batch_size=config.inference.windows_at_once,
        device=device,
        precision=resolve_precision(config.inference.precision, device),
    )


def trained_net(config: RunConfig, checkpoint: Checkpoint, *, classes: int) -> nn.Module:
    """The checkpoint's network, with its averaged weights where training kept an average."""
    with torch.random.fork_rng(devices=[]):  # the fresh weights are replaced, the caller's random state is kept
        net = config.net.build(in_channels=1, out_channels=classes, patch_size=config.training.patch_size)
        if config.quantization is not None:
            config.quantization.build(net)
    weights = checkpoint.ema if checkpoint.ema is not None else checkpoint.net
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        problem = shorten(str(error), width=240, placeholder=" ...")
        raise UsageError(f"A checkpoint's weights do not fit its own configuration ({problem}); train again.") from None
    return net.eval()


def checkpoint_paths(model: Path | str, *, fold: str | None = None) -> list[Path]:
    """Checkpoints of a run folder (one a fold and seed), of a fold's folder, or the file itself.

    Args:
        model: as :func:`load_predictor` takes it.
        fold: of a run, this one alone.

    Raises:
        UsageError: nothing is there, or a fold is asked for that is none, is not there, or of what is one fold already.
    """
    model = Path(model)
    if fold is not None:
        check_fold_name(fold, (*FOLDS, ALL_CASES))
    folds = _folds_of(model) or _folds_of(model / "run")
    if not folds:
        alone = model if model.is_file() else newest_checkpoint(model)
        if alone is None:
            raise UsageError(_no_checkpoint(model))
        if fold is not None:
            raise UsageError(f"{model} is one fold's model; leave --fold out, or give the run's folder.")
        return [alone]
    if fold is None:
        return [path for paths in folds.values() for path in paths]
    if fold not in folds:
        raise UsageError(f"{model} holds no checkpoint of fold {fold}, only of {', '.join(folds)}; train it first.")
    return folds[fold]


def newest_checkpoint(folder: Path) -> Path | None:
    """``last``, or ``previous`` where a kill left no ``last``; None where no training was begun."""
    return next((folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file()), None)


def _folds_of(run: Path) -> dict[str, list[Path]]:
    """The checkpoints of each fold, one a seed."""
    found: dict[str, list[Path]] = {}
    for folder in fold_folders(run):
        if path := newest_checkpoint(folder.path):
            found.setdefault(folder.fold, []).append(path)
    return found


def _no_checkpoint(model: Path) -> str:
    if not model.exists():
        return f"There is no model {model}; give a run folder, a fold's folder or a checkpoint file."
    return f"{model} holds no checkpoint ({LAST}); train it first, or give a checkpoint file."


def _stored_config(checkpoint: Checkpoint, path: Path) -> dict[str, Any]:
    """What ``uumamba train`` stored; a Trainer of the user's own stores what it was given, or nothing."""
    stored = checkpoint.config
    if not (isinstance(stored, dict) and {"run", "structures"} <= stored.keys()):
        raise UsageError(
            f"{path} does not say which network it is of, since `uumamba train` did not make it; load its weights into "
            "that network (read_checkpoint(path).net) and give it to a Predictor."
        )
    return stored


def _warn_of_unfinished(checkpoint: Checkpoint, path: Path, *, epochs: int) -> None:
    """Warn of a run that is not done; ``best``, which must be asked for by name, is of any epoch."""
    done = checkpoint.progress["epochs_done"]
    if done < epochs and path.name != BEST:
        text = f"{path} has done {done} of {epochs} epochs; finish it with `uumamba train --resume`."
        warnings.warn(text, stacklevel=3)


def _warn_of_waiting(net: nn.Module, path: Path, *, start_step: int) -> None:
    """Warn of weights that are not rounded yet; ``best`` may be of an epoch before they are."""
    from uumamba.quantization import quantized_layers

    if any(each.weight is not None and each.weight.waits for each in quantized_layers(net)):
        text = (
            f"{path} predicts in full precision, as its weights wait for step {start_step} of training to be rounded; "
            "take a later checkpoint, or train on with `uumamba train --resume`."
        )
        warnings.warn(text, stacklevel=3)


def _preprocess(
    image: Any, *, spacing_mm: Any, affine: Any, case_id: str, recipe: Any, sides: SidedRun | None
) -> tuple[Any, Any]:
    array, _, geometry = preprocess(image, spacing_mm=spacing_mm, affine=affine, recipe=recipe, case_id=case_id)
    if sides is not None:
        sides.check(geometry, case_id=case_id)
    return array, geometry


def _check_same_run(stored: Sequence[dict[str, Any]], paths: Sequence[Path]) -> None:
    first = _what_predicts(stored[0])
    for other, path in zip(stored[1:], paths[1:], strict=True):
        if _what_predicts(other) == first:
            continue
        # The folds may have been trained by programs of which one knew a key that the other did not.
        if _what_predicts(complete_config(other)) != _what_predicts(complete_config(stored[0])):
            raise UsageError(
                f"{path} was trained with another network, preparation or structures than {paths[0]}, so the two "
                "cannot be averaged; predict with one fold."
            )


def _what_predicts(stored: Mapping[str, Any]) -> list[Any]:
    """What folds must share so that their probabilities can be averaged."""
    run = [stored["run"].get(part) for part in ("net", "preprocess", "training", "quantization")]
    return [*run, *(stored.get(key) for key in ("structures", "sides", "recipe"))]
