"""``progress.png`` is whole, has a panel for what there is, and touches nobody's pyplot."""

import subprocess
import sys
from pathlib import Path

import pytest

from uumamba.training import draw_progress

ROWS = [
    {
        "epoch": epoch,
        "loss": 1.5 / (epoch + 1),
        "lr": 0.01 * (1 - epoch / 4),
        "loss_weights": {"region": 0.5 + epoch / 10, "pixel": 0.5},
    }
    | ({"dice": 0.5, "dice_RV": 0.4, "dice_LV": 0.6} if epoch % 2 else {})
    for epoch in range(4)
]


def size_of(picture: Path) -> tuple[int, int]:
    """Width and height that stand in a PNG's first chunk."""
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def test_every_kind_of_number_gets_a_panel(tmp_path: Path) -> None:
    draw_progress(ROWS, tmp_path / "all.png")
    draw_progress([{"epoch": 0, "loss": 1.0}], tmp_path / "loss.png")
    wide, high = size_of(tmp_path / "loss.png")
    assert size_of(tmp_path / "all.png") == (2 * wide, 2 * high)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.png", "loss.png"]


@pytest.mark.parametrize("rows", [[], [{"epoch": 0, "loss": None}]])
def test_without_a_number_there_is_no_picture(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    draw_progress(rows, tmp_path / "none.png")
    assert list(tmp_path.iterdir()) == []


def test_training_loads_matplotlib_when_it_draws_and_pyplot_never(repository: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from uumamba.training import draw_progress
assert "matplotlib" not in sys.modules
draw_progress([{{"epoch": 0, "loss": 1.0}}], {str(tmp_path / "a.png")!r})
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
