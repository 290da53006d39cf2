"""Trained models: predictors, initial weights and stored configurations.

A model is an output folder of ``uumamba run``, a run folder, a fold folder, a checkpoint file, or the name of a model
in the package.
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

import uumamba
from uumamba.config import RunConfig
from uumamba.config.load import validate
from uumamba.config.net import reads_values
from uumamba.config.training import resolve_precision
from uumamba.data.case import number_classes
from uumamba.data.channels import ONE_CHANNEL, describe_channels
from uumamba.data.label_scheme import LabelScheme
from uumamba.data.prepared import PreparedFolder
from uumamba.data.preprocess import PreprocessRecipe, preprocess, restore, restore_probabilities
from uumamba.inference import Predictor
from uumamba.nets import Mamba
from uumamba.ops.scan_backends import describe_fallback
from uumamba.pipelines.mirrored_sides import MirroredSides
from uumamba.pipelines.postprocessing import make_postprocess, read_choice
from uumamba.pipelines.run_layout import ALL_CASES, FOLDS, fold_folders, newest_checkpoint
from uumamba.quantization import holds_scales, quantized_layers
from uumamba.runtime.case_boundary import fail_case_on_error
from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.memory_shortage import summarize_error
from uumamba.training.checkpoint import Checkpoint, read_checkpoint
from uumamba.training.run_folder import BEST, LAST

HEADS = "seg_layers"
WEIGHT, QUANTIZER = "parametrizations.weight.original", "parametrizations.weight.0."
STEPS_LEFT = f"{QUANTIZER}steps_left"
SHIPPED = Path(uumamba.__file__).parent / "models"
WEIGHTS_NAME, CARD_NAME, LICENCE_NAME = "model.safetensors", "CARD.md", "LICENSE"
_MOST_TIMES = 4
"""Registered parameters per stored one while a network is built; tied and replaced parameters register twice."""
FREE = ("workers", "save_every_minutes")
"""Keys of ``training`` without effect on the weights; like ``inference`` they may change when a run is resumed."""


def load_predictor(
    model: Path | str, *, device: str = "cpu", fold: str | None = None, mirror: bool | None = None
) -> Predictor:
    """Load a model's predictor, the mean of its folds and seeds.

    A fold folder's model is its ``last.safetensors``: the final weights. ``best.safetensors`` was chosen on the
    validation cases, so its scores on them are too high; pass that file to use it.

    Args:
        model: output folder of ``uumamba run``, run folder, fold folder, checkpoint file or name of a shipped model.
        device: device for prediction.
        fold: one fold of a run instead of all.
        mirror: average over the axes that training mirrored; None takes the run's configuration.

    Raises:
        UsageError: the model has no checkpoint or none of that fold, the folds belong to different runs, or a
            checkpoint was not made by ``uumamba train``.

    Example:
        >>> predictor = load_predictor("acdc")  # a shipped model  # doctest: +SKIP
        >>> prediction = predictor(image, spacing_mm=(1.5, 1.5, 10.0))  # doctest: +SKIP
    """
    checkpoints = {path: read_checkpoint(path, map_location=device) for path in checkpoint_paths(model, fold=fold)}
    stored = _find_shared_config(checkpoints)
    config = validate(stored["run"], source=str(next(iter(checkpoints))))
    labels, channels = LabelScheme.from_json(stored), stored_channels(stored)
    nets = [
        _load_net(config, checkpoint, path, classes=labels.outputs, channels=len(channels)).to(device)
        for path, checkpoint in checkpoints.items()
    ]
    warn_of_slow_scan(nets[0], device)
    recipe = PreprocessRecipe.from_json(stored["recipe"]) if "recipe" in stored else config.preprocess.build()
    averages = config.inference.mirror if mirror is None else mirror
    sides = MirroredSides.from_json(stored["sides"]) if "sides" in stored else None
    kept = config.inference.list_postprocess(structures=labels.structures, regions=labels.regions) or read_choice(
        [path.parent for path in checkpoints]
    )
    return Predictor(
        nets,
        patch_size=config.training.patch_size,
        neighbour_slices=config.training.neighbour_slices,
        channels=channels,
        preprocess=partial(_preprocess, recipe=recipe, sides=sides),
        restore=partial(restore, painted=labels.painted),
        restore_probabilities=partial(restore_probabilities, has_background=not labels.regions),
        postprocess=make_postprocess(kept, number_classes(labels.structures)),
        structures=labels.structures,
        painted=labels.painted,
        mirror_axes=config.augment.mirror_axes if averages else (),
        mirror_swaps=sides.swaps(config.training.patch_size) if sides is not None and averages else None,
        overlap=config.inference.overlap,
        sw_batch_size=config.inference.windows_at_once,
        device=device,
        precision=resolve_precision(config.inference.precision, device),
    )


def load_initial_weights(
    net: nn.Module,
    model: Path | str,
    *,
    quantize: Callable[[nn.Module], Any] | None = None,
    channels: Sequence[str] = ONE_CHANNEL,
    labels: LabelScheme | None = None,
) -> list[str]:
    """Copy a trained model's weights into a network of the same architecture.

    Segmentation heads with another number of classes keep their random initial weights, with one warning, and so do all
    heads where only one of model and network has regions, since their outputs have other meanings. Any other
    difference raises, since a half-loaded network trains worse than a new one. The number of steps until quantization
    starts is not copied. Weights that were not quantized yet count as weights in full precision.

    Args:
        net: newly initialised; changed.
        model: a model of one fold.
        quantize: called once with a network that shall be quantized: after weights in full precision were copied, so
            that scales start from them, or before quantized weights are copied with their scales.
        channels: names of the channels of the network's images.
        labels: labels that the network is for; None compares only the numbers of outputs.

    Returns:
        Names of the weights that keep their initial values.

    Raises:
        UsageError: the model has no checkpoint, several folds, another architecture, another number or order of
            channels, or other bit widths.
    """
    paths = checkpoint_paths(model, key="--init")
    require(
        len(paths) == 1,
        "--init",
        got=f"{model} with {len(paths)} folds",
        expected=f"a model of one fold, such as {paths[0].parent}",
    )
    checkpoint = read_checkpoint(paths[0])
    given_channels = stored_channels(checkpoint.config)
    is_reordered = given_channels != tuple(channels) and sorted(given_channels) == sorted(channels)
    require(
        len(given_channels) == len(channels) and not is_reordered,
        "--init",
        got=f"{model} of {describe_channels(given_channels)}",
        expected=f"a model of {len(channels)} channels, as the data set: {describe_channels(channels)}",
        fix="choose another model, or train without --init",
    )
    source = _drop_steps_left(_prediction_weights(checkpoint))
    is_quantized = holds_scales(source)
    require(
        quantize or not is_quantized,
        "--init",
        got=f"{model} (quantized)",
        expected="weights in full precision, or the same quantization in this run",
    )
    if quantize is not None and is_quantized:
        quantize(net)
    target = {name: value for name, value in net.state_dict().items() if not name.endswith(STEPS_LEFT)}
    given, own = ({name: tuple(value.shape) for name, value in state.items()} for state in (source, target))
    different = [name for name in sorted(given.keys() | own.keys()) if given.get(name) != own.get(name)]
    for name in different:
        require(
            HEADS in name and not _is_part_of_one_head(name, source, target),
            "--init",
            got=f"{model} with {name} of shape {given.get(name)}",
            expected=f"the shape {own.get(name)}",
            fix="use the same net and quantization settings",
        )
    if labels is not None and bool(labels.regions) != _has_regions(checkpoint):
        heads = [name for name in own if HEADS in name]
        is_known = f"a model of {'regions' if labels.regions else 'structures'}, as in the data set"
        require(heads, "--init", got=model, expected=is_known)
        different = sorted({*different, *heads})
    if different:
        warnings.warn(f"--init {model}: the heads {', '.join(different)} start fresh (other classes).", stacklevel=2)
    initial = {*different, *(name.replace(WEIGHT, f"{QUANTIZER}scale") for name in different if name.endswith(WEIGHT))}
    try:
        net.load_state_dict({name: source[name] for name in source if name not in initial}, strict=False)
    except RuntimeError as error:
        raise UsageError(
            "--init",
            got=f"{model} ({shorten(str(error), width=240, placeholder=' ...')})",
            expected="weights in full precision or in the bit widths of this run",
        ) from None
    if quantize is not None and not is_quantized:
        quantize(net)
    return different


def _has_regions(checkpoint: Checkpoint) -> bool:
    return isinstance(checkpoint.config, Mapping) and bool(checkpoint.config.get("regions"))


def warn_of_slow_scan(net: nn.Module, device: str) -> None:
    """Warn once per process if a network's scans have no kernel."""
    fallback = describe_fallback(torch.device(device).type)
    if fallback is not None and any(isinstance(module, Mamba) for module in net.modules()):
        _warn_once(fallback)


