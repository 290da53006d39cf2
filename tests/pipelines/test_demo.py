"""Demo: its picture, and what it says at the end."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from benchmarks.pictures import draw_heart, reduce_colours
from tests.pipelines.run_files import MakeConfig
from uumamba.cli import app
from uumamba.pipelines import demo as demo_module
from uumamba.pipelines.demo import PICTURE_NAME, demo
from uumamba.runtime.errors import CaseError


@pytest.fixture(scope="module")
def demo_folder(tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    demo(tiny_config(), out=out, patients=5, workers=0, progress=False)
    return out


def test_a_picture_and_a_page_with_the_worst_case_are_written(demo_folder: Path) -> None:
    with Image.open(demo_folder / PICTURE_NAME) as picture:
        assert picture.width > picture.height > 100
    page = (demo_folder / "report.html").read_text(encoding="utf-8")
    assert "Best: patient" in page
    assert "Worst: patient" in page


def test_the_heart_of_the_readme_is_drawn_from_the_demo(demo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "heart.png").write_bytes(reduce_colours(draw_heart(demo_folder)))
    with Image.open(tmp_path / "heart.png") as picture:
        assert picture.width <= 1200
    assert (tmp_path / "heart.png").stat().st_size < 200_000


def test_a_missing_prediction_is_named(demo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prepared").symlink_to(demo_folder / "prepared")
    (tmp_path / "scores.csv").symlink_to(demo_folder / "scores.csv")
    (tmp_path / "predictions").mkdir()
    with pytest.raises(CaseError, match="prediction: got no file"):
        demo_module.draw_typical_case(tmp_path, tmp_path / "case.png")


def test_the_verb_ends_with_picture_page_and_the_next_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_nothing(*_: Any, out: Path, **__: Any) -> Any:
        return SimpleNamespace(scores=None, report=out / "report.html")

    monkeypatch.setattr(demo_module, "demo", run_nothing)
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    report, picture, following = result.stdout.splitlines()
    assert report == f"report: {tmp_path / 'report.html'}"
    assert picture == f"picture: {tmp_path / PICTURE_NAME}"
    assert "uumamba predict acdc --input SCAN" in following
    assert "uumamba run folder_2d --raw SCANS" in following
