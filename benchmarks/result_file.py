"""JSON file of a measurement: rows, machine, versions and configuration."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.files import write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("uumamba", "torch", "monai", "numpy", "scipy", "SimpleITK")
REQUIRED = {"machine": str, "versions": dict, "rows": list}
FIX = "write the file with write_result"


def write_result(
    path: Path | str,
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    about: str = "",
    configs: Sequence[tuple[str, Sequence[str]]] = (),
    measured_at: str | None = None,
) -> None:
    """Write rows with machine, versions, commit and configurations.

    Configurations are stored resolved and hashed.

    Args:
        path: the JSON file; under ``benchmarks/results/`` it becomes a table of ``docs/results/``.
        rows: one mapping per row of the table, all with the same keys.
        title: heading of the table.
        about: description of data, method and duration; a sentence or two.
        configs: each configuration's shipped name or path, and its ``--set`` overrides.
        measured_at: the commit of rows that were measured earlier; None for the current commit.
    """
    stored = []
    for name, overrides in configs:
        resolved = resolve_config(name, overrides)
        named = {"name": _relative_to_root(name), "set": list(overrides)}
        stored.append(named | {"sha256": hash_config(resolved), "resolved": resolved})
    head = {"title": title, "about": about, "machine": describe_machine(), "versions": list_versions()}
    head["commit"] = describe_commit() if measured_at is None else measured_at
    write_json(path, head | {"configs": stored, "rows": [dict(row) for row in rows]})


def read_result(path: Path) -> dict[str, Any]:
    """Read a result and check its schema.

    Raises:
        UsageError: a key is missing or has another type, or the rows are empty or have different keys.
    """
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for key, kind in REQUIRED.items():
        found = type(result.get(key)).__name__
        require(found == kind.__name__, f"{path}: {key}", got=found, expected=kind.__name__, fix=FIX)
    rows = result["rows"]
    is_table = rows and all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows)
    got, expected = f"{len(rows)} rows", "one or more mappings with the same keys"
    require(is_table, f"{path}: rows", got=got, expected=expected, fix=FIX)
    return result


def find_changed_configs(result: Mapping[str, Any]) -> list[str]:
    """Return the names of configurations that have changed since the measurement.

    A result without a resolved configuration is compared by the hash.
    """
    return [" ".join([each["name"], *each["set"]]) for each in result.get("configs", []) if _is_changed(each)]


def resolve_config(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return a configuration with all defaults filled in.

    A changed default therefore counts as a changed configuration.
    """
    from uumamba.config import read_config

    return read_config(name, list(overrides)).as_json()


def is_compatible(stored: Any, now: Any) -> bool:
    """Return whether every stored key still has its value.

    New keys are allowed: their defaults change nothing.

    Example:
        >>> is_compatible({"a": {"b": 1}}, {"a": {"b": 1, "new": 2}}), is_compatible({"a": 1, "old": 2}, {"a": 1})
        (True, False)
    """
    if isinstance(stored, dict) and isinstance(now, dict):
        return all(key in now and is_compatible(value, now[key]) for key, value in stored.items())
    return bool(stored == now)


def hash_config(resolved: Mapping[str, Any]) -> str:
    """Hash a resolved configuration."""
    return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()


def _relative_to_root(name: str) -> str:
    path = Path(name)
    return path.relative_to(ROOT).as_posix() if path.is_absolute() and path.is_relative_to(ROOT) else name


def _is_changed(each: Mapping[str, Any]) -> bool:
    try:
        now = resolve_config(each["name"], each["set"])
    except UsageError:
        return True  # the name or a key no longer exists
    return not is_compatible(each["resolved"], now) if "resolved" in each else hash_config(now) != each["sha256"]


def describe_machine() -> str:
    """Describe processor, usable cores, accelerator and system in one line."""
    import torch

    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "no accelerator"
    return f"{_read_processor()}, {len(os.sched_getaffinity(0))} cores, {accelerator}, {platform.system()}"


def list_versions() -> dict[str, str]:
    """Return the versions of Python and of the measured packages."""
    installed = {each.metadata["Name"].lower(): each.version for each in metadata.distributions()}
    found = {name: installed[name.lower()] for name in PACKAGES if name.lower() in installed}
    return {"python": platform.python_version()} | found


def describe_commit() -> str:
    """Return the current commit, marked as dirty if files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    return done.stdout.strip() or "unknown"


def _read_processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