def checkpoint_paths(model: Path | str, *, fold: str | None = None, key: str = "MODEL") -> list[Path]:
    """List a model's checkpoints: one per fold and seed.

    Args:
        model: output folder of ``uumamba run``, run folder, fold folder, checkpoint file or name of a shipped model. A
            path with a checkpoint comes first.
        fold: only this fold of a run.
        key: option or argument that names the model, for errors.

    Raises:
        UsageError: the model has no checkpoint, or the fold is unknown, not trained, or selected of a single fold's
            model.
    """
    model = Path(model)
    known = (*FOLDS, ALL_CASES)
    require(fold is None or fold in known, "--fold", got=fold, expected=f"one of {', '.join(known)}")
    folds = _checkpoints_by_fold(model) or _checkpoints_by_fold(model / "run")
    if not folds:
        path = model if model.is_file() else newest_checkpoint(model) or _find_shipped(model)
        if path is None:
            raise UsageError(
                key,
                got=model,
                expected=f"a run folder, a fold folder with {LAST}, a checkpoint file or one of the shipped models: "
                + (", ".join(shipped_models()) or "none"),
                fix="train it first" if model.exists() else "correct the path",
            )
        require(fold is None, "--fold", got=fold, expected=f"no fold with {model}, the model of one fold")
        return [path]
    require(
        fold is None or fold in folds,
        "--fold",
        got=fold,
        expected=f"a trained fold of {model}: {', '.join(folds)}",
    )
    return [path for name, paths in folds.items() if fold in (None, name) for path in paths]


