"""Configuration in a checkpoint, which prediction needs in addition to the weights."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from uumamba.config.load import validate
from uumamba.config.run_config import RunConfig
from uumamba.data.channels import ONE_CHANNEL
from uumamba.data.fingerprint import Fingerprint, fingerprint_cases
from uumamba.data.label_scheme import LabelScheme
from uumamba.data.prepared import PreparedFolder
from uumamba.data.recipe import PreprocessRecipe
from uumamba.runtime.errors import UsageError, require

FINGERPRINT = "fingerprint"
FREE = ("workers", "save_every_minutes")
"""Keys of ``training`` without effect on the weights; like ``inference`` they may change when a run is resumed."""


def stored_config(
    config: RunConfig,
    folder: PreparedFolder,
    *,
    fold: str,
    sides: Mapping[str, Any] | None = None,
    training_ids: Sequence[str] = (),
) -> dict[str, Any]:
    """Collect everything that a checkpoint needs for prediction.

    Args:
        config: the run.
        folder: its prepared cases.
        fold: the trained fold.
        sides: left/right axes and swapped labels as JSON values; None if no structure has a side.
        training_ids: cases of the fingerprint.
    """
    manifest = folder.manifest
    stored: dict[str, Any] = {
        "run": config.as_json(),
        "fold": fold,
        "dataset": manifest.name,
        **manifest.labels.to_json(),
        "licence": manifest.licence,
        "reference": manifest.reference,
    }
    if not config.preprocess.build().is_complete:  # its statistics were computed from these cases
        stored["recipe"] = folder.recipe.to_json()
    if len(manifest.channels) > 1:
        stored["channels"] = list(manifest.channels)
    fingerprint = fingerprint_cases(folder, training_ids)
    if fingerprint is not None:
        stored[FINGERPRINT] = fingerprint.to_json()
    return stored if sides is None else stored | {"sides": dict(sides)}


def read_fingerprint(configs: Iterable[Mapping[str, Any]]) -> Fingerprint | None:
    """Read the fingerprint of a model from its checkpoints' configurations.

    None if a checkpoint has none, for example one of an older version.

    Raises:
        UsageError: a fingerprint is damaged.
    """
    stored = [each.get(FINGERPRINT) for each in configs]
    if not stored or None in stored:
        return None
    try:
        return Fingerprint.merge([Fingerprint.from_json(each) for each in stored])
    except ValueError as error:
        raise UsageError("MODEL", got=error, expected="the fingerprint of a training", fix="train again") from None


def stored_channels(config: Any) -> tuple[str, ...]:
    """Return the names of the channels in a checkpoint's configuration.

    Only models of several channels store them.
    """
    names = config.get("channels") if isinstance(config, Mapping) else None
    return tuple(map(str, names)) if isinstance(names, list) else ONE_CHANNEL


def has_regions(stored: Any) -> bool:
    """Return whether a checkpoint's configuration has regions."""
    return isinstance(stored, Mapping) and bool(stored.get("regions"))


def find_shared_config(configs: Mapping[Path, Any]) -> dict[str, Any]:
    """Return the first configuration after a check that all can be averaged.

    Args:
        configs: configuration of each checkpoint, by file.

    Raises:
        UsageError: a configuration is not one of ``uumamba train``, or differs from the first in network, preparation
            or structures.
    """
    first: dict[str, Any] = {}
    for path, stored in configs.items():
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
            expected=f"the network, preparation and structures of {next(iter(configs))}",
            fix="predict with one fold",
        )
    return first


def complete_config(
    stored: Any,
    *,
    current: RunConfig | None = None,
    labels: LabelScheme | None = None,
    fingerprint: Any = None,
) -> Any:
    """Fill missing keys of a stored configuration with defaults.

    A part that cannot be read, for example because of a key that was removed since, is returned unchanged.

    Args:
        stored: the configuration of a checkpoint.
        current: configuration of the run that resumes; it gives the keys without effect on the result.
        labels: labels of the run that resumes; their colours may have changed.
        fingerprint: fingerprint of the run that resumes, as JSON; an older version stored none, or another one.
    """
    if not isinstance(stored, Mapping):
        return stored
    complete = {key: value for key, value in stored.items() if key != FINGERPRINT}
    if fingerprint is not None:
        complete[FINGERPRINT] = fingerprint
    if labels is not None:
        complete = {key: value for key, value in complete.items() if key != "colours"}
        complete |= {"colours": dict(labels.colours)} if labels.colours else {}
    if "run" in stored:
        complete["run"] = complete_run(stored["run"], current=current)
    with suppress(AttributeError, KeyError, TypeError, ValueError):
        complete["recipe"] = PreprocessRecipe.from_json(stored["recipe"]).to_json()
    return complete


def complete_run(stored: Any, *, current: RunConfig | None = None) -> Any:
    """Fill missing keys of a stored configuration's ``run`` with defaults.

    Arguments are those of :func:`complete_config`.
    """
    try:
        run = validate(stored, source="a checkpoint").as_json()
    except UsageError:
        return stored
    if current is None:
        return run
    now = current.as_json()
    free = {key: now["training"][key] for key in FREE}
    return run | {"training": run["training"] | free, "inference": now["inference"]}


def _reads_labels(stored: Mapping[str, Any]) -> bool:
    try:
        LabelScheme.from_json(stored)
    except (ValueError, UsageError):
        return False
    return True


def _prediction_parts(stored: Mapping[str, Any]) -> list[Any]:
    """List the parts of a configuration that averaged folds must share."""
    return [
        *(stored["run"].get(part) for part in ("net", "preprocess", "training", "quantization")),
        *(stored.get(key) for key in ("structures", "regions", "regions_class_order", "sides", "recipe", "channels")),
    ]
