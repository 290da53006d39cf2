"""The file holds what was found, and is refused wherever it does not fit the data at hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from uumamba.domain_generalization import GroupSplit, SlowExamples, read_slow_examples, write_slow_examples
from uumamba.runtime.errors import UsageError

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


def test_what_is_read_is_what_was_written(path: Path) -> None:
    assert read(path) == FOUND


def test_an_audit_finds_seed_settings_errors_and_fingerprint_in_plain_json(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["format"] == "uumamba slow examples, 1"
    assert (content["seed"], content["epoch"], content["errors"]) == (7, 2, [0.9, 0.5, 0.2, 0.19])
    assert (content["settings"]["outputs"], content["fingerprint"]) == ("probabilities", "a" * 64)
    assert content["groups"][2]["note"] == "no example"


def test_a_number_that_json_lacks_leaves_the_old_file(path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_slow_examples(path, replace(FOUND, errors=(float("nan"),)))
    assert read(path) == FOUND
    assert [each.name for each in path.parent.iterdir()] == ["slow.json"]


def test_another_data_set_is_refused(path: Path) -> None:
    with pytest.raises(UsageError, match="is of a data set of 6 examples, and here are 5; find the slow ones"):
        read(path, size=5)
    with pytest.raises(UsageError, match="is of another data set: its fingerprint begins with 'aaaaaaaaaaaa', here"):
        read(path, fingerprint="b" * 64)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": "another"}, "is not a file of slow examples in the format"),
        ({"slow": [1, 3, 6]}, "was changed: its slow examples are not ascending places below 6"),
        ({"slow": [-1, 3, 4]}, "not ascending places"),
        ({"slow": [1, 4, 3]}, "not ascending places"),
        ({"slow": [1, 3, 3]}, "not ascending places"),
        ({"slow": [1, 3, 4.0]}, "not ascending places"),
        ({"slow": [1, 3]}, "was changed: it lists 2 slow examples and its groups count 3"),
        ({"surprise": 1}, "lacks or has a key that it should not"),
        ({"groups": [{"wrong": 1}]}, "lacks or has a key that it should not"),
        ({"fingerprint": None}, "was changed: its fingerprint is None and no text"),
        ({"settings": None}, "was changed: its settings are None and no mapping"),
        ({"groups": [{"group": 0, "size": 6, "slow": None}]}, "was changed: group 0 counts None slow examples"),
    ],
)
def test_a_changed_file_is_refused(path: Path, change: dict[str, Any], complaint: str) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UsageError, match=complaint):
        read(path)


def test_a_file_that_is_torn_absent_or_another_thing_is_refused(path: Path) -> None:
    text = path.read_text()
    for content, complaint in ((text[:40], "cannot be read as JSON"), ("[1, 2]", "is not a file of slow examples")):
        path.write_text(content)
        with pytest.raises(UsageError, match=complaint):
            read(path)
    without = json.loads(text)
    del without["groups"]
    path.write_text(json.dumps(without))
    with pytest.raises(UsageError, match=r"lacks or has a key that it should not \('groups'\)"):
        read(path)
    with pytest.raises(UsageError, match="does not exist; find the slow examples first"):
        read(path.parent / "absent.json")
