"""Wrong objects are refused by name: every public callable of the packages that work without scans."""

import inspect
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any, get_args, get_type_hints, is_typeddict

import pytest
import torch
from torch import nn

from uumamba.runtime.errors import UsageError
from uumamba.runtime.options import EXPLAINED, read_value

ROOMS = ("optim", "losses", "nets", "domain_generalization", "quantization", "federated", "unlearning")
EXPLAINED_FIRST = {"params": [nn.Parameter(torch.zeros(1))], "base": partial(torch.optim.SGD, lr=0.1)}
"""Arguments whose owners refuse wrong values themselves, so the others need right ones."""
UNCHECKED = {
    *("fake_quantize", "gradient_disorder", "divergence", "gradient_norm", "variance_gap", "draw_voxels"),
    *("per_sample_cross_entropy", "per_sample_balanced_cross_entropy", "predict_batch", "logit_confidence"),
    *("mix", "mean_weights", "consensus_distance"),  # like those above, called in every step
    *("upsampled", "holds_scales", "require_domains"),  # take anything with a length, or serve other packages
    *("LegacyUMambaBot", "LegacyUMambaEnc"),  # made by load_official
}


class Wrong:
    """Object of a class that no argument takes."""


def find_callables() -> Iterator[tuple[str, Any]]:
    """Yield what users call; they only read records, and only derive from protocols."""
    for room in ROOMS:
        package = import_module(f"uumamba.{room}")
        for name in package.__all__:
            named = getattr(package, name)
            is_record = hasattr(named, "__dataclass_fields__") or hasattr(named, "_fields") or is_typeddict(named)
            is_error = isinstance(named, type) and issubclass(named, Exception | Warning)
            is_made = inspect.isfunction(named) or (inspect.isclass(named) and not inspect.isabstract(named))
            if is_made and not is_record and not is_error and name not in UNCHECKED:
                yield f"{room}.{name}", named


def find_arguments() -> Iterator[Any]:
    for path, named in find_callables():
        made = named.__init__ if isinstance(named, type) else named
        hints = get_type_hints(inspect.unwrap(made), include_extras=True)
        for name in inspect.signature(made).parameters:
            if name in hints and EXPLAINED not in get_args(hints[name]) and accepts(hints[name]):
                yield pytest.param(named, name, id=f"{path}: {name}")


def accepts(annotation: Any) -> bool:
    """Return whether a type excludes anything."""
    try:
        read_value(annotation, Wrong(), "value")
    except UsageError:
        return True
    return False


@pytest.mark.parametrize(("named", "argument"), list(find_arguments()))
def test_an_object_of_another_class_is_refused_by_name(named: Any, argument: str) -> None:
    made = named.__init__ if isinstance(named, type) else named
    given = {name: value for name, value in EXPLAINED_FIRST.items() if name in inspect.signature(made).parameters}
    with pytest.raises(UsageError, match=rf"^{argument}: got (an object of class )?Wrong, expected "):
        named(**given, **{argument: Wrong()})
