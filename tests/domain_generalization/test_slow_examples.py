"""File of slow examples: round trip, and refusal of wrong files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from uumamba.domain_generalization import GroupSplit, SlowExamples, read_slow_examples, write_slow_examples

FOUND = SlowExamples(
    slow=(1, 3, 4),
    size=6,
    groups=(GroupSplit(0, 3, 2, 0.9, 0.25), GroupSplit(1, 3, 1, 1.5, 0.5), GroupSplit(2, 0, note="no example")),
    seed=7,
    fingerprint="a" * 64,
    epoch=2,
    errors=(0.9, 0.5, 0.2, 0.19),
    settings={"outputs": "probabilities", "factor": 2},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_slow_examples(tmp_path / "slow.json", FOUND)
    return tmp_path / "slow.json"


def read(path: Path, **given: Any) -> SlowExamples:
    return read_slow_examples(path, **{"size": 6, "fingerprint": "a" * 64} | given)


def test_a_written_file_is_plain_json_and_is_read_back(path: Path) -> None:
    assert read(path) == FOUND
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["format"] == "uumamba slow examples, 1"
    assert (content["seed"], content["epoch"], content["errors"]) == (7, 2, [0.9, 0.5, 0.2, 0.19])
    assert (content["settings"]["outputs"], content["fingerprint"]) == ("probabilities", "a" * 64)
    assert content["groups"][2]["note"] == "no example"


def test_a_number_without_json_form_keeps_the_old_file(path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_slow_examples(path, replace(FOUND, errors=(float("nan"),)))
    assert read(path) == FOUND
    assert [each.name for each in path.parent.iterdir()] == ["slow.json"]


@pytest.mark.parametrize("other", [{"size": 5}, {"fingerprint": "b" * 64}], ids=str)
def test_a_missing_file_and_another_data_set_are_refused(path: Path, other: dict[str, Any], refused: Any) -> None:
    with refused("missing.json", got="no file"):
        read(Path("missing.json"))
    with refused(str(path), got=f"6 examples, fingerprint {'a' * 12}"):
        read(path, **other)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "another"},
        {"slow": [1, 3, 6]},
        {"slow": [-1, 3, 4]},
        {"slow": [1, 4, 3]},
        {"slow": [1, 3, 3]},
        {"surprise": 1},
        {"groups": [{"wrong": 1}]},
        {"groups": None},
        '{"slow": [1',
        "[1, 2]",
        "{}",
    ],
    ids=str,
)
def test_a_changed_or_incomplete_file_is_refused(path: Path, change: dict[str, Any] | str, refused: Any) -> None:
    path.write_text(change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change))
    with refused(str(path)):
        read(path)
