"""Tests of the generated pages of the reference."""

import re
from pathlib import Path

import pytest
import typer

from benchmarks.markdown import make_anchor
from benchmarks.reference.__main__ import FOLDER, main, make_pages
from benchmarks.reference.configuration_page import describe_shipped, make_configuration_page
from uumamba.cli import app
from uumamba.config.load import list_keys, shipped_configs
from uumamba.config.run_config import RunConfig

ROW = re.compile(r"^\| (`.*?`) \| (.*) \| (.*?) \| (.*?) \|$", re.MULTILINE)


def list_rows(page: str) -> dict[str, tuple[str, str, str]]:
    """List values, default and meaning of each key of the page."""
    rows = {}
    for keys, values, default, meaning in ROW.findall(page):
        for key in re.findall("`(.*?)`", keys):
            rows[key] = (values, default, meaning)
    return rows


def test_the_pages_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_a_page_that_is_out_of_date_is_named_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "a.md"
    monkeypatch.setattr("benchmarks.reference.__main__.make_pages", lambda: {page: "new\n"})
    assert main(["--check"]) == 1
    assert str(page) in capsys.readouterr().err
    assert main([]) == main(["--check"]) == 0
    assert page.read_text(encoding="utf-8") == "new\n"


def test_every_key_of_a_configuration_has_values_default_and_meaning() -> None:
    rows = list_rows(make_configuration_page())
    accepted = {".".join(filter(None, found)) for found in list_keys(RunConfig)}
    assert len(accepted) > 150
    assert accepted - rows.keys() == set()
    assert [key for key in accepted if not all(map(str.strip, rows[key]))] == []


def test_every_shipped_configuration_is_described() -> None:
    page = make_configuration_page()
    for name in shipped_configs():
        assert f"| `{name}` | {describe_shipped(name)} |" in page
        assert describe_shipped(name).endswith(".")


def test_every_link_of_a_page_leads_to_a_heading() -> None:
    for page, text in make_pages().items():
        headings = [make_anchor(title) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
        assert len(headings) == len(set(headings)), page
        assert set(re.findall(r"\]\(#(.*?)\)", text)) <= set(headings), page


def test_every_option_of_a_command_is_on_its_page() -> None:
    text = (FOLDER / "commands.md").read_text(encoding="utf-8")
    for name, command in typer.main.get_command(app).commands.items():
        section = re.search(rf"^## uumamba {name}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        assert section is not None, name
        options = {option for each in command.params for option in (*each.opts, *each.secondary_opts) if "--" in option}
        assert [option for option in sorted(options - {"--help"}) if f"`{option}`" not in section[0]] == []
        assert "\nExample:\n\n```\nuumamba " in section[0]
