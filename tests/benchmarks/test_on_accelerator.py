"""Tests of the pack of prepared cases and of the measurements on an accelerator."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import acdc_pack, on_accelerator
from benchmarks.on_accelerator import STOPPED, Stage, run_stage
from uumamba.config.load import shipped_configs
from uumamba.data.prepared import PreparedFolder


def test_a_pack_keeps_labels_and_geometry_and_rounds_images(phantom: PreparedFolder, tmp_path: Path) -> None:
    acdc_pack.main(["--prepared", str(phantom.path), "--pack", str(tmp_path / "pack.zip")])
    for _ in range(2):  # a second call keeps what is complete
        acdc_pack.main(["--pack", str(tmp_path / "pack.zip"), "--out", str(tmp_path / "out")])
    packed = PreparedFolder(tmp_path / "out")
    assert packed.recipe == phantom.recipe
    assert (tmp_path / "pack.zip").stat().st_size < 0.4 * sum(
        path.stat().st_size for path in phantom.path.rglob("image.npy")
    )
    for listed in phantom.manifest.cases:
        own, found = phantom.case(listed.case_id), packed.case(listed.case_id)
        image = np.asarray(own.image, np.float32)
        assert np.array_equal(own.label, found.label)
        assert np.array_equal(own.locations, found.locations)
        assert own.geometry == found.geometry
        assert found.image.dtype == np.float16
        assert np.abs(image - found.image).max() <= (image.max() - image.min()) / 63 / 2 + 2e-3  # float16 near 4


def test_the_configuration_without_an_option_is_a_shipped_one() -> None:
    assert on_accelerator.CONFIG in shipped_configs()


def test_packing_and_unpacking_at_once_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, refused: Any
) -> None:
    with pytest.raises(SystemExit):
        acdc_pack.main(["--pack", str(tmp_path / "pack.zip")])
    assert "--prepared, --out" in capsys.readouterr().err
    with refused("--pack", got=tmp_path / "none.zip"):
        acdc_pack.read_pack(tmp_path / "none.zip", tmp_path / "out")
    with refused("--pack", got=None):
        on_accelerator.main(["--out", str(tmp_path)])


def test_a_stage_ends_with_its_call_and_a_failed_one_keeps_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "waits.py").write_text(
        "import sys, time\nprint('line')\ntime.sleep(float(sys.argv[1]))\nsys.exit(int(sys.argv[2]))\n"
    )

    def stage(seconds: float, code: int) -> Stage:
        return Stage("test", "waits", (str(seconds), str(code)))

    assert run_stage(stage(30, 0), 1.0) is None
    assert run_stage(stage(0, STOPPED), 60.0) is None
    found = run_stage(stage(0, 3), 60.0)
    assert found is not None
    assert (found["exit_code"], found["output"]) == (3, ["line"])


@pytest.mark.slow
def test_a_rehearsal_runs_every_stage_and_continues_where_a_call_ended(tmp_path: Path) -> None:
    out = tmp_path / "accelerator"
    command = ["--rehearse", "--config", "acdc_cpu", "--out", str(out)]
    assert on_accelerator.main([*command, "--call-minutes", "0.01"]) == STOPPED
    while (code := on_accelerator.main([*command, "--call-minutes", "6"])) == STOPPED:
        pass
    done = json.loads((out / "results" / "stages.json").read_text())
    assert code == 0, {name: found["output"] for name, found in done.items() if found["exit_code"]}
    assert list(done) == ["acdc, fold 0", "tests", "scan", "layer", "SAM step", "acdc, all cases"]
    assert len(list((out / "results").iterdir())) <= 8
