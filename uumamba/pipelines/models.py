"""Trained models: the Predictor of a run, a fold's folder or a checkpoint, and the configuration that it stores."""

import json
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn

from uumamba.config import RunConfig
from uumamba.config.load import validate
from uumamba.config.training import resolve_precision
from uumamba.data.prepared import PreparedFolder
from uumamba.data.preprocess import PreprocessRecipe, preprocess, restore, restore_probabilities
from uumamba.inference import Predictor
from uumamba.pipelines.mirrored_sides import MirroredSides
from uumamba.pipelines.run_layout import fold_folders, newest_checkpoint
from uumamba.pipelines.split import ALL_CASES, FOLDS, check_fold_name
from uumamba.runtime.errors import UsageError, require
from uumamba.training.checkpoint import Checkpoint, read_checkpoint
from uumamba.training.run_folder import BEST, LAST

FREE = ("workers", "save_every_minutes")
"""Keys of ``training`` without effect on the result, which may change when a run continues."""


def load_predictor(
    model: Path | str, *, device: str = "cpu", fold: str | None = None, mirror: bool | None = None
) -> Predictor:
    """Load the Predictor of a run, which averages every fold and seed.

    A folder's model is its ``last.safetensors``: the final weights. ``best.safetensors`` was chosen on the validation
    cases, so its scores on them are too high; pass that file to use it.

    Args:
        model: the output of ``uumamba run``, a run folder, a fold's folder or a checkpoint file.
        device: where to predict.
        fold: one fold of a run instead of all.
        mirror: average over the axes that training mirrored; None takes the run's configuration.

    Raises:
        UsageError: there is no checkpoint or none of that fold, the folds belong to different runs, or a checkpoint was
            not made by ``uumamba train``.

    Example:
        >>> predictor = load_predictor("runs/acdc")  # doctest: +SKIP
        >>> prediction = predictor(image, spacing_mm=(1.5, 1.5, 10.0))  # doctest: +SKIP
    """
    checkpoints = {path: read_checkpoint(path, map_location=device) for path in checkpoint_paths(model, fold=fold)}
    stored = _stored_config_of_all(checkpoints)
    config = validate(stored["run"], source=str(next(iter(checkpoints))))
    structures: dict[str, int] = stored["structures"]
    nets = []
    for path, checkpoint in checkpoints.items():
        net = _trained_net(config, checkpoint, path, classes=len(structures) + 1)
        _warn_if_unfinished(config, checkpoint, net, path)
        nets.append(net.to(device))
    recipe = PreprocessRecipe.from_json(stored["recipe"]) if "recipe" in stored else config.preprocess.build()
    averages = config.inference.mirror if mirror is None else mirror
    sides = MirroredSides.from_json(stored["sides"]) if "sides" in stored else None
    return Predictor(
        nets,
        patch_size=config.training.patch_size,
        preprocess=partial(_preprocess, recipe=recipe, sides=sides),
        restore=restore,
        restore_probabilities=restore_probabilities,
        structures=structures,
        mirror_axes=config.augment.mirror_axes if averages else (),
        mirror_swaps=sides.swaps(config.training.patch_size) if sides is not None and averages else None,
        overlap=config.inference.overlap,
        sw_batch_size=config.inference.windows_at_once,
        device=device,
        precision=resolve_precision(config.inference.precision, device),
    )


def checkpoint_paths(model: Path | str, *, fold: str | None = None) -> list[Path]:
    """List the checkpoints of a run folder (one a fold and seed), of a fold's folder, or the file itself.

    Args:
        model: as :func:`load_predictor` takes it.
        fold: only this fold of a run.

    Raises:
        UsageError: there is none, or the fold is unknown, not trained, or chosen of a single fold's model.
    """
    model = Path(model)
    if fold is not None:
        check_fold_name(fold, (*FOLDS, ALL_CASES))
    folds = _checkpoints_by_fold(model) or _checkpoints_by_fold(model / "run")
    if not folds:
        path = model if model.is_file() else newest_checkpoint(model)
        if path is None:
            fix = "train it first" if model.exists() else ""
            raise UsageError(
                "MODEL", got=model, expected=f"a run, a fold's folder with {LAST} or a checkpoint", fix=fix
            )
        require(fold is None, "--fold", got=fold, expected=f"none, since {model} is the model of one fold")
        return [path]
    require(
        fold is None or fold in folds, "--fold", got=fold, expected=f"a trained fold of {model}: {', '.join(folds)}"
    )
    return [path for name, paths in folds.items() if fold in (None, name) for path in paths]


def stored_config(
    config: RunConfig, folder: PreparedFolder, *, fold: str, sides: MirroredSides | None = None
) -> dict[str, Any]:
    """Collect everything that a checkpoint needs for prediction."""
    manifest = folder.manifest
    stored: dict[str, Any] = {
        "run": config.as_json(),
        "fold": fold,
        "dataset": manifest.name,
        "structures": dict(manifest.structures),
        "licence": manifest.licence,
        "reference": manifest.reference,
    }
    if not config.preprocess.build().is_complete:  # its statistics were found in these cases
        stored["recipe"] = _recipe_as_read(folder.recipe)
    return stored if sides is None else stored | {"sides": sides.to_json()}


