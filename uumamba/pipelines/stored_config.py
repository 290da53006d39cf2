"""What a checkpoint says of its run: written with nothing left out, and read as today's program means it."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from uumamba.config import RunConfig
from uumamba.config.load import validate
from uumamba.data.prepared import PreparedFolder
from uumamba.data.preprocess import PreprocessRecipe
from uumamba.pipelines.sides import SidedRun
from uumamba.runtime.errors import UsageError


def stored_config(
    config: RunConfig, folder: PreparedFolder, *, fold: str, sides: SidedRun | None = None
) -> dict[str, Any]:
    """What a checkpoint must hold to predict with nothing else at hand."""
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
        stored["recipe"] = _as_read(folder.recipe)
    return stored if sides is None else stored | {"sides": sides.to_json()}


FREE = ("workers", "save_every_minutes")
"""Keys of ``training`` that change nothing in the result, so a run may go on with others."""


def complete_config(stored: Any, *, today: RunConfig | None = None) -> Any:
    """A checkpoint's configuration with every key that has come since at its default, which is what its run did.

    A part that this program cannot read, such as one with a key that is gone, is given back as it is.

    Args:
        stored: the configuration of the checkpoint.
        today: the run's that would go on from it; the keys that change nothing in the result are taken from here.
    """
    if not isinstance(stored, Mapping):
        return stored
    complete: dict[str, Callable[[Any], Any]] = {"run": partial(complete_run, today=today), "recipe": _complete_recipe}
    return {key: complete[key](value) if key in complete else value for key, value in stored.items()}


def complete_run(stored: Any, *, today: RunConfig | None = None) -> Any:
    """The ``run`` of a checkpoint's configuration, completed likewise."""
    try:
        run = validate(stored, source="a checkpoint").as_json()
    except UsageError:
        return stored
    free = {} if today is None else {key: today.as_json()["training"][key] for key in FREE}
    return run | {"training": run["training"] | free}


def _complete_recipe(stored: Any) -> Any:
    try:
        return _as_read(PreprocessRecipe.from_json(stored))
    except (AttributeError, TypeError, ValueError):
        return stored


def _as_read(recipe: PreprocessRecipe) -> Any:
    """As it is when it comes back from JSON text: lists in place of tuples."""
    return json.loads(json.dumps(recipe.to_json()))