def shipped_models() -> list[str]:
    """List the names of the models in the package.

    Each is a folder ``uumamba/models/<name>`` with weights, a card and the licence of the weights.
    """
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{WEIGHTS_NAME}"))


def find_card(model: Path | str) -> Path | None:
    """Find the card of a shipped model; None for other models."""
    path = checkpoint_paths(model)[0]
    return path.with_name(CARD_NAME) if path.name == WEIGHTS_NAME and path.is_relative_to(SHIPPED) else None


def stored_config(
    config: RunConfig, folder: PreparedFolder, *, fold: str, sides: MirroredSides | None = None
) -> dict[str, Any]:
    """Collect everything that a checkpoint needs for prediction."""
    manifest = folder.manifest
    stored: dict[str, Any] = {
        "run": config.as_json(),
        "fold": fold,
        "dataset": manifest.name,
        **LabelScheme.from_manifest(manifest).to_json(),
        "licence": manifest.licence,
        "reference": manifest.reference,
    }
    if not config.preprocess.build().is_complete:  # its statistics were computed from these cases
        stored["recipe"] = recipe_to_json(folder.recipe)
    if len(manifest.channels) > 1:
        stored["channels"] = list(manifest.channels)
    return stored if sides is None else stored | {"sides": sides.to_json()}


def stored_channels(config: Any) -> tuple[str, ...]:
    """Return the names of the channels in a checkpoint's configuration.

    Only models of several channels store them.
    """
    names = config.get("channels") if isinstance(config, Mapping) else None
    return tuple(map(str, names)) if isinstance(names, list) else ONE_CHANNEL