def complete_config(stored: Any, *, current: RunConfig | None = None) -> Any:
    """Fill missing keys of a stored configuration with defaults.

    A part that cannot be read, for example because it has a key that was removed since, is returned unchanged.

    Args:
        stored: the configuration of a checkpoint.
        current: of a run that continues it; the keys without effect on the result are taken from here.
    """
    if not isinstance(stored, Mapping):
        return stored
    complete: dict[str, Callable[[Any], Any]] = {
        "run": partial(complete_run, current=current),
        "recipe": _complete_recipe,
    }
    return {key: complete[key](value) if key in complete else value for key, value in stored.items()}


def complete_run(stored: Any, *, current: RunConfig | None = None) -> Any:
    """Fill missing keys of the ``run`` of a stored configuration with defaults."""
    try:
        run = validate(stored, source="a checkpoint").as_json()
    except UsageError:
        return stored
    free = {} if current is None else {key: current.as_json()["training"][key] for key in FREE}
    return run | {"training": run["training"] | free}


def _complete_recipe(stored: Any) -> Any:
    try:
        return _recipe_as_read(PreprocessRecipe.from_json(stored))
    except (AttributeError, TypeError, ValueError):
        return stored


def _recipe_as_read(recipe: PreprocessRecipe) -> Any:
    """Convert a recipe to what JSON text returns: lists in place of tuples."""
    return json.loads(json.dumps(recipe.to_json()))


def _checkpoints_by_fold(run: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for folder in fold_folders(run):
        if path := newest_checkpoint(folder.path):
            found.setdefault(folder.fold, []).append(path)
    return found


def _stored_config_of_all(checkpoints: Mapping[Path, Checkpoint]) -> dict[str, Any]:
    """Return the first checkpoint's configuration, if all can be averaged with it."""
    first: dict[str, Any] = {}
    for path, checkpoint in checkpoints.items():
        stored = checkpoint.config
        if not (isinstance(stored, dict) and {"run", "structures"} <= stored.keys()):
            fix = "load its weights (read_checkpoint(path).net) into your network and pass that to a Predictor"
            raise UsageError("MODEL", got=path, expected="a checkpoint of uumamba train", fix=fix)
        first = first or stored
        # A key may be missing because the fold was trained by another version.
        require(
            _prediction_parts(stored) == _prediction_parts(first)
            or _prediction_parts(complete_config(stored)) == _prediction_parts(complete_config(first)),
            "MODEL",
            got=path,
            expected=f"the network, preparation and structures of {next(iter(checkpoints))}, to be averaged with it",
            fix="predict with one fold",
        )
    return first


def _prediction_parts(stored: Mapping[str, Any]) -> list[Any]:
    """List the parts that folds must share to be averaged."""
    run = [stored["run"].get(part) for part in ("net", "preprocess", "training", "quantization")]
    return [*run, *(stored.get(key) for key in ("structures", "sides", "recipe"))]


def _trained_net(config: RunConfig, checkpoint: Checkpoint, path: Path, *, classes: int) -> nn.Module:
    """Build a checkpoint's network, with its averaged weights where training kept an average."""
    with torch.random.fork_rng(devices=[]):  # the fresh weights are replaced; keep the caller's random state
        net = config.net.build(in_channels=1, out_channels=classes, patch_size=config.training.patch_size)
        if config.quantization is not None:
            config.quantization.build(net)
    try:
        net.load_state_dict(checkpoint.ema if checkpoint.ema is not None else checkpoint.net)
    except RuntimeError as error:
        got = shorten(str(error), width=240, placeholder=" ...")
        raise UsageError(
            str(path), got=got, expected="the weights of its own configuration", fix="train again"
        ) from None
    return net.eval()


def _warn_if_unfinished(config: RunConfig, checkpoint: Checkpoint, net: nn.Module, path: Path) -> None:
    """Warn of missing epochs and of weights that are not quantized yet; ``best`` may be of any epoch."""
    from uumamba.quantization import quantized_layers

    done, epochs = checkpoint.progress["epochs_done"], config.training.epochs
    if done < epochs and path.name != BEST:
        text = f"{path} has done {done} of {epochs} epochs; finish it with `uumamba train --resume`."
        warnings.warn(text, stacklevel=3)
    if config.quantization is None:
        return
    if any(layer.weight is not None and layer.weight.is_delayed for layer in quantized_layers(net)):
        text = (
            f"{path} predicts in full precision, since quantization starts at step {config.quantization.start_step} of "
            "training; take a later checkpoint, or continue with `uumamba train --resume`."
        )
        warnings.warn(text, stacklevel=3)


def _preprocess(
    image: Any, *, spacing_mm: Any, affine: Any, case_id: str, recipe: Any, sides: MirroredSides | None
) -> tuple[Any, Any]:
    array, _, geometry = preprocess(image, spacing_mm=spacing_mm, affine=affine, recipe=recipe, case_id=case_id)
    if sides is not None:
        sides.check(geometry, case_id=case_id)
    return array, geometry
