"""NVFlare's executor and controller of gossip rounds.

Only a job of :func:`uumamba.federated.make_nvflare_job` and NVFlare itself load this module.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.controller_spec import Task
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import make_reply
from nvflare.app_opt.p2p.controllers import DistOptController
from nvflare.app_opt.p2p.executors import SyncAlgorithmExecutor
from torch import Tensor

from uumamba.federated.site_rounds import Site, SiteSummary, check_same
from uumamba.federated.site_setup import REASON, RECORDS, SiteError, SiteSetup
from uumamba.runtime.errors import EndedWithAnother, UumambaError, require
from uumamba.runtime.memory_shortage import summarize_error

ERROR, SUMMARY = "uumamba_error", "uumamba_summary"
"""Headers of a site's replies to the server."""
TOPIC = "send_value"
"""Topic of the messages between neighbours."""
POLL_S = 0.02


class GossipExecutor(SyncAlgorithmExecutor):  # type: ignore[misc]  # NVFlare has no types
    """Rounds of one site.

    The base class keeps the neighbours' messages by number of the exchange.

    Args:
        setup: data, network and method of the site.
        wait_s: time to wait for a neighbour.
    """

    def __init__(self, setup: SiteSetup, wait_s: float = 600.0) -> None:
        super().__init__(sync_timeout=wait_s)
        self.setup, self.wait_s = setup, wait_s  # NVFlare reads the arguments from attributes
        self.site: Site | None = None

    def handle_event(self, event_type: str, fl_ctx: Any) -> None:
        """Register the handler of neighbours' messages.

        The base class does so only for names such as site-1.
        """
        if event_type == EventType.START_RUN:
            self.client_name = fl_ctx.get_identity_name()
            fl_ctx.get_engine().register_aux_message_handler(TOPIC, self._handle_neighbor_value)

    def execute(self, task_name: str, shareable: Any, fl_ctx: Any, abort_signal: Any) -> Any:
        """Reply to a task with the summary, the records or the error."""
        data = from_shareable(shareable).data
        try:
            if task_name == "config":
                self.site = self._build(SiteLinks(self, data["sites"], fl_ctx, abort_signal))
                return make_reply(ReturnCode.OK, {SUMMARY: asdict(self.site.summarize())})
            return self._run(data["rounds"], fl_ctx, abort_signal)
        except Exception as error:  # noqa: BLE001  # the server raises it
            self.log_exception(fl_ctx, summarize_error(error))
            text = "" if isinstance(error, EndedWithAnother) else _describe(error, self.client_name)
            return make_reply(ReturnCode.EXECUTION_EXCEPTION, {ERROR: text})

    def run_algorithm(self, fl_ctx: Any, shareable: Any, abort_signal: Any) -> None:
        """Do nothing: ``execute`` runs the rounds, since this method cannot reply."""

    def _from_message(self, message: Any) -> Tensor:
        return torch.from_numpy(message)

    def _build(self, links: "SiteLinks") -> Site:
        net, client, method = self.setup.build(self.client_name)
        require(
            client.name == self.client_name,
            self.client_name,
            got=f"a client with the name {client.name}",
            expected="the site's name, which keys its random numbers",
        )
        return Site(net, client, method, links)

    def _run(self, rounds: int, fl_ctx: Any, abort_signal: Any) -> Any:
        site = self.site
        assert site is not None, "config comes before run_algorithm"
        site.links = SiteLinks(self, site.links.names, fl_ctx, abort_signal)
        records = [asdict(record) for record in site.run(rounds)]
        self.setup.finish(site, _find_folder(fl_ctx))
        return DXO(DataKind.APP_DEFINED, data={"records": records}).to_shareable()