def complete_config(stored: Any, *, current: RunConfig | None = None, labels: LabelScheme | None = None) -> Any:
    """Fill missing keys of a stored configuration with defaults.

    A part that cannot be read, for example because of a key that was removed since, is returned unchanged.

    Args:
        stored: the configuration of a checkpoint.
        current: configuration of the run that resumes; it gives the keys without effect on the result.
        labels: labels of the run that resumes; their colours may have changed.
    """
    if not isinstance(stored, Mapping):
        return stored
    complete = dict(stored)
    if labels is not None:
        complete = {key: value for key, value in complete.items() if key != "colours"}
        complete |= {"colours": dict(labels.colours)} if labels.colours else {}
    if "run" in stored:
        complete["run"] = complete_run(stored["run"], current=current)
    with suppress(AttributeError, KeyError, TypeError, ValueError):
        complete["recipe"] = recipe_to_json(PreprocessRecipe.from_json(stored["recipe"]))
    return complete


def complete_run(stored: Any, *, current: RunConfig | None = None) -> Any:
    """Fill missing keys of a stored configuration's ``run`` with defaults."""
    try:
        run = validate(stored, source="a checkpoint").as_json()
    except UsageError:
        return stored
    if current is None:
        return run
    now = current.as_json()
    free = {key: now["training"][key] for key in FREE}
    return run | {"training": run["training"] | free, "inference": now["inference"]}


def recipe_to_json(recipe: PreprocessRecipe) -> Any:
    """Convert a recipe to JSON values: lists in place of tuples."""
    return json.loads(json.dumps(recipe.to_json()))


