"""Tests of rounds with a process for each client, against the simulation."""

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.federated.site_examples import CLIENTS, METHODS, make_client, make_net, objective, simulate
from tests.forked_ranks import read_group
from uumamba.federated import (
    DFedSAM,
    Server,
    Site,
    check_same,
    connect_site,
    join_as_client,
    random_regular,
    ring,
)
from uumamba.federated.processes import ProcessLinks
from uumamba.runtime.errors import UsageError
from uumamba.runtime.ranks import ALONE

NAMES = [f"site_{index + 1}" for index in range(CLIENTS)]
EXAMPLE = METHODS["several gossip steps"]


def run_script(arguments: list[str], repository: Path) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("process_jobs.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    command = [sys.executable, *arguments[:-1], str(script), arguments[-1]]
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=180)


@pytest.fixture(scope="module")
def trained(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run every example with four processes of torchrun; return their folder."""
    folder = tmp_path_factory.mktemp("trained")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(CLIENTS)]
    done = run_script([*torchrun, str(folder)], repository)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def ended(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run groups of four processes with one failure each; return their folder."""
    folder = tmp_path_factory.mktemp("ended")
    done = run_script([str(folder)], repository)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("example", METHODS)
def test_each_process_equals_its_row_of_the_simulation(
    trained: Path, example: str, request: pytest.FixtureRequest
) -> None:
    """Both use one thread, as torchrun sets it: the order of sums, and so their rounding, depends on threads."""
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(1)
    with pytest.warns(match="isolated") if "not finite" in example else nullcontext():
        simulation, records = simulate(example)
    stored = [json.loads((trained / example / f"{index}.json").read_text("utf-8")) for index in range(CLIENTS)]
    for index in range(CLIENTS):
        found = torch.load(trained / example / f"{index}.pt", weights_only=True)
        torch.testing.assert_close(found["weights"], simulation.weights[index], rtol=1e-6, atol=1e-7)
        for name, buffer in simulation.state(index).buffers.items():
            torch.testing.assert_close(found["buffers"][name], buffer, rtol=1e-6, atol=1e-7)
    for number, record in enumerate(records):
        sites = [each["records"][number] for each in stored]
        assert sum(site["sent_bytes"] for site in sites) == record.sent_bytes
        assert sum(site["is_present"] for site in sites) == record.present
        assert {name for site in sites for name in site["isolated"]} == set(record.isolated)
        assert sum(site["skipped_steps"] for site in sites) == sum(record.skipped_steps.values())
        losses = [site["loss"] for site in sites if site["is_present"]]
        assert sum(losses) / len(losses) == pytest.approx(record.loss, rel=1e-6)


@pytest.mark.slow
def test_a_process_with_weights_that_are_not_finite_is_isolated_and_warns_with_its_name(trained: Path) -> None:
    folder = trained / "a site that is not finite"
    warned = [json.loads((folder / f"{index}.json").read_text("utf-8"))["warned"] for index in range(CLIENTS)]
    assert [len(each) for each in warned] == [0, 0, 3, 0]
    assert warned[2][0] == "site_3: weights or statistics are not finite after round 0; isolated for this round"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "codes", "message"),
    [
        ("raises", [1] * 4, "Target 9 is out of bounds.\nin round 0 of Utrecht"),
        (
            "not finite",
            [2] * 4,
            "site_2: got weights or statistics that are not finite after round 0",
        ),
        ("killed", [1, 1, 1, -9], r"disappeared \(.*; connected to site_4\b.*\)|no heartbeat of process 3"),
    ],
)
def test_a_process_that_fails_ends_all_within_a_minute_and_names_its_client_once(
    ended: Path, job: str, codes: list[int], message: str
) -> None:
    found, out, err = read_group(ended / job)
    assert found == codes, err
    assert len(re.findall(message, err)) == 1, err
    ends = [end for _, end in json.loads((ended / job / "ends.json").read_text("utf-8"))]
    begin = float(out[3]) if job == "killed" else min(ends)
    assert max(ends) - begin < 60


