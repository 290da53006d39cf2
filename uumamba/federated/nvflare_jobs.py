"""Decentralized training at real sites, connected by NVFlare."""

import json
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from uumamba.federated.clients import check_names
from uumamba.federated.site_rounds import SiteRecord
from uumamba.federated.site_setup import REASON, RECORDS, SiteError, SiteSetup
from uumamba.runtime.errors import require
from uumamba.runtime.options import Positive, PositiveInt, check_options


@check_options
def make_nvflare_job(
    setup: SiteSetup, sites: Sequence[str], *, rounds: PositiveInt, name: str = "gossip", wait_s: Positive = 600.0
) -> Any:
    """Return an NVFlare job of decentralized rounds, to simulate or to submit.

    Sites send their weights to their neighbours in the gossip matrix, by NVFlare's connections. The server gets hashes
    of network and method before the first round, and records of the rounds at the end, but no weights. Weights after
    each round equal the rows of :class:`Simulation` with the same seeds. The first error ends the job at all sites.
    So does a site that does not answer its neighbours in time.

    Args:
        setup: data, network and method; see :class:`SiteSetup`.
        sites: names of the sites, in order of the rows of the gossip matrix.
        rounds: number of rounds.
        name: name of the job.
        wait_s: time that a site waits for a neighbour's weights, longer than the slowest site's local steps.

    Returns:
        A ``FedJob``: pass it to :func:`run_nvflare_simulator`, or submit what ``job.export_job(folder)`` writes. The
        sites need uumamba and NVFlare; the setup's module travels in the job.

    Raises:
        UsageError: NVFlare is missing, two sites have one name, or NVFlare does not allow a name.

    Example:
        The module ``hospitals.py``::

            class Hospital:
                def __init__(self, folder: str):
                    self.folder = folder

                def build(self, name):
                    torch.manual_seed(0)
                    return UNet(...), Client.from_dataset(name, load(self.folder)), DFedSAM(..., ring(4))

                def finish(self, site, folder):
                    torch.save(site.model().state_dict(), folder / "model.pt")

        makes this job::

            job = make_nvflare_job(Hospital("/data/hearts"), ["Leuven", "Lyon", "Riga", "Utrecht"], rounds=100)
            run_nvflare_simulator(job, "work")  # a rehearsal on this machine

    References:
        Roth et al., *NVIDIA FLARE: Federated Learning from Simulation to Real-World*, 2022, arXiv:2210.13291.
        Differs from its executors: a round has K local steps and Q exchanges; a site that fails ends the job at once,
        with its error, where ``SyncAlgorithmExecutor`` leaves the server waiting.
    """
    require(
        find_spec("nvflare"),
        "nvflare",
        got="no such package",
        expected="NVFlare, which connects the sites",
        fix="run pip install 'uumamba[federated]'",
    )
    _check_site_names(sites)
    from nvflare.app_opt.p2p.types import Config, Network, Node
    from nvflare.job_config.api import FedJob

    from uumamba.federated.nvflare_components import GossipController, GossipExecutor

    network = Network(nodes=[Node(id=site) for site in sites])
    job = FedJob(name=name, min_clients=len(sites), mandatory_clients=list(sites))
    job.set_app_packages(["uumamba"])  # installed at the sites, not sent
    job.to(GossipController(Config(network=network, extra={"rounds": rounds})), "server")
    for site in sites:
        job.to(GossipExecutor(setup, wait_s), site)
    return job


@check_options
def run_nvflare_simulator(job: Any, workspace: Path | str, *, log: str = "ERROR") -> dict[str, list[SiteRecord]]:
    """Run a job with a process for each site on this machine.

    Args:
        job: result of :func:`make_nvflare_job`.
        workspace: new or empty folder for everything that server and sites write.
        log: level or mode of NVFlare's log.

    Returns:
        The records of the rounds, by site.

    Raises:
        UsageError: the folder is not empty, since NVFlare would delete its contents, or its path has a space.
        SiteError: a site failed; the message is its error.
    """
    folder = Path(workspace).resolve()
    require(
        not folder.exists() or not any(folder.iterdir()),
        "workspace",
        got=str(folder),
        expected="a new or empty folder, since NVFlare deletes what is in it",
    )
    require(
        not any(char.isspace() for char in str(folder)),
        "workspace",
        got=str(folder),
        expected="a path without spaces, which NVFlare's simulator cannot read",
    )
    code = job.simulator_run(str(folder), log_config=log)
    found = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("server/*/*.*")}
    if REASON in found:
        raise SiteError(found[REASON])
    if RECORDS not in found:
        log_file = folder / "server" / "error_log.txt"
        raise SiteError(f"NVFlare ended with code {code} and without results. Fix: read {log_file}.")
    return {name: [_read_record(record) for record in records] for name, records in json.loads(found[RECORDS]).items()}


def _check_site_names(sites: Sequence[str]) -> None:
    """Raise unless NVFlare accepts the names, which become folders and addresses."""
    wrong = [site for site in sites if not re.fullmatch(r"[A-Za-z0-9_-]+", site) or site.lower() == "server"]
    require(
        sites and not wrong,
        "sites",
        got=wrong or "no site",
        expected="names of letters, digits, _ and -, other than server",
    )
    check_names(sites)


def _read_record(record: Mapping[str, Any]) -> SiteRecord:
    return SiteRecord(**{**record, "isolated": tuple(record["isolated"])})
