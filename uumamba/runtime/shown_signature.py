"""Signatures of classes as ``help`` shows them."""

import inspect
from collections.abc import Callable
from typing import Any, Unpack, get_args, get_origin


def spell_out(made: type, source: Callable[..., Any]) -> None:
    """Show the options behind ``**keywords: Unpack[...]`` in a class's signature.

    A constructor without such keywords has its own signature.

    Args:
        made: the class; only what ``inspect.signature`` returns for it changes.
        source: function that has these options, with their defaults.

    Example:
        >>> from typing import TypedDict
        >>> class Options(TypedDict, total=False):
        ...     size: int
        >>> class Made:
        ...     def __init__(self, name: str, **options: Unpack[Options]) -> None: ...
        >>> def make(*, size: int = 3) -> None: ...
        >>> spell_out(Made, make)
        >>> inspect.signature(Made)
        <Signature (name: str, *, size: int = 3)>
    """
    _, *own = inspect.signature(vars(made)["__init__"]).parameters.values()
    if own and get_origin(own[-1].annotation) is Unpack:
        *own, keywords = own
        (options,) = get_args(keywords.annotation)
        shared = inspect.signature(source).parameters
        own += [shared[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in options.__annotations__]
    made.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]  # read by inspect.signature