@pytest.mark.slow
def test_the_other_processes_end_with_the_error_and_its_client(ended: Path) -> None:
    _, out, _ = read_group(ended / "raises")
    for index in (0, 1, 3):
        assert out[index] == "Process 2 ended: Target 9 is out of bounds. (in round 0 of Utrecht)\n"


def make_site(index: int = 0, *, net: Any = None, method: DFedSAM = EXAMPLE) -> Site:
    return Site(net or make_net(), make_client(index), method, ProcessLinks(index, NAMES))


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"net": make_net(hidden=9)}, "site_3: got a network of 121 trainable weights, expected the network of site_1"),
        ({"net": make_net(seed=8)}, "site_3: got starting weights with the sum .* seed every client equally"),
        ({"method": DFedSAM(objective, EXAMPLE.optimizer, ring(4), gossip_steps=2)}, "site_3: got another method"),
        ({"method": DFedSAM(objective, EXAMPLE.optimizer, ring(4), seed=1)}, "site_3: got another method or topology"),
    ],
)
def test_clients_that_differ_are_refused_by_name(other: dict[str, Any], complaint: str) -> None:
    same = [make_site(index).summarize() for index in range(2)]
    check_same(same)
    with pytest.raises(UsageError, match=complaint):
        check_same([*same, make_site(2, **other).summarize()])


def test_random_graphs_of_other_seeds_are_other_methods() -> None:
    first, second = (
        make_site(index, method=DFedSAM(objective, EXAMPLE.optimizer, random_regular(4, degree=2, seed=seed)))
        for index, seed in enumerate((0, 2))
    )
    with pytest.raises(UsageError, match="site_2: got another method or topology"):
        check_same([first.summarize(), second.summarize()])


def test_a_neighbour_that_sends_another_shape_is_refused_by_name() -> None:
    class Short(ProcessLinks):
        """Connection to neighbours whose weights lack the last one."""

        def swap(self, message: torch.Tensor, **options: Any) -> dict[int, torch.Tensor]:
            return {each: message[:-1] if len(message) > 1 else message for each in options["senders"]}

    site = Site(make_net(), make_client(0), EXAMPLE, Short(0, NAMES))
    before = site.state.weights.clone()
    with pytest.raises(UsageError, match=r"site_2: got weights of shape \(107,\), expected shape \(108,\)"):
        site.run_round()
    assert site.round == 0
    assert torch.equal(site.state.weights, before)


def test_a_single_process_continues_a_stored_state_as_if_there_had_been_no_stop() -> None:
    method = DFedSAM(objective, METHODS["kept momentum"].optimizer, ring(1), keep_momentum=True)
    whole, first, second = (connect_site(make_net(), make_client(0), method, ALONE) for _ in range(3))
    assert [record.sent_bytes for record in whole.run(4)] == [0] * 4
    list(first.run(2))
    second.load_state_dict(first.state_dict())
    list(second.run(2))
    assert torch.equal(second.state.weights, whole.state.weights)
    with pytest.raises(UsageError, match="client: got site_1, expected site_2"):
        make_site(1).load_state_dict(first.state_dict())


def test_the_model_of_a_site_is_that_of_the_simulation() -> None:
    method = DFedSAM(objective, EXAMPLE.optimizer, ring(1))
    site = connect_site(make_net(), make_client(0), method, ALONE)
    list(site.run(2))
    model = site.model()
    assert torch.equal(model[0].weight.detach().reshape(-1), site.state.weights[:48])
    assert not torch.equal(model[1].running_mean, site.state.buffers["1.running_mean"]), "recomputed"


def test_a_server_and_a_wrong_number_of_processes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"topology: got a server.*full\(clients\)"):
        make_site(method=DFedSAM(objective, EXAMPLE.optimizer, Server([1] * 4)))
    with (
        pytest.raises(UsageError, match=r"processes: got 1, expected 4.*torchrun --nproc-per-node 4"),
        join_as_client(make_net(), make_client, EXAMPLE),
    ):
        pass
