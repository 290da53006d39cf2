"""Decentralized training from a configuration: sites, rows, checkpoints and errors."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipelines.run_files import MakeConfig, Refused, read_json
from uumamba.config import RunConfig
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.jobs import list_jobs
from uumamba.pipelines.models import load_predictor
from uumamba.pipelines.sites.federated_build import build_federated_trainer
from uumamba.pipelines.sites.site_report import read_site_trainings
from uumamba.pipelines.train import train
from uumamba.runtime.stop import StoppedOnRequest
from uumamba.training import read_checkpoint
from uumamba.training.run_folder import RunLog

SITES = "federated={sites: domain, topology: {name: ring}, local_steps: 3, gossip_steps: 2}"


@pytest.fixture(scope="module")
def two_sites(tiny_prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom's patients at the sites east and west, two validation cases of fold 0 at east."""
    folder = tmp_path_factory.mktemp("sites") / "prepared"
    shutil.copytree(tiny_prepared, folder)
    manifest = read_json(folder / "dataset.json")
    for split in ("training", "test"):
        for case in manifest[split]:
            case["domain"] = "east" if (case.get("fold") or 0) < 3 else "west"
    (folder / "dataset.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def federated_config(tiny_config: MakeConfig) -> Callable[..., RunConfig]:
    return lambda *overrides: tiny_config(SITES, "training.ema_decay=null", *overrides)


@pytest.fixture(scope="module")
def federated_run(two_sites: Path, federated_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("federated")
    train(federated_config(), data=two_sites, out=folder)
    return folder


def test_rows_have_dice_by_site_consensus_distance_and_traffic(federated_run: Path, two_sites: Path) -> None:
    rows = RunLog(federated_run / "fold_0" / "metrics.jsonl").rows()
    assert [row["epoch"] for row in rows] == [0, 1]
    assert [row["rounds"] for row in rows] == [1, 2]
    for row in rows:
        assert row["sites"] == {"east": pytest.approx(row["dice"]), "west": None}
        assert row["consensus_distance"] >= 0
        assert row["isolated"] == []
        assert {*row["loss_weights"]} == {"region", "distribution", "pixel"}
    assert "sites_own" not in rows[0]
    assert {*rows[1]["sites_own"]} == {"east", "west"}
    assert rows[1]["dice_own_worst"] == min(rows[1]["sites_own"].values())
    weights = sum(
        value.numel() for value in read_checkpoint(federated_run / "fold_0" / "last.safetensors").net.values()
    )
    per_round = 2 * 2 * (weights + 3) * 4 / 1e6  # clients * gossip steps * (network and loss weights) * bytes
    assert [row["sent_megabytes"] for row in rows] == pytest.approx([per_round, 2 * per_round])


def test_the_report_reads_the_sites_of_a_run(federated_run: Path, tiny_run: Path) -> None:
    [training] = read_site_trainings(federated_run)
    assert training.title == "fold 0"
    assert training.graph == "ring, 2 clients, 1 messages per client and step, spectral gap 1.0000, lambda^2 0.000"
    assert training.matrix.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert [row["site"] for row in training.list_scores()] == ["east", "west"]
    assert read_site_trainings(tiny_run) == []


def test_a_checkpoint_has_the_mean_of_the_sites_and_predicts(federated_run: Path, two_sites: Path) -> None:
    checkpoint = read_checkpoint(federated_run / "fold_0" / "last.safetensors")
    stacked = checkpoint.method["simulation"]["weights"]
    assert stacked.shape[0] == 2
    trained = torch.cat([value.flatten() for value in (*checkpoint.net.values(), *checkpoint.objective.values())])
    torch.testing.assert_close(trained, stacked.double().mean(dim=0).float())
    predictor = load_predictor(federated_run)
    assert predictor(torch.rand(4, 60, 60).numpy(), spacing_mm=(10.0, 3.0, 3.0)).label.shape == (4, 60, 60)


def test_a_resumed_run_equals_an_uninterrupted_one(
    federated_run: Path, two_sites: Path, federated_config: MakeConfig, tmp_path: Path
) -> None:
    def stop_after_first_round(self: Any, record: Any) -> None:
        count(self, record)
        if record.round == stops.pop(0):
            self._stop.signal_name = "SIGTERM"

    from uumamba.training.federated_trainer import FederatedTrainer

    config = federated_config("federated.local_steps=1")
    train(config, data=two_sites, out=tmp_path / "whole")
    count, stops = FederatedTrainer._count, [0, 99, 99, 99, 99, 99]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FederatedTrainer, "_count", stop_after_first_round)
        with pytest.raises(StoppedOnRequest, match=r"in epoch 1 after 1 rounds, with a checkpoint.*--resume"):
            train(config, data=two_sites, out=tmp_path / "stopped")
    train(config, data=two_sites, out=tmp_path / "stopped", resume=True)
    whole, stopped = (read_checkpoint(tmp_path / name / "fold_0" / "last.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole.net[name], value) for name, value in stopped.net.items())
    assert torch.equal(whole.method["simulation"]["weights"], stopped.method["simulation"]["weights"])
    rows = [RunLog(tmp_path / name / "fold_0" / "metrics.jsonl").rows() for name in ("whole", "stopped")]
    assert [[row["loss"] for row in each] for each in rows] == [[row["loss"] for row in rows[0]]] * 2


def test_sites_train_on_their_own_cases_only(two_sites: Path, federated_config: MakeConfig) -> None:
    folder = PreparedFolder(two_sites)
    [job] = list_jobs(federated_config(), folder, fold="0", out=two_sites.parent / "unused")
    trainer = build_federated_trainer(job, folder, run_dir=None)
    seen = {
        client.name: {
            case_id for number in range(6) for batch in client.batches(number) for case_id in batch["case_id"]
        }
        for client in trainer.simulation.clients
    }
    assert {site: seen[site] <= {*own} for site, (own, _) in job.sites.items()} == {"east": True, "west": True}
    assert seen["east"].isdisjoint(seen["west"])
    assert {client.name: client.size for client in trainer.simulation.clients} == {"east": 4, "west": 4}


@pytest.mark.parametrize(
    ("overrides", "key", "got"),
    [
        (["federated.sites=group"], "federated.sites", None),
        (["federated.local_steps=2"], "federated.local_steps", 2),
        (["training.ema_decay=0.9"], "training.ema_decay", 0.9),
        (["training.workers=1"], "training.workers", 1),
        (["training.samples_at_once=1"], "training.samples_at_once", 1),
        (["training.compile=true"], "training.compile", True),
        (["objective={name: MESA}"], "objective.name", "MESA"),
        (["schedule={name: budget, minutes: 1}"], "schedule.name", "budget"),
        (["quantization={}"], "quantization", "quantize_"),
        (["training.precision=float16"], "training.precision", "float16"),
        (["federated.topology={name: random_regular}"], "federated.topology.degree", None),
        (["federated.topology={name: star}"], "federated.topology.name", "star"),
        (["federated.gossip_steps=-1"], "federated.gossip_steps", -1),
    ],
)
def test_wrong_options_are_refused_before_a_file_is_written(
    two_sites: Path,
    federated_config: MakeConfig,
    tmp_path: Path,
    refused: Refused,
    overrides: list[str],
    key: str,
    got: Any,
) -> None:
    with refused(key, *([] if got is None else [got])):
        train(federated_config(*overrides), data=two_sites, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_single_site_and_a_site_without_a_structure_are_refused(
    tiny_prepared: Path, two_sites: Path, federated_config: MakeConfig, tmp_path: Path, refused: Refused
) -> None:
    with refused("federated.sites"):
        train(federated_config(), data=tiny_prepared, out=tmp_path / "run")
    folder = tmp_path / "prepared"
    shutil.copytree(two_sites, folder)
    for case in PreparedFolder(folder).manifest.select(split="training", domains=["west"]):
        path = folder / "cases" / case.case_id / "case.json"
        stored = read_json(path)
        stored["label_voxels"].pop("1", None)
        path.write_text(json.dumps(stored), encoding="utf-8")
    with refused("site west"):
        train(federated_config(), data=folder, out=tmp_path / "run")


def test_several_ranks_are_refused(two_sites: Path, federated_config: MakeConfig, refused: Refused) -> None:
    with refused("federated", "2 processes"):
        list_jobs(federated_config(), PreparedFolder(two_sites), fold="0", out=two_sites.parent / "unused", ranks=2)
