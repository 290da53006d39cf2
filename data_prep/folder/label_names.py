"""Channels and labels of a ``dataset.json`` of nnU-Net or the Decathlon."""

from collections.abc import Mapping
from typing import Any

from uumamba.runtime.errors import require

IGNORE_NAME = "ignore"
"""Name of nnU-Net's label for voxels that are not scored."""


def read_about(stored: Mapping[str, Any], *, file: str) -> dict[str, Any]:
    """Read the fields of a manifest that a ``dataset.json`` gives.

    Args:
        stored: content of the file.
        file: the file, for errors.

    Returns:
        Name, reference and licence where given, and the fields of :func:`read_labels`.

    Raises:
        UsageError: one of :func:`read_labels`.
    """
    texts = {"name": stored.get("name"), "reference": stored.get("reference"), "licence": find_licence(stored)}
    about = {key: text for key, text in texts.items() if isinstance(text, str) and text}
    return about | read_labels(stored.get("labels", {}), stored.get("regions_class_order", ()), file=file)


def find_licence(stored: Mapping[str, Any]) -> Any:
    """Return the licence, in either spelling."""
    return stored.get("licence", stored.get("license"))


def read_channels(stored: Mapping[str, Any], *, file: str) -> tuple[str, ...]:
    """Read the channels' names, in order; nothing if they are not given.

    Raises:
        UsageError: the channels are not numbered 0, 1, ... or have no names.

    Example:
        >>> read_channels({"channel_names": {"1": "T2", "0": "T1"}}, file="dataset.json")
        ('T1', 'T2')
    """
    key = "channel_names" if "channel_names" in stored else "modality"
    names = stored.get(key, {})
    if isinstance(names, str):
        return (names,)
    if isinstance(names, list):
        names = dict(enumerate(names))
    require(
        isinstance(names, Mapping) and {*map(str, names)} == {*map(str, range(len(names)))},
        f"{file}: {key}",
        got=names,
        expected="the names of the channels 0, 1, ...",
    )
    ordered = sorted(names.items(), key=lambda item: int(item[0]))
    for index, name in ordered:
        require(isinstance(name, str) and name, f"{file}: {key}.{index}", got=name, expected="the channel's name")
    return tuple(name for _, name in ordered)


def read_labels(labels: Any, order: Any, *, file: str) -> dict[str, Any]:
    """Read structures, regions and the ignored value.

    Args:
        labels: names by value (``{"1": "liver"}``), or values by name (``{"liver": 1, "all": [1, 2]}``), where several
            values make every name a region, and :data:`IGNORE_NAME` is the ignored value.
        order: value that each region paints.
        file: the file, for errors.

    Returns:
        ``structures``, and where given ``ignore_value``, ``regions`` and ``regions_class_order``. Values of regions are
        structures with the names ``label_1`` and so on.

    Raises:
        UsageError: a value is no whole number, or two values have one name.

    Example:
        >>> read_labels({"0": "background", "1": "liver"}, (), file="dataset.json")
        {'structures': {'liver': 1}}
        >>> found = read_labels({"background": 0, "all": [1, 2], "core": 2, "ignore": 3}, [1, 2], file="dataset.json")
        >>> found["structures"], found["regions"], found["ignore_value"]
        ({'label_1': 1, 'label_2': 2}, {'all': (1, 2), 'core': (2,)}, 3)
    """
    require(isinstance(labels, Mapping), f"{file}: labels", got=labels, expected="names and values of the labels")
    values = _values_by_name(labels, f"{file}: labels")
    is_region = any(len(each) > 1 for name, each in values.items() if name != IGNORE_NAME)
    found = {name: each for name, each in values.items() if {*each} != {0}}
    about: dict[str, Any] = {}
    if IGNORE_NAME in found and not _is_names_by_value(labels):
        ignored = found.pop(IGNORE_NAME)
        require(len(ignored) == 1, f"{file}: labels.{IGNORE_NAME}", got=list(ignored), expected="one value")
        about["ignore_value"] = ignored[0]
    if not is_region:
        return {"structures": {name: value for name, (value,) in found.items()}} | about
    require(
        isinstance(order, list) and all(_is_whole(value) for value in order),
        f"{file}: regions_class_order",
        got=order or "nothing",
        expected="the label value that each region paints, in the order of the regions",
    )
    parts = sorted({value for each in found.values() for value in each})
    regions = {"regions": found, "regions_class_order": tuple(order)}
    return {"structures": name_values(parts)} | regions | about


def name_values(values: list[int]) -> dict[str, int]:
    """Name label values that have no names.

    Example:
        >>> name_values([1, 4])
        {'label_1': 1, 'label_4': 4}
    """
    return {f"label_{value}": value for value in values}


def _values_by_name(labels: Mapping[str, Any], key: str) -> dict[str, tuple[int, ...]]:
    by_value = _is_names_by_value(labels)
    pairs = [(name, int(value)) for value, name in labels.items()] if by_value else [*labels.items()]
    found: dict[str, tuple[int, ...]] = {}
    for name, value in pairs:
        each = tuple(value) if isinstance(value, list) else (value,)
        expected = "a whole number of at least 0, or a list of them for a region"
        require(each and all(map(_is_whole, each)), f"{key}.{name}", got=value, expected=expected)
        require(name and name not in found, f"{key}.{each[0]}", got=name, expected="a name of its own for each value")
        found[name] = each
    return found


def _is_names_by_value(labels: Mapping[str, Any]) -> bool:
    is_number = all(str(key).isascii() and str(key).isdecimal() for key in labels)
    return bool(labels) and is_number and all(isinstance(name, str) for name in labels.values())


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
