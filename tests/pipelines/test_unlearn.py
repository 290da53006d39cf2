"""Unlearning of patients from a run: model, evidence, page and refusals."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipelines.run_files import MakeConfig, Refused, contents, read_json
from uumamba.data.prepared import PreparedFolder
from uumamba.evaluation.unlearning_page import render_unlearning_page
from uumamba.pipelines.forgetting.case_measures import CaseMeasures
from uumamba.pipelines.forgetting.forget_request import read_request
from uumamba.pipelines.forgetting.forgetting_evidence import AttackOptions, draw_findings
from uumamba.pipelines.forgetting.forgetting_run import ForgettingOptions, forget_patients
from uumamba.pipelines.models import load_predictor
from uumamba.pipelines.train import train
from uumamba.pipelines.unlearn import unlearn_patients
from uumamba.training import read_checkpoint

QUICK = ForgettingOptions(steps=2, looks=2, learning_rate=0.01)
ATTACK = AttackOptions(budgets=(1, 2), rates=(1e-3, 1e-2), batches=1)
Unlearn = Callable[..., Path]


@pytest.fixture(scope="module")
def prepared(tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven phantom patients; the last four are validation patients of fold 0."""
    from data_prep.phantoms.heart.heart_phantom import write_phantom
    from uumamba.pipelines.datasets import read_dataset
    from uumamba.pipelines.prepare import prepare

    root = tmp_path_factory.mktemp("unlearn")
    write_phantom(root / "raw", patients=7, test_patients=0, seed=0, workers=0)
    manifest, bad = read_dataset("phantom", root / "raw")
    prepare(manifest, bad, recipe=tiny_config().preprocess.build(), out=root / "prepared", workers=0)
    stored = read_json(root / "prepared" / "dataset.json")
    for case in stored["training"]:
        case["fold"] = 0 if int(case["patient_id"][-1]) > 3 else 1
    (root / "prepared" / "dataset.json").write_text(json.dumps(stored), encoding="utf-8")
    return root / "prepared"


@pytest.fixture(scope="module")
def run(prepared: Path, tiny_config: MakeConfig) -> Path:
    train(tiny_config(), data=prepared, out=prepared.parent / "run")
    return prepared.parent / "run"


@pytest.fixture(scope="module")
def unlearned(run: Path) -> Path:
    out = run.parent / "unlearned"
    unlearn_patients(run, patients=["patient002"], out=out, options=QUICK, attack=ATTACK)
    return out


def test_the_result_is_a_run_without_the_patient_that_predicts(run: Path, unlearned: Path, prepared: Path) -> None:
    before, after = (read_checkpoint(each / "fold_0" / "last.safetensors") for each in (run, unlearned))
    assert after.config["run"]["dataset"]["exclude_patients"] == ["patient002"]
    assert "exclude_patients" not in before.config["run"]["dataset"]
    given = before.ema or before.net
    assert any(not torch.equal(given[name], value) for name, value in after.net.items())
    image = torch.rand(4, 60, 60).numpy()
    assert load_predictor(unlearned)(image, spacing_mm=(10.0, 3.0, 3.0)).label.shape == image.shape
    retrained = read_checkpoint(unlearned / "retrained" / "fold_0" / "last.safetensors")
    assert retrained.config["run"] == after.config["run"]


def test_the_evidence_compares_four_models(unlearned: Path) -> None:
    found = read_json(unlearned / "unlearning.json")
    assert found["patients"] == ["patient002"]
    assert found["cases"] == {"forgotten": 2, "retained": 4, "unseen": 8, "unseen_for_membership": 4, "attacker": 2}
    assert [*found["models"]] == ["before", "after", "unsmoothed", "retrained"]
    assert found["models"]["retrained"]["distance_to_retrained"]["forgotten"]["divergence"] == pytest.approx(
        0, abs=1e-6
    )
    assert found["models"]["before"]["distance_to_retrained"]["forgotten"]["divergence"] > 0
    assert {name: [row["budget"] for row in rows] for name, rows in found["relearning"].items()} == {
        name: [0, 1, 2] for name in ("after", "unsmoothed", "retrained")
    }
    assert [*found["findings"]] == ["was_recognised", "is_forgotten", "dice_drop", "closer_after_attack"]
    assert [look["step"] for look in found["run"]["looks"]] == [0, 1, 2]
    assert {look["by"] for look in found["run"]["looks"]} <= {"loss", "voxel_loss"}
    assert found["findings"]["was_recognised"] is found["findings"]["is_forgotten"] is None  # of a single patient
    dice = {name: model["dice"]["unseen"] for name, model in found["models"].items()}
    assert found["findings"]["dice_drop"] == pytest.approx(dice["before"] - dice["after"])


