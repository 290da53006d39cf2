"""Tests of rounds at NVFlare's sites, against the simulation."""

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.federated.nvflare_setup import ExampleSetup
from tests.federated.site_examples import CLIENTS, simulate
from uumamba.federated import SiteError, make_nvflare_job, run_nvflare_simulator
from uumamba.runtime.errors import UsageError

SITES = [f"site_{index + 1}" for index in range(CLIENTS)]
ROUNDS = 2

pytestmark = pytest.mark.nvflare


@pytest.fixture(autouse=True)
def importable(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the sites' processes import uumamba and the tests' setup."""
    monkeypatch.setenv("PYTHONPATH", str(repository))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_sites_of_nvflare_equal_the_rows_of_the_simulation(tmp_path: Path) -> None:
    """The schedule is directed: receivers of a site are not its senders."""
    simulation, records = simulate("schedule", rounds=ROUNDS)
    found = run_nvflare_simulator(make_nvflare_job(ExampleSetup("schedule"), SITES, rounds=ROUNDS), tmp_path / "work")
    assert [entry.name for entry in tmp_path.iterdir()] == ["work"], "nothing is written elsewhere"
    for index, site in enumerate(SITES):
        weights = torch.load(tmp_path / "work" / site / "simulate_job" / "weights.pt", weights_only=True)
        torch.testing.assert_close(weights, simulation.weights[index], rtol=1e-6, atol=1e-7)
    for record in records:
        assert sum(found[site][record.round].sent_bytes for site in SITES) == record.sent_bytes
        losses = [found[site][record.round].loss for site in SITES]
        assert sum(losses) / CLIENTS == pytest.approx(record.loss, rel=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_an_error_at_a_site_ends_the_job_and_is_raised_with_the_sites_name(tmp_path: Path) -> None:
    job = make_nvflare_job(ExampleSetup("several gossip steps", fault="raise"), SITES, rounds=3)
    with pytest.raises(SiteError, match=r"the scanner's folder is gone \(in round 1 of site_2\)"):
        run_nvflare_simulator(job, tmp_path / "work")


def test_a_job_holds_the_setup_and_leaves_uumamba_to_the_sites_installation(tmp_path: Path) -> None:
    make_nvflare_job(ExampleSetup("alone"), SITES, rounds=5, name="hearts", wait_s=7.0).export_job(str(tmp_path))
    config = json.loads((tmp_path / "hearts" / "app_site_3" / "config" / "config_fed_client.json").read_text("utf-8"))
    executor = config["executors"][0]["executor"]
    assert executor["path"] == "uumamba.federated.nvflare_components.GossipExecutor"
    assert executor["args"]["wait_s"] == 7.0
    assert executor["args"]["setup"]["args"] == {"example": "alone"}
    server = json.loads((tmp_path / "hearts" / "app_server" / "config" / "config_fed_server.json").read_text("utf-8"))
    assert server["workflows"][0]["args"]["config"]["args"]["extra"] == {"rounds": 5}
    copied = {path.name for path in (tmp_path / "hearts" / "app_site_3" / "custom").rglob("*.py")}
    assert "nvflare_setup.py" in copied
    assert "nvflare_components.py" not in copied


def test_a_folder_with_files_and_a_path_with_spaces_are_refused(tmp_path: Path) -> None:
    kept = tmp_path / "results.csv"
    kept.write_text("dice", encoding="utf-8")
    with pytest.raises(UsageError, match="expected a new or empty folder, since NVFlare deletes"):
        run_nvflare_simulator(None, tmp_path)
    assert kept.exists()
    with pytest.raises(UsageError, match="expected a path without spaces"):
        run_nvflare_simulator(None, tmp_path / "my work")


def test_sites_need_names_of_their_own_that_nvflare_accepts() -> None:
    with pytest.raises(UsageError, match=r"clients: got the name \['A'\] twice"):
        make_nvflare_job(ExampleSetup("alone"), ["A", "A"], rounds=1)
    for wrong in ([], ["Köln", "Riga"], ["server", "Riga"], ["a,b", "Riga"], ["a b", "Riga"]):
        with pytest.raises(UsageError, match=r"sites: got .* expected names of letters"):
            make_nvflare_job(ExampleSetup("alone"), wrong, rounds=1)


def test_missing_nvflare_is_reported_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvflare", None)
    with pytest.raises(UsageError, match=r"nvflare: got no such package.*pip install 'uumamba\[federated\]'"):
        make_nvflare_job(ExampleSetup("alone"), SITES, rounds=1)
