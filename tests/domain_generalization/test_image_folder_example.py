import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

EXAMPLE = Path("benchmarks", "examples", "image_folder_udim.py")


def write_images(folder: Path, *, each: int) -> None:
    """Write images of rows, columns and discs in many file formats."""
    draw = np.random.default_rng(0)
    for name in ("columns", "discs", "rows"):
        for index in range(each):
            height, width = draw.integers(24, 49, 2)
            row, column = np.mgrid[:height, :width]
            shape = {
                "rows": row // 4 % 2,
                "columns": column // 4 % 2,
                "discs": (row - height / 2) ** 2 + (column - width / 2) ** 2 < 80,
            }[name]
            picture = shape[..., None] * draw.uniform(80, 255, 3) + draw.uniform(0, 40, (height, width, 3))
            place = folder / name / ("deeper" if index % 7 == 0 else "")  # torchvision's layout allows for folders
            place.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
            image = image.convert("L") if index % 5 == 0 else image.convert("P") if index % 5 == 1 else image
            image.save(place / f"{index}{'.png' if index % 2 or index % 5 == 1 else '.JPG'}")
    (folder / "README.txt").write_text("no image")


def test_the_example_trains_a_classifier_on_an_image_folder_without_torchvision(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path, each=24)
    monkeypatch.setattr(sys, "argv", ["image_folder_udim.py", str(tmp_path)])
    monkeypatch.setitem(sys.modules, "torchvision", None)  # importing it raises
    after = runpy.run_path(str(repository / EXAMPLE))
    assert len(after["files"]) == 72
    assert after["images"].shape == (72, 3, 32, 32)
    assert after["labels"].tolist() == [0] * 24 + [1] * 24 + [2] * 24  # folders in the order of their names
    with torch.no_grad():
        right = after["net"](after["images"]).argmax(1) == after["labels"]
    assert right.float().mean() > 0.9  # 1/3 is chance
    assert after["udim"].terms(after["images"], after["labels"])["variance_gap"].isfinite()
    losses = [float(line.rpartition(" ")[2]) for line in capsys.readouterr().out.splitlines()]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) / 2


def test_the_example_has_fewer_than_thirty_lines(repository: Path) -> None:
    lines = (repository / EXAMPLE).read_text(encoding="utf-8").splitlines()
    assert 10 < sum(bool(line) for line in lines) < 30
