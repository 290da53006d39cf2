"""Trained models: predictors and initial weights.

A model is an output folder of ``uumamba run``, a run folder, a fold folder, a checkpoint file, or the name of a model
in the package.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import uumamba
from uumamba.config.case_split import ALL_CASES, FOLDS
from uumamba.config.initial_weights import copy_weights
from uumamba.config.load import validate
from uumamba.config.stored_config import find_shared_config, read_fingerprint, stored_channels
from uumamba.config.stored_net import load_net
from uumamba.config.training import resolve_precision
from uumamba.data.case_figures import measure_prediction
from uumamba.data.channels import ONE_CHANNEL
from uumamba.data.geometry import Geometry
from uumamba.data.label_scheme import LabelScheme, number_classes
from uumamba.data.preprocess import Preprocessing, PreprocessRecipe
from uumamba.data.restored_planes import restore_planes
from uumamba.inference import PlaneImage, Predictor, select_planes
from uumamba.nets import Mamba, ResEncUNet, UMambaBot, UMambaEnc
from uumamba.ops.scan_backends import describe_fallback
from uumamba.pipelines.mirrored_sides import MirroredSides
from uumamba.pipelines.postprocessing import make_postprocess, read_choice
from uumamba.pipelines.run_layout import fold_folders, newest_checkpoint
from uumamba.runtime.case_boundary import fail_case_on_error
from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.files import describe_path
from uumamba.training.checkpoint import read_checkpoint
from uumamba.training.run_folder import LAST
from uumamba.types import LabelMap

SHIPPED = Path(uumamba.__file__).parent / "models"
BACKGROUND = "background"
WEIGHTS_NAME, CARD_NAME, LICENCE_NAME = "model.safetensors", "CARD.md", "LICENSE"


def load_predictor(
    model: Path | str,
    *,
    device: str = "cpu",
    fold: str | None = None,
    mirror: bool | None = None,
    memory_limit_gb: float | None = None,
) -> Predictor:
    """Load a model's predictor, the mean of its folds and seeds.

    A fold folder's model is its ``last.safetensors``: the final weights. ``best.safetensors`` was chosen on the
    validation cases, so its scores on them are too high; pass that file to use it.

    Args:
        model: output folder of ``uumamba run``, run folder, fold folder, checkpoint file or name of a shipped model.
        device: device for prediction.
        fold: one fold of a run instead of all.
        mirror: average over the axes that training mirrored; None takes the run's configuration.
        memory_limit_gb: size of the process in 10^9 bytes to which prediction on the CPU keeps; by default 4 where it
            can.

    Raises:
        UsageError: the model has no checkpoint or none of that fold, the folds belong to different runs, or a
            checkpoint was not made by ``uumamba train``.

    Example:
        >>> predictor = load_predictor("acdc")  # a shipped model  # doctest: +SKIP
        >>> prediction = predictor(image, spacing_mm=(1.5, 1.5, 10.0))  # doctest: +SKIP
    """
    checkpoints = {path: read_checkpoint(path, map_location=device) for path in checkpoint_paths(model, fold=fold)}
    stored = find_shared_config({path: each.config for path, each in checkpoints.items()})
    config = validate(stored["run"], source=str(next(iter(checkpoints))))
    labels, channels = LabelScheme.from_json(stored), stored_channels(stored)
    nets = [
        load_net(config, checkpoint, path, classes=labels.outputs, channels=len(channels)).to(device)
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
        modality=recipe.modality,
        preprocess=partial(_preprocess, recipe=recipe, sides=sides),
        restore_planes=partial(restore_planes, painted=labels.painted),
        postprocess=make_postprocess(kept, number_classes(labels.structures)),
        inspect=_make_inspection([each.config for each in checkpoints.values()], number_classes(labels.structures)),
        structures=labels.structures,
        colours=labels.colours,
        output_names=tuple(labels.regions)
        or (BACKGROUND, *sorted(labels.structures, key=labels.structures.__getitem__)),
        painted=labels.painted,
        mirror_axes=config.augment.mirror_axes if averages else (),
        mirror_swaps=sides.swaps(config.training.patch_size) if sides is not None and averages else None,
        overlap=config.inference.overlap,
        sw_batch_size=config.inference.windows_at_once,
        device=device,
        precision=resolve_precision(config.inference.precision, device),
        # Another layout rounds otherwise, and an activation at the edge of a level would change by a whole step.
        channels_last=config.quantization is None
        and _is_faster_channels_last(nets[0], config.training.patch_size, device),
        memory_limit_gb=memory_limit_gb,
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

    Rules and arguments are those of :func:`uumamba.config.initial_weights.copy_weights`.

    Args:
        net: newly initialised; changed.
        model: a model of one fold.
        quantize: called once with a network that shall be quantized.
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
    return copy_weights(
        net, read_checkpoint(paths[0]), model=str(model), quantize=quantize, channels=channels, labels=labels
    )


def warn_of_slow_scan(net: nn.Module, device: str) -> None:
    """Warn once per process if a network's scans have no kernel."""
    fallback = describe_fallback(torch.device(device).type)
    if fallback is not None and any(isinstance(module, Mamba) for module in net.modules()):
        _warn_once(fallback)


