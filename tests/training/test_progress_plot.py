"""``progress.png`` is complete and has a panel per kind of number."""

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
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def test_every_kind_of_number_gets_a_panel_without_pyplot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # its import fails
    draw_progress(ROWS, tmp_path / "all.png")
    draw_progress([{"epoch": 0, "loss": 1.0}], tmp_path / "loss.png")
    draw_progress([{"epoch": 0, "loss": None}], tmp_path / "none.png")
    draw_progress([], tmp_path / "none.png")
    wide, high = size_of(tmp_path / "loss.png")
    assert size_of(tmp_path / "all.png") == (2 * wide, 2 * high)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.png", "loss.png"]
