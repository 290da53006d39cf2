"""Fit of a run's parts to the labels of its data set."""

from collections.abc import Iterator
from typing import Any

from uumamba.config.run_config import RunConfig
from uumamba.data.label_scheme import LabelScheme
from uumamba.runtime.errors import UsageError, require


def check_labels(config: RunConfig, labels: LabelScheme) -> None:
    """Raise if parts of a run do not fit the labels.

    Regions have sigmoid outputs, so parts that need one class per voxel are refused.

    Args:
        config: the run.
        labels: structures, regions and ignored voxels.

    Raises:
        UsageError: a name is no structure, or a part needs one class per voxel; the key names the part.
    """
    config.training.sampling.build(structures=labels.structures)
    config.inference.list_postprocess(structures=labels.structures, regions=labels.regions)
    ascent, ignored = config.optim.ascent, labels.ignore_label
    require(
        ascent is None or ignored is None or ascent.options.get("ignore_label") in (None, ignored),
        "optim.ascent.ignore_label",
        got=None if ascent is None else ascent.options.get("ignore_label"),
        expected=f"no value, since the data set's ignored voxels have the class {ignored}",
    )
    if not labels.regions:
        return
    names = ", ".join(labels.regions)
    for key, got, expected in _list_softmax_parts(config):
        raise UsageError(key, got=got, expected=f"{expected} for the regions {names}, which may overlap")


def _list_softmax_parts(config: RunConfig) -> Iterator[tuple[str, Any, str]]:
    """Yield key, value and valid value of parts that need softmax."""
    if config.loss.options.get("mode", "learned") != "learned":
        yield "loss.mode", config.loss.mode, "learned"
    if config.net.name == "CoarseToFine":
        yield "net.name", config.net.name, "another network"
    if config.optim.ascent is not None:
        yield "optim.ascent", config.optim.ascent.name, "null"
    if config.domain_generalization is not None:
        yield "domain_generalization", config.domain_generalization.name, "null"
    if config.training.useful is not None:
        yield "training.useful", "a probe of classes", "null"
    if config.augment.swap_sides:
        yield "augment.swap_sides", True, "false"