def checkpoint_paths(model: Path | str, *, fold: str | None = None, key: str = "MODEL") -> list[Path]:
    """List a model's checkpoints: one per fold and seed.

    Args:
        model: output folder of ``uumamba run``, run folder, fold folder, checkpoint file or name of a shipped model. A
            path with a checkpoint comes first, with a warning.
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
    if str(model) in shipped_models() and (folds or model.is_file() or newest_checkpoint(model)):
        _warn_once(
            f"{key}: {model} is your path of this name, not the shipped model. Fix: for that, give {SHIPPED / model}"
        )
    if not folds:
        path = model if model.is_file() else newest_checkpoint(model) or _find_shipped(model)
        if path is None:
            raise UsageError(
                key,
                got=describe_path(model),
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


def list_shipped() -> Iterator[dict[str, str]]:
    """List name, structures, data, size and licence of each shipped model."""
    for name in shipped_models():
        path = SHIPPED / name / WEIGHTS_NAME
        stored = read_checkpoint(path).config
        yield {
            "name": name,
            "structures": ", ".join(stored["structures"]),
            "data": stored["dataset"],
            "size": f"{path.stat().st_size / 1e6:.1f} MB",
            "licence of the weights": stored["licence"].partition(" (")[0],
            "card": str(path.with_name(CARD_NAME)),
        }


def find_card(model: Path | str) -> Path | None:
    """Find the card of a shipped model; None for other models."""
    path = checkpoint_paths(model)[0]
    return path.with_name(CARD_NAME) if path.name == WEIGHTS_NAME and path.is_relative_to(SHIPPED) else None


def _is_faster_channels_last(net: nn.Module, patch_size: Sequence[int], device: str) -> bool:
    """Return whether a network predicts faster with channels-last feature maps.

    Measured on CPUs for 2-D networks whose norms and Mamba layers keep the layout.
    """
    keeps_layout = isinstance(net, ResEncUNet | UMambaBot | UMambaEnc)
    return keeps_layout and len(patch_size) == 2 and torch.device(device).type == "cpu"


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


def _make_inspection(
    configs: Sequence[Mapping[str, Any]], classes: Mapping[str, int]
) -> Callable[[Any, LabelMap, Geometry], list[str]] | None:
    """Make the comparison of an input with the model's fingerprint."""
    fingerprint = read_fingerprint(configs)

    def inspect(image: Any, label: LabelMap, geometry: Geometry) -> list[str]:
        assert fingerprint is not None, "only a model with a fingerprint inspects"
        read = partial(select_planes, image)
        return fingerprint.describe_outside(measure_prediction(read, label, geometry=geometry, classes=classes))

    return None if fingerprint is None else inspect


def _preprocess(
    image: Any, *, spacing_mm: Any, affine: Any, case_id: str, recipe: Any, sides: MirroredSides | None
) -> tuple[Any, Any]:
    with fail_case_on_error(case_id, "image"):
        work = Preprocessing(image, spacing_mm=spacing_mm, affine=affine, recipe=recipe, case_id=case_id)
    if sides is not None:
        sides.check(work.geometry, case_id=case_id)

    def list_planes() -> Iterator[Any]:
        with fail_case_on_error(case_id, "image"):
            yield from work.image_planes()

    return PlaneImage((work.channels, *work.geometry.prepared_shape), list_planes), work.geometry
