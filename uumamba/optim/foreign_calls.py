"""Calls that other libraries' optimizers take, refused with the line to write."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any, NoReturn, Unpack

from torch.optim import Optimizer

from uumamba.optim.groups import EngineOptions
from uumamba.runtime.errors import UsageError, require

FOREIGN_METHODS = ("first_step", "second_step", "ascent_step", "descent_step", "set_closure")
BASE_NAMES = ("base_optimizer", "optimizer", "base_optimizer_cls")


class ForeignMethodError(UsageError, AttributeError):
    """Error of a method of another library's optimizer.

    It is also an AttributeError, so ``hasattr`` returns False.
    """


def raise_for_method(owner: object, name: str) -> NoReturn:
    """Raise for an attribute that an optimizer of uumamba.optim does not have."""
    kind = type(owner).__name__
    if name in FOREIGN_METHODS:
        raise ForeignMethodError(
            name,
            got=f"a method that {kind} does not have",
            expected="one call for both passes",
            fix="write optimizer.step(lambda: loss_fn(net(x), y)), without backward and zero_grad",
        )
    raise AttributeError(f"{kind!r} object has no attribute {name!r}", name=name, obj=owner)


def explain_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """Make a member's constructor explain arguments of other signatures."""

    @wraps(init)
    def explained(self: Any, *args: Any, **kwargs: Any) -> None:
        _check_arguments(type(self).__name__, init, args, kwargs)
        init(self, *args, **kwargs)

    return explained


def _check_arguments(kind: str, init: Callable[..., None], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise for arguments that a member does not have.

    A subclass whose constructor is not ``(params, base, *, ..., **engine)`` is not checked.
    """
    _, *parameters = inspect.signature(init).parameters.values()
    if [each.name for each in parameters[:2]] != ["params", "base"] or (
        parameters[-1].annotation != Unpack[EngineOptions]
    ):
        return
    options = [*(each.name for each in parameters[2:-1]), *EngineOptions.__annotations__]
    known = {*options, "params", "base"}
    extra = {key: value for key, value in kwargs.items() if key not in known}
    renamed = next((extra[key] for key in BASE_NAMES if key in extra), None)
    base = args[1] if len(args) > 1 else kwargs.get("base", renamed)
    passed = {key: value for key, value in extra.items() if key not in (*BASE_NAMES, "adaptive")}
    line = f"{kind}(params, {describe_base(base, passed)})"
    if "adaptive" in extra:
        line = f"ASAM(params, {describe_base(base, passed)}, rho=2.0, eta=0.0, normalize_bias=True)"
    for key, value in extra.items():
        raise UsageError(key, got=value, expected=f"an option of {kind}: {', '.join(options)}", fix=f"write {line}")
    if len(args) > 2:
        raise UsageError(
            options[0],
            got=f"{len(args)} arguments without a name",
            expected="params and base, and options by name",
            fix=f"write {line[:-1]}, {options[0]}={args[2]!r})",
        )
    require(
        len(args) == 2 or "base" in kwargs,
        "base",
        got="no base optimizer",
        expected="a callable from parameters to an optimizer",
        fix=f"write {line}",
    )


def describe_base(base: Any, options: Mapping[str, Any]) -> str:
    """Describe a base as the ``partial`` to write.

    Example:
        >>> from torch.optim import AdamW
        >>> describe_base(AdamW, {"lr": 0.001, "fused": True})
        'partial(AdamW, lr=0.001, fused=True)'
    """
    given = dict(base.keywords) if isinstance(base, partial) else {}
    if isinstance(base, Optimizer):
        given = {name: base.defaults[name] for name in ("lr", "momentum") if name in base.defaults}
        base = type(base)
    name = getattr(getattr(base, "func", base), "__name__", "torch.optim.SGD")
    stated = (given | dict(options)) or {"lr": 0.1}
    return f"partial({name}, {', '.join(f'{key}={value!r}' for key, value in stated.items())})"
