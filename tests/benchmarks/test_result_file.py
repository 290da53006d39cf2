"""Results keep their schema and notice when the configuration they were measured with has changed."""

import json
from pathlib import Path

import pytest

from benchmarks.result_file import changed_configs, read_result, write_result


def test_a_result_is_read_back_with_machine_versions_and_rows(tmp_path: Path) -> None:
    write_result(tmp_path / "a.json", [{"name": "SAM", "dice": 0.9}], title="A", about="One row.")
    result = read_result(tmp_path / "a.json")
    assert result["rows"] == [{"name": "SAM", "dice": 0.9}]
    assert {"torch", "python"} <= result["versions"].keys()
    assert "cores" in result["machine"]


def test_a_result_fits_its_configuration_until_a_value_changes(tmp_path: Path) -> None:
    write_result(tmp_path / "a.json", [{"dice": 0.9}], title="A", configs=[("demo", ["optim.rho=0.1"])])
    result = read_result(tmp_path / "a.json")
    assert changed_configs(result) == []
    result["configs"][0]["set"] = ["optim.rho=0.2"]
    assert changed_configs(result) == ["demo optim.rho=0.2"]


def test_a_key_that_came_later_is_no_change_but_a_removed_or_another_one_is(tmp_path: Path) -> None:
    write_result(tmp_path / "a.json", [{"dice": 0.9}], title="A", configs=[("demo", [])])
    result = read_result(tmp_path / "a.json")
    stored = result["configs"][0]["resolved"]
    assert stored["optim"].pop("rho") == 0.05  # as if rho had come after the measurement
    assert changed_configs(result) == []
    stored["optim"]["radius"] = 0.05  # as if radius had been removed since
    assert changed_configs(result) == ["demo"]
    del stored["optim"]["radius"]
    stored["optim"]["base"]["lr"] = 0.5
    assert changed_configs(result) == ["demo"]


def test_a_result_without_a_stored_configuration_is_held_to_its_hash(tmp_path: Path) -> None:
    write_result(tmp_path / "a.json", [{"dice": 0.9}], title="A", configs=[("demo", [])])
    result = read_result(tmp_path / "a.json")
    del result["configs"][0]["resolved"]
    assert changed_configs(result) == []
    result["configs"][0]["sha256"] = "0"
    assert changed_configs(result) == ["demo"]


def test_an_override_that_is_no_longer_known_is_a_change(tmp_path: Path) -> None:
    write_result(tmp_path / "a.json", [{"dice": 0.9}], title="A", configs=[("demo", [])])
    result = read_result(tmp_path / "a.json")
    result["configs"][0]["set"] = ["optim.radius=1"]
    assert changed_configs(result) == ["demo optim.radius=1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"machine": None}, "machine must be str, found NoneType"),
        ({"versions": []}, "versions must be dict, found list"),
        ({"rows": []}, "rows must be one or more mappings with the same keys"),
        ({"rows": [{"a": 1}, {"b": 1}]}, "rows must be one or more mappings with the same keys"),
    ],
)
def test_a_result_of_another_shape_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"machine": "m", "versions": {}, "rows": [{"a": 1}]} | change))
    with pytest.raises(ValueError, match=message):
        read_result(path)
