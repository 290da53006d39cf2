"""Tests of result files: schema and changed configurations."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.result_file import find_changed_configs, read_result, write_result


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (lambda config: None, []),
        (lambda config: config.update(set=["optim.rho=0.2"]), ["demo optim.rho=0.2"]),
        (lambda config: config.update(set=["optim.radius=1"]), ["demo optim.radius=1"]),
        (lambda config: config["resolved"]["optim"].pop("rho"), []),  # as if rho had been added later
        (lambda config: config["resolved"]["optim"].update(radius=0.05), ["demo optim.rho=0.1"]),  # a removed key
        (lambda config: config["resolved"]["optim"]["base"].update(lr=0.5), ["demo optim.rho=0.1"]),
        (lambda config: config.pop("resolved"), []),  # the hash still matches
        (lambda config: (config.pop("resolved"), config.update(sha256="0")), ["demo optim.rho=0.1"]),
    ],
)
def test_a_changed_value_or_removed_key_of_a_configuration_is_found(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], changed: list[str]
) -> None:
    write_result(tmp_path / "a.json", [{"dice": 0.9}], title="A", configs=[("demo", ["optim.rho=0.1"])])
    result = read_result(tmp_path / "a.json")
    assert {"torch", "python"} <= result["versions"].keys()
    assert "cores" in result["machine"]
    change(result["configs"][0])
    assert find_changed_configs(result) == changed


@pytest.mark.parametrize(
    ("key", "value", "got"),
    [
        ("machine", None, "NoneType"),
        ("versions", [], "list"),
        ("rows", [], "0 rows"),
        ("rows", [{"a": 1}, {"b": 1}], "2 rows"),
        ("rows", [1], "1 rows"),
    ],
)
def test_a_result_of_another_schema_is_refused(tmp_path: Path, key: str, value: object, got: str, refused: Any) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"machine": "m", "versions": {}, "rows": [{"a": 1}]} | {key: value}))
    with refused(f"{path}: {key}", got=got):
        read_result(path)
