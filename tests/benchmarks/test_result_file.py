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