def test_without_a_recognised_case_the_steps_are_those_of_the_runs_own_loss(run: Path, tmp_path: Path) -> None:
    request = read_request(run, patients=["patient002"], data=None, out=tmp_path)
    measures, trained = CaseMeasures(request), request.load_net().state_dict()
    nets = []
    for method in ("NPO", "GradientDifference"):
        options = ForgettingOptions(method=method, steps=2, looks=2, learning_rate=0.01)
        net, looks = forget_patients(request, options, measures, unseen_ids=request.forget_ids)
        assert [look.recognised for look in looks] == [(), (), ()]
        nets.append(net.state_dict())
    assert all(torch.equal(value, nets[1][name]) for name, value in nets[0].items())
    assert any(not torch.equal(value, trained[name]) for name, value in nets[0].items())


def test_the_page_says_what_was_measured_and_promises_nothing_more(unlearned: Path) -> None:
    page = (unlearned / "unlearning.html").read_text(encoding="utf-8")
    assert "no proof that the data are erased" in page
    assert "patient002" in page
    assert "without an interval for a single patient" in page
    assert "the attacker has the patient whom the attack is measured on" in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_given_retrained_run_gives_the_same_evidence(run: Path, unlearned: Path, tmp_path: Path) -> None:
    unlearn_patients(
        run, patients=["patient002"], out=tmp_path, retrained=unlearned / "retrained", options=QUICK, attack=ATTACK
    )
    assert read_json(tmp_path / "unlearning.json") == read_json(unlearned / "unlearning.json")
    assert not (tmp_path / "retrained").exists()


@pytest.mark.slow  # two networks are unlearned for each
@pytest.mark.parametrize("smoothing", ["RS", "GP", "CR", "none"])
def test_every_smoothing_unlearns(run: Path, tmp_path: Path, smoothing: Any) -> None:
    """The patient with the lowest loss is recognised among cases with the highest."""
    requests = [
        read_request(run, patients=[f"patient00{number}"], data=None, out=tmp_path / str(number))
        for number in (1, 2, 3)
    ]
    measures = CaseMeasures(requests[0])
    losses = {
        case_id: each.loss
        for request in requests
        for case_id, each in measures.measure(request.load_net(), [*request.forget_ids, *request.unseen_ids]).items()
    }
    request = min(requests, key=lambda each: min(losses[case_id] for case_id in each.forget_ids))
    worst = [max(losses, key=losses.__getitem__)]
    nets = []
    for name in (smoothing, "none"):
        options = ForgettingOptions(steps=1, looks=1, smoothing=name, method="GradientDifference", strength=0.001)
        net, looks = forget_patients(request, options, measures, unseen_ids=worst)
        assert looks[0].recognised
        nets.append(net.state_dict())
    same = all(torch.equal(nets[0][key], nets[1][key]) for key in nets[0])
    assert same == (smoothing == "none")


@pytest.mark.parametrize(
    ("options", "key", "got"),
    [
        ({"patients": ["patient099"]}, "--patients", "patient099"),
        ({"patients": ["patient002_frame01"]}, "--patients", "patient002_frame01"),
        ({"patients": ["patient005"]}, "--patients", "patient005, which the run did not train on"),
        ({"patients": ["patient001", "patient001"]}, "--patients", "patient001 twice"),
        ({"patients": ["patient001", "patient002", "patient003"]}, "--patients", "all 3 training patients"),
        ({"patients": []}, "--patients", "nothing"),
        ({"fold": "1"}, "--fold", "1"),
        ({"run": "nowhere"}, "RUN", "nowhere, which does not exist"),
        ({"data": "nowhere"}, "path", "nowhere, which does not exist"),
    ],
)
def test_wrong_requests_are_refused_before_a_file_is_written(
    run: Path,
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    key: Any,
    got: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"run": run, "patients": ["patient001"], "out": "out"} | options
    with refused(key, got):
        unlearn_patients(**given)
    assert contents(tmp_path) == {}