class SiteLinks:
    """Messages of one site to its neighbours.

    Args:
        executor: the site's executor, which gets the neighbours' messages.
        names: names of all sites.
        fl_ctx: NVFlare's context of the task.
        abort_signal: triggered when the job ends.
    """

    def __init__(self, executor: GossipExecutor, names: Sequence[str], fl_ctx: Any, abort_signal: Any) -> None:
        self.names, self.index = names, list(names).index(executor.client_name)
        self._executor, self._fl_ctx, self._abort_signal = executor, fl_ctx, abort_signal

    def swap(self, message: Tensor, *, tag: int, receivers: Sequence[int], senders: Sequence[int]) -> dict[int, Tensor]:
        """Send a vector to some sites and return the vectors of others."""
        if receivers:  # without a receiver NVFlare would send to the server
            self._send(message, tag, [self.names[each] for each in receivers])
        found = self._receive(tag, [self.names[each] for each in senders])
        return {each: found[self.names[each]] for each in senders}

    def _send(self, message: Tensor, tag: int, names: list[str]) -> None:
        """Send a vector to neighbours; raise unless each has received it."""
        request = DXO(DataKind.WEIGHTS, data={"value": message.numpy(), "iteration": tag}).to_shareable()
        engine, wait_s = self._fl_ctx.get_engine(), self._executor.wait_s
        replies = engine.send_aux_request(names, TOPIC, request, wait_s, self._fl_ctx)
        self._raise_if_ended()
        for name in names:
            code = replies[name].get_return_code() if name in replies else "no reply"
            if code != ReturnCode.OK:
                raise SiteError(f"{name} has not received the weights of {self._executor.client_name} ({code})")

    def _receive(self, tag: int, names: list[str]) -> Mapping[str, Tensor]:
        """Return the neighbours' vectors of one exchange when all are there."""
        executor = self._executor
        deadline = time.monotonic() + executor.wait_s
        while True:
            with executor.lock:
                missing = [name for name in names if name not in executor.neighbors_values[tag]]
                if not missing:
                    return executor.neighbors_values.pop(tag)
            self._raise_if_ended()
            if time.monotonic() > deadline:
                raise SiteError(f"{missing[0]} has sent {executor.client_name} no weights in {executor.wait_s:g} s")
            time.sleep(POLL_S)

    def _raise_if_ended(self) -> None:
        if self._abort_signal.triggered:
            raise EndedWithAnother("another site ended the job")


class GossipController(DistOptController):  # type: ignore[misc]  # NVFlare has no types
    """Server of a job, which starts the rounds and collects the records.

    Sites with different networks, methods or starting weights are refused before the first round.

    Args:
        config: the sites in order of rows, and the number of rounds.
    """

    def control_flow(self, abort_signal: Any, fl_ctx: Any) -> None:
        """Run the job; the first error of a site ends it."""
        folder, names = _find_folder(fl_ctx), [node.id for node in self.config.network.nodes]
        try:
            replies = self._ask("config", {"sites": names}, names, abort_signal, fl_ctx)
            check_same([SiteSummary(**replies[name].get_header(SUMMARY)) for name in names])
            replies = self._ask("run_algorithm", self.config.extra, names, abort_signal, fl_ctx)
            records = {name: from_shareable(replies[name]).data["records"] for name in names}
            (folder / RECORDS).write_text(json.dumps(records), encoding="utf-8")
        except UumambaError as error:
            (folder / REASON).write_text(str(error), encoding="utf-8")
            raise

    def _ask(self, name: str, data: Any, sites: list[str], abort_signal: Any, fl_ctx: Any) -> dict[str, Any]:
        """Return all sites' replies to a task; raise the first error."""
        replies: dict[str, Any] = {}
        errors: list[str] = []

        def collect(client_task: Any, fl_ctx: Any) -> None:
            site, reply = client_task.client.name, client_task.result
            replies[site] = reply
            if (code := reply.get_return_code()) != ReturnCode.OK:
                errors.append(reply.get_header(ERROR, f"{site}: ended with {code}"))
                self.cancel_task(client_task.task, fl_ctx=fl_ctx)

        task = Task(name, DXO(DataKind.APP_DEFINED, data=data).to_shareable(), result_received_cb=collect)
        self.broadcast_and_wait(task, fl_ctx, sites, min_responses=len(sites), abort_signal=abort_signal)
        missing = [site for site in sites if site not in replies]
        if errors or missing:
            raise SiteError(next(filter(None, errors), f"{', '.join(missing)}: no reply"))
        return replies


def _find_folder(fl_ctx: Any) -> Path:
    """Return the folder of the job at this site or the server."""
    return Path(fl_ctx.get_engine().get_workspace().get_run_dir(fl_ctx.get_job_id()))


def _describe(error: Exception, name: str) -> str:
    """Return an error's text with its notes and the site's name."""
    text = str(error) or type(error).__name__
    notes = "; ".join(getattr(error, "__notes__", []))
    text = f"{text} ({notes})" if notes else text
    return text if name in text else f"{name}: {text}"