@cache
def _warn_once(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def _find_shipped(model: Path) -> Path | None:
    return SHIPPED / model / WEIGHTS_NAME if str(model) in shipped_models() else None


def _checkpoints_by_fold(run: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for folder in fold_folders(run):
        if path := newest_checkpoint(folder.path):
            found.setdefault(folder.fold, []).append(path)
    return found


def _find_shared_config(checkpoints: Mapping[Path, Checkpoint]) -> dict[str, Any]:
    """Return the first configuration after a check that all can be averaged."""
    first: dict[str, Any] = {}
    for path, checkpoint in checkpoints.items():
        stored = checkpoint.config
        require(
            isinstance(stored, dict) and isinstance(stored.get("run"), dict) and _reads_labels(stored),
            "MODEL",
            got=path,
            expected="a checkpoint of uumamba train",
            fix="load read_checkpoint(path).net into your network, and build a Predictor of the network",
        )
        first = first or stored
        # Compared again with defaults, since a fold trained by another version may lack a key.
        require(
            _prediction_parts(stored) == _prediction_parts(first)
            or _prediction_parts(complete_config(stored)) == _prediction_parts(complete_config(first)),
            "MODEL",
            got=path,
            expected=f"the network, preparation and structures of {next(iter(checkpoints))}",
            fix="predict with one fold",
        )
    return first


def _reads_labels(stored: Mapping[str, Any]) -> bool:
    try:
        return bool(LabelScheme.from_json(stored))
    except (ValueError, UsageError):
        return False


def _prediction_parts(stored: Mapping[str, Any]) -> list[Any]:
    """List the parts of a configuration that averaged folds must share."""
    return [
        *(stored["run"].get(part) for part in ("net", "preprocess", "training", "quantization")),
        *(stored.get(key) for key in ("structures", "regions", "regions_class_order", "sides", "recipe", "channels")),
    ]


def _load_net(config: RunConfig, checkpoint: Checkpoint, path: Path, *, classes: int, channels: int) -> nn.Module:
    """Build a checkpoint's network with its weights for prediction."""
    weights = _prediction_weights(checkpoint)
    build = partial(_build_like, config, weights, path, classes=classes, channels=channels)
    if not reads_values(config.net):
        with torch.device("meta"):  # takes no memory
            _check_shapes(build(), weights, path)
    net = build()
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise UsageError(
            str(path),
            got=shorten(str(error), width=240, placeholder=" ..."),
            expected="the weights of the network in its configuration",
            fix="train again",
        ) from None
    _warn_if_unfinished(config, checkpoint, net, path)
    return net.eval()


def _build_like(config: RunConfig, weights: Mapping[str, Any], path: Path, *, classes: int, channels: int) -> nn.Module:
    """Build a configuration's network, not larger than the stored weights.

    A configuration in a file may ask for any size, so building ends at the first parameter too many.
    """
    most = sum(tensor.numel() for tensor in weights.values())
    built = {"tensors": 0, "numbers": 0}

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        built["tensors"] += parameter is not None
        built["numbers"] += 0 if parameter is None else parameter.numel()
        require(
            built["numbers"] <= _MOST_TIMES * most and built["tensors"] <= _MOST_TIMES * len(weights),
            str(path),
            got=f"a configuration of a network with more than the {most} stored weights",
            expected="the weights of the network in its configuration",
            fix="use an unchanged checkpoint",
        )

    # Kept are the caller's random state, since the initial weights are replaced, and other networks being built.
    with torch.random.fork_rng(devices=[]):
        hook = register_module_parameter_registration_hook(count)
        try:
            net = config.build_net(classes=classes, channels=channels)
            if config.quantization is not None:
                config.quantization.bind()(net)
        except UsageError:
            raise
        except (AssertionError, MemoryError, RuntimeError, TypeError, ValueError) as error:
            got, expected = f"a network that cannot be built ({summarize_error(error)})", "a network's configuration"
            raise UsageError(str(path), got=got, expected=expected, fix="use an unchanged checkpoint") from None
        finally:
            hook.remove()
    return net


def _check_shapes(net: nn.Module, weights: Mapping[str, Any], path: Path) -> None:
    own, given = ({name: tuple(value.shape) for name, value in state.items()} for state in (net.state_dict(), weights))
    for name in sorted(own.keys() | given.keys()):
        require(
            own.get(name) == given.get(name),
            str(path),
            got=f"{name} of shape {given.get(name, 'none')}",
            expected=f"the shape {own.get(name, 'none')} of the network in its configuration",
            fix="use an unchanged checkpoint, or train again",
        )


def _prediction_weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the moving average of the weights, or without one the weights."""
    return checkpoint.ema if checkpoint.ema is not None else checkpoint.net


def _warn_if_unfinished(config: RunConfig, checkpoint: Checkpoint, net: nn.Module, path: Path) -> None:
    """Warn of missing epochs and of weights that are not quantized yet.

    ``best`` may be of any epoch.
    """
    done, epochs = checkpoint.progress["epochs_done"], config.training.epochs
    if done < epochs and path.name != BEST:
        warnings.warn(
            f"{path} has done {done} of {epochs} epochs; finish the training with `uumamba train --resume`.",
            stacklevel=2,
        )
    if any(layer.weight is not None and layer.weight.is_delayed for layer in quantized_layers(net)):
        warnings.warn(
            f"{path} predicts in full precision, since it was saved before the first step with quantization; use a "
            "later checkpoint, or continue with `uumamba train --resume`.",
            stacklevel=2,
        )


def _drop_steps_left(state: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the numbers of steps until quantization.

    Weights with steps left are in full precision; their unused scales are also dropped.
    """
    if any(name.endswith(STEPS_LEFT) and left > 0 for name, left in state.items()):
        return {name.replace(WEIGHT, "weight"): value for name, value in state.items() if QUANTIZER not in name}
    return {name: value for name, value in state.items() if not name.endswith(STEPS_LEFT)}


def _is_part_of_one_head(name: str, source: Mapping[str, Any], target: Mapping[str, Any]) -> bool:
    """Return whether two networks share a head but not this part.

    This is so where only one network is quantized.
    """
    if name in source and name in target:
        return False
    parts = name.split(".")
    head = ".".join(parts[: parts.index(HEADS) + 2]) + "."
    return all(any(other.startswith(head) for other in state) for state in (source, target))


def _preprocess(
    image: Any, *, spacing_mm: Any, affine: Any, case_id: str, recipe: Any, sides: MirroredSides | None
) -> tuple[Any, Any]:
    with fail_case_on_error(case_id, "image"):
        array, _, geometry = preprocess(image, spacing_mm=spacing_mm, affine=affine, recipe=recipe, case_id=case_id)
    if sides is not None:
        sides.check(geometry, case_id=case_id)
    return array, geometry
