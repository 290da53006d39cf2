"""The JSON that a measurement leaves behind: what was measured, on what, with which versions and configuration."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from uumamba.files import write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("uumamba", "torch", "monai", "numpy", "scipy", "SimpleITK")
REQUIRED = {"machine": str, "versions": dict, "rows": list}


def write_result(
    path: Path | str,
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    about: str = "",
    configs: Sequence[tuple[str, Sequence[str]]] = (),
) -> None:
    """Write rows with the machine, the versions, the commit and the hash of every configuration that was run.

    Args:
        path: the JSON file; under ``benchmarks/results/`` it becomes a table of the README.
        rows: one mapping a row of the table, all with the same keys.
        title: heading of the table.
        about: what was measured, on what and how long it took; a sentence or two.
        configs: each configuration's shipped name or path, and its ``--set`` overrides.
    """
    hashes = [
        {"name": str(name), "set": list(overrides), "sha256": config_sha256(name, overrides)}
        for name, overrides in configs
    ]
    head = {"title": title, "about": about, "machine": machine(), "versions": versions(), "commit": commit()}
    write_json(path, head | {"configs": hashes, "rows": [dict(row) for row in rows]})


def read_result(path: Path) -> dict[str, Any]:
    """Read a result and check its schema.

    Raises:
        ValueError: a key is missing or of another type, or the rows are none or have different keys.
    """
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for key, kind in REQUIRED.items():
        if not isinstance(result.get(key), kind):
            raise ValueError(f"{path}: {key} must be {kind.__name__}, found {type(result.get(key)).__name__}")
    rows = result["rows"]
    if not rows or any(not isinstance(row, dict) or row.keys() != rows[0].keys() for row in rows):
        raise ValueError(f"{path}: rows must be one or more mappings with the same keys")
    return result


def changed_configs(result: Mapping[str, Any]) -> list[str]:
    """Names of the configurations that no longer are what the result was measured with."""
    return [
        " ".join([each["name"], *each["set"]])
        for each in result.get("configs", [])
        if config_sha256(each["name"], each["set"]) != each["sha256"]
    ]


def config_sha256(name: str, overrides: Sequence[str] = ()) -> str:
    """Hash of a resolved configuration, defaults included: a changed default is a changed configuration."""
    from uumamba.config import read_config

    resolved = read_config(name, list(overrides)).model_dump(mode="json")
    return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()


def machine() -> str:
    """Processor, cores that this process may use, accelerator and system, in one line."""
    import torch

    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "no accelerator"
    return f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {accelerator}, {platform.system()}"


def versions() -> dict[str, str]:
    """Python and the packages that a figure depends on."""
    installed = {each.metadata["Name"].lower(): each.version for each in metadata.distributions()}
    found = {name: installed[name.lower()] for name in PACKAGES if name.lower() in installed}
    return {"python": platform.python_version()} | found


def commit() -> str:
    """The commit that was measured, marked when the working tree differs from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    return done.stdout.strip() or "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