def test_a_run_with_the_patient_is_no_retrained_one(run: Path, tmp_path: Path, refused: Refused) -> None:
    with refused("--retrained"):
        unlearn_patients(run, patients=["patient001"], out=tmp_path / "out", retrained=run)
    assert contents(tmp_path) == {}


def test_an_out_with_a_run_and_data_elsewhere_are_refused(
    run: Path, unlearned: Path, tmp_path: Path, refused: Refused
) -> None:
    with refused(str(unlearned / "fold_0")):
        unlearn_patients(run, patients=["patient001"], out=unlearned)
    (tmp_path / "elsewhere").symlink_to(run / "fold_0")
    with refused("--data", "nothing"):
        unlearn_patients(tmp_path / "elsewhere", patients=["patient001"], out=tmp_path / "out")


def test_patients_that_are_excluded_train_and_validate_nowhere(
    prepared: Path, tiny_config: MakeConfig, refused: Refused
) -> None:
    from uumamba.pipelines.jobs import list_jobs

    folder = PreparedFolder(prepared)
    config = tiny_config("dataset.exclude_patients=[patient001, patient005]")
    [job] = list_jobs(config, folder, fold="0", out=prepared.parent / "unused")
    used = {folder.manifest.by_id(case_id).patient_id for case_id in (*job.training_ids, *job.validation_ids)}
    assert used == {"patient002", "patient003", "patient004", "patient006", "patient007"}
    with refused("dataset.exclude_patients", "patient012"):
        list_jobs(tiny_config("dataset.exclude_patients=[patient012]"), folder, fold="0", out=prepared)


def test_intervals_that_do_not_exist_are_null_and_shown(unlearned: Path) -> None:
    found = read_json(unlearned / "unlearning.json")
    assert found["models"]["before"]["membership"]["advantage_interval"] == [None, None]
    text = render_unlearning_page(found, model="run")
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text).lower()
    assert math.isfinite(found["models"]["before"]["membership"]["advantage"])


def make_models(before: float, after: tuple[float, float], retrained: float) -> dict[str, Any]:
    values = {
        "before": (0.9, (before, 1.0)),
        "after": (0.3, after),
        "unsmoothed": (0.3, after),
        "retrained": (retrained, (0.0, 1.0)),
    }
    return {
        name: {
            "membership": {"advantage": value, "advantage_interval": interval},
            "membership_by_voxel_loss": {"advantage": value, "advantage_interval": interval},
            "dice": {"unseen": 0.8},
        }
        for name, (value, interval) in values.items()
    }


@pytest.mark.parametrize(
    ("before", "after", "retrained", "expected"),
    [
        (0.5, (0.1, 0.4), 0.2, (True, True)),
        (0.5, (0.3, 0.6), 0.2, (True, False)),
        (0.5, (0.0, 0.1), 0.2, (True, False)),
        (0.1, (0.1, 0.4), 0.2, (False, True)),
        (math.nan, (math.nan, math.nan), 0.2, (None, None)),
    ],
)
def test_findings_follow_from_the_intervals(before: float, after: Any, retrained: float, expected: Any) -> None:
    areas = {"after": [0.6, 0.7, 0.5], "unsmoothed": [0.6, 0.9, 0.4], "retrained": [0.5, 0.5, 0.5]}
    attack = {
        name: [{"budget": 10 * index, "membership": {"auc": area}} for index, area in enumerate(values)]
        for name, values in areas.items()
    }
    found = draw_findings(make_models(before, after, retrained), attack)
    assert (found["was_recognised"], found["is_forgotten"]) == expected
    models = make_models(before, after, retrained)
    models["after"]["membership_by_voxel_loss"]["advantage_interval"] = (0.9, 1.0)
    assert draw_findings(models, attack)["is_forgotten"] is (None if math.isnan(before) else False)
    assert found["closer_after_attack"] == {"0": None, "10": True, "20": True}
