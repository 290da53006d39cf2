"""Tests of the promises that every benchmark command keeps."""

import re
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import acdc_minutes, layer, optim_step, prepare, scan, train_step, vessels
from benchmarks.acdc_minutes import NOT_MEASURED
from benchmarks.result_file import RESULTS, read_result

Row = dict[str, Any]
COMMANDS = (
    *("acdc_cpu", "acdc_minutes", "demo", "layer", "official_networks", "optim_step", "prepare", "same_numbers"),
    *("predict", "scan", "train_step", "vessels", "claims.acdc_vendor_shift", "claims.domain_generalization"),
    *("claims.federated", "claims.quantization", "claims.sharpness", "claims.sharpness_acdc", "claims.unlearning"),
    "unlearn_hearts",
)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_offers_json_and_quick_and_refuses_unknown_options(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = import_module(f"benchmarks.{name}").main
    for option, code in (("--help", 0), ("--unknown", 2)):
        with pytest.raises(SystemExit) as ended:
            main([option])
        assert ended.value.code == code
    printed = capsys.readouterr().out
    assert f"python -m benchmarks.{name} " in printed
    assert {"--json", "--quick"} <= set(re.findall(r"--\w+", printed))


@pytest.mark.parametrize(
    ("main", "options", "expected", "least_mb", "note"),
    [
        (
            scan.main,
            ["--shape", "1,4,2,64"],
            [{"name": name, "pass": each} for name in ("reference", "torch") for each in ("forward", scan.BOTH)],
            0,
            "",
        ),
        (layer.main, ["--quick"], [{"name": "ours", "pass": "forward", "ratio": 1.0}], 0, ""),
        (
            prepare.main,
            ["--quick"],
            [{"name": "uumamba, CT", "shape": "(24, 24, 20)", "ratio": None}],
            100,  # a process with its imports
            "nnU-Net is not installed and left out",
        ),
        (
            acdc_minutes.main,
            [],
            [{"minutes": 25.0} | dict.fromkeys(("value", "GPU in use %", "waited for data %"), NOT_MEASURED)],
            0,
            "",
        ),
    ],
    ids=["scan", "layer", "prepare without nnU-Net", "acdc_minutes without an accelerator"],
)
def test_a_run_writes_its_rows_and_nothing_else(
    main: Callable[..., int | None],
    options: list[str],
    expected: list[Row],
    least_mb: float,
    note: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(layer, "QUICK_SHAPES", ((1, 4, 4, 4),))
    monkeypatch.setattr(prepare, "QUICK_VOLUME", (24, 24, 20))
    monkeypatch.setattr(prepare, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "table.json"
    assert not main([*options, "--json", str(path)])
    rows = read_result(path)["rows"]
    assert all(any(part.items() <= row.items() for row in rows) for part in expected), rows
    assert all(0 <= row["min_s"] <= row["median_s"] for row in rows if "min_s" in row)
    assert max(row.get("peak_mb") or 0 for row in rows) >= least_mb
    assert note in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [path]


SCAN = {"name": "native", "shape": str(scan.CPU_SHAPES[0]), "layout": "last", "pass": "forward"}
PERTURBATION = {"shape": "few", "passes": None}
OURS, *_, BASELINE = read_result(RESULTS / "aorta_phantom.json")["rows"]


@pytest.mark.parametrize(
    ("find", "rows", "changes", "messages"),
    [
        (
            partial(scan.find_broken_claims, scan.CPU_SHAPES[0]),
            [SCAN | {"ratio": 250.0, "of the limit": 1.5, "of its tensors": 1.4}],
            [{"ratio": 150.0, "of the limit": 2.5, "of its tensors": 1.6}],
            [
                "native, (1, 64, 16, 57344), forward: 150.0 times the speed of the loop, claimed at least 200",
                "native, (1, 64, 16, 57344), forward: 2.5 times the limit, claimed at most 2.2",
                "native, (1, 64, 16, 57344), forward: 1.6 times its tensors, claimed at most 1.5",
            ],
        ),
        (
            optim_step.find_broken_claims,
            [
                PERTURBATION | {"name": f"climb + restore, {optim_step.PER_TENSOR}", "ratio": 2.5},
                PERTURBATION | {"name": f"step, {optim_step.PER_TENSOR}", "ratio": 1.5},
                PERTURBATION | {"name": f"climb + restore, {optim_step.PEER}", "ratio": 1.2},
                {"name": "step, MESA", "shape": "few", "passes": 1.4, "ratio": 1.5},
            ],
            [{"ratio": 1.9}, {}, {"ratio": 0.9}, {"passes": 1.5}],
            [
                "few: per tensor takes 1.9 times ours, claimed at least 2",
                "few: pytorch_optimizer takes 0.9 times ours, claimed at least 1",
                "MESA: 1.5 passes per step, claimed at most 1.45",
            ],
        ),
        (
            prepare.find_broken_claims,
            [
                {"name": "uumamba, CT", "ratio": 2.5, "peak_mb": 1000},
                {"name": "nnU-Net, CT", "ratio": 1.0, "peak_mb": 9000},
                {"name": "uumamba, ACDC", "ratio": 3.1, "peak_mb": 300},
            ],
            [{"ratio": 1.5, "peak_mb": 5000}, {}, {"ratio": 2.9}],
            [
                "CT: 1.5 times as fast as nnU-Net, claimed at least 2",
                "CT: a peak of 5000 MiB, claimed below 4096",
                "ACDC: 2.9 times as fast as nnU-Net, claimed at least 3",
            ],
        ),
        *(
            (
                partial(train_step.find_broken_claims, device=device),
                [{"name": train_step.BARE, "ratio": 1.0}, {"name": train_step.OURS, "ratio": most}],
                [{}, {"ratio": 1.11}],
                [f"the training step takes 1.11 times its bare passes, claimed at most {most}"],
            )
            for device, most in (("cpu", 1.1), ("cuda:0", 1.03))
        ),
        (
            partial(vessels.find_broken_claims, "aorta"),
            [OURS, BASELINE],
            [{"mean Dice": 0.6, "minutes": 46, "sides swapped": 1}, {"mean Dice": 0.4}],
            [
                "UMambaBot, AdamW: mean Dice is 0.6, claimed at least 0.65",
                "UMambaBot, AdamW: minutes is 46, claimed at most 45",
                "UMambaBot, AdamW: sides swapped is 1, claimed at most 0",
                f"{BASELINE['method']}: mean Dice is 0.4, claimed below 0.4",
            ],
        ),
    ],
    ids=["scan", "optim_step", "prepare", "train_step", "train_step, cuda", "vessels"],
)
def test_a_claim_that_the_rows_contradict_is_named(
    find: Callable[[list[Row]], Iterable[str]], rows: list[Row], changes: list[Row], messages: list[str]
) -> None:
    assert list(find(rows)) == []
    assert list(find([row | change for row, change in zip(rows, changes, strict=True)])) == messages
